"""Law 6, never the wrong adapter, in serving: each request gets its own revision or an error; never the base, slot 0,
another revision, or what a slot held before.

The stand-in device computes from what its bank and pool really hold, so any mix-up changes an answer.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.serving.policies import Policies
from pefx.serving.requests import Request, seed_of
from pefx.store.records import Revision
from tests.serving_fakes import BASE, EOS, SPEC, FakeCatalog, FakeDevice, make_engine, revision

POLICIES = [f"user{i}" for i in range(9)]
NUMBERS = (1, 2, 3)


def expected(request: Request, adapter: str) -> list[int]:
    """The tokens that `adapter` and no other gives."""
    device, seen = FakeDevice(page_size=4), list(request.prompt)
    tokens: list[int] = []
    while len(tokens) < request.max_tokens and tokens[-1:] != [EOS]:
        tokens.append(device.draw([*seen, *tokens], adapter, seed_of(request, 0)))  # pyright: ignore[reportArgumentType]
    return tokens


asked = st.builds(
    lambda prompt, who, number, length: (prompt, who, number if who else None, length),
    st.lists(st.integers(1, 255), min_size=1, max_size=6).map(tuple),
    st.sampled_from([None, *POLICIES]),
    st.sampled_from([None, *NUMBERS]),
    st.integers(1, 8),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(asked, min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 6), st.sets(st.sampled_from(POLICIES))
)
def test_each_request_is_answered_by_its_own_revision(asked, slots: int, sequences: int, damaged: set[str]):
    catalog = FakeCatalog(*(revision(policy, number) for policy in POLICIES for number in NUMBERS))
    catalog.damaged = {f"{policy}@3" for policy in damaged}
    policies = Policies(catalog, BASE, SPEC)
    engine = make_engine(catalog, slots=slots, sequences=sequences)
    requests = [Request(f"r{i}", prompt, who, number, length) for i, (prompt, who, number, length) in enumerate(asked)]
    for handle, request in enumerate(requests):
        served = None if request.policy is None else policies.resolve(request.policy, request.revision)
        engine.submit(handle, request, served)
    rows: dict[int, dict[str, Any]] = {}
    while not engine.idle:
        rows |= {answered.handle: answered.row for answered in engine.step()}
    for handle, request in enumerate(requests):
        number = None if request.policy is None else request.revision or max(NUMBERS)
        key = "base" if request.policy is None else f"{request.policy}@{number}"
        if key in catalog.damaged:
            assert rows[handle]["error"]["type"] == "damaged"
            continue
        assert (rows[handle]["policy"], rows[handle]["revision"]) == (request.policy, number)
        assert rows[handle]["tokens"] == expected(request, key)


def test_slot_whose_load_failed_stands_for_nobody():
    """The second request finds no trace of the first one's failure: bob is not on the slot, alice is off it."""
    catalog = FakeCatalog(revision("alice"), revision("bob"))
    catalog.damaged = {"bob@1"}
    engine = make_engine(catalog, slots=1)
    for handle, who in enumerate(["alice", "bob", "bob", "alice"]):
        request = Request(f"r{handle}", (5, 6), who, max_tokens=4)
        engine.submit(handle, request, catalog.serving(who))
        rows: list[dict[str, Any]] = []
        while not engine.idle:
            rows += [answered.row for answered in engine.step()]
        if who == "bob":
            assert rows[0]["error"]["type"] == "damaged"
        else:
            assert rows[0]["tokens"] == expected(request, "alice@1")


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (None, "unknown_policy"),
        (revision("alice", base="sha256:" + "b" * 64), "wrong_base"),
        (revision("alice", spec=replace(SPEC, rank=SPEC.rank + 1)), "wrong_rank"),
        (revision("alice", spec=replace(SPEC, targets=("q_proj", "o_proj"))), "wrong_target"),
        (revision("alice", spec=replace(SPEC, expert_form="shared_hidden")), "wrong_form"),
    ],
)
def test_what_cannot_be_served_is_an_error_not_the_base(made: Revision | None, kind: str):
    catalog = FakeCatalog(*([] if made is None else [made]))
    with pytest.raises(PefxError) as caught:
        Policies(catalog, BASE, SPEC).resolve("alice", None)
    assert caught.value.kind == kind


def test_unknown_revision_is_not_the_latest():
    with pytest.raises(PefxError) as caught:
        Policies(FakeCatalog(revision("alice", 1)), BASE, SPEC).resolve("alice", 7)
    assert caught.value.kind == "unknown_revision"
