"""pefx.serving.memory: what a sequence writes, what of it others may share, and what is kept."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.packing import COMMIT, FRESH, GATHER
from pefx.serving.memory import Kept, Memory, Writes, keeper, memory_of
from pefx.serving.requests import Request, RequestError
from pefx.store.catalog import Catalog
from tests.serving_fakes import BASE, revision

SPEC = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
STATE = replace(SPEC, method="delta_state", over="team/memory@1")
WEIGHTS = revision("team/memory", spec=SPEC)
BOTH = GATHER + COMMIT


@pytest.mark.parametrize(
    ("form", "writes", "found"),
    [
        ("tokens", "prompt", [BOTH, BOTH, 0, 0]),
        ("tokens", "all", [BOTH] * 4),
        ("tokens", "none", [0] * 4),
        ("messages", "prompt", [GATHER, BOTH, 0, 0]),
        ("messages", "all", [GATHER, BOTH, GATHER, GATHER]),
    ],
)
def test_flags_do_not_depend_on_how_a_sequence_is_cut(form, writes, found):
    memory = Memory(replace(SPEC, writes=form), writes, last=1)
    assert memory.flags(0, 4).tolist() == [found[0] + FRESH, *found[1:]]
    assert [*memory.flags(0, 1), *memory.flags(1, 4)] == [found[0] + FRESH, *found[1:]]
    begun = Memory(replace(SPEC, writes=form), writes, 1, revision("amy", spec=STATE))
    assert begun.flags(0, 4).tolist() == found


def test_pages_are_shared_as_far_as_all_who_begin_alike_write_them_alike():
    cases: tuple[tuple[str, Writes, int], ...] = (
        ("tokens", "prompt", 5),
        ("messages", "prompt", 4),
        ("tokens", "all", 9),
        ("messages", "all", 4),
        ("tokens", "none", 9),
    )
    for form, writes, shared in cases:
        assert Memory(replace(SPEC, writes=form), writes, last=4).shared(9) == shared
    roots = {Memory(SPEC, "prompt", 4, state).root for state in (None, revision("amy", 1), revision("amy", 2))}
    assert len(roots | {Memory(SPEC, "none", 4).root}) == 4


def test_who_has_no_memory_is_told_so():
    plain = revision("ann")
    assert memory_of(Request("a", "x", policy="ann"), plain, None, 3) is None
    with pytest.raises(RequestError, match="field 'remember': revision ann@1 has no memory"):
        memory_of(Request("a", "x", policy="ann", remember="amy"), plain, None, 3)
    with pytest.raises(RequestError, match="field 'writes': the bare base has no memory"):
        memory_of(Request("a", "x", writes="none"), None, None, 3)


def test_what_is_kept_is_a_policy_of_its_own(tmp_path):
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    catalog.commit(
        "team/memory",
        adapter={"memory": adapter()},
        spec=SPEC,
        base=BASE,
        step=1,
        seeds={},
        config={},
        data_fingerprint="",
        metrics={},
    )
    keep = keeper(catalog, BASE)
    state = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    assert keep(Kept("amy", state, WEIGHTS, None, [1, 2])) == "amy@1"
    first = catalog.get("amy")
    assert (first.spec, first.parent) == (replace(STATE, targets=("memory",)), "team/memory@1")
    np.testing.assert_array_equal(catalog.load(first)["memory"]["state"], state)
    assert keep(Kept("amy", state, WEIGHTS, first, [1, 2])) == "amy@1"  # again, after a crash
    assert keep(Kept("amy", state + 1, WEIGHTS, first, [3])) == "amy@2"
    assert catalog.get("amy").parent == "amy@1"
    other = revision("team/memory", 2, spec=SPEC)
    with pytest.raises(PefxError, match="state amy@1 is of team/memory@1, not of team/memory@2"):
        keep(Kept("amy", state, other, first, [1]))
    with pytest.raises(PefxError, match="'over' is 'team/memory@1', not 'team/memory@2'"):
        keep(Kept("amy", state, other, None, [1]))


def test_another_writer_of_the_policy_may_be_first(tmp_path, monkeypatch):
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    commit, tries = catalog.commit, []

    def rival(policy: str, **given: Any) -> Any:
        tries.append(policy)
        if len(tries) < 3:
            raise PefxError("another writer committed first", "conflict")
        without: dict[str, Any] = given | {"parent": None}  # the revision of which it is, is not in this catalog
        return commit(policy, **without)

    monkeypatch.setattr(catalog, "commit", rival)
    kept = Kept("amy", np.zeros((3, 8, 8), np.float32), WEIGHTS, None, [1])
    assert keeper(catalog, BASE)(kept) == "amy@1"
    assert tries == ["amy"] * 3


def adapter() -> dict[str, np.ndarray]:
    return {
        "projections": np.zeros((3, 24, 4), np.float32),
        "gates": np.zeros((3, 8, 4), np.float32),
        "bias": np.zeros((3, 1, 8), np.float32),
        "steer_query": np.zeros((3, 8, 4), np.float32),
        "steer_output": np.zeros((3, 8, 4), np.float32),
    }
