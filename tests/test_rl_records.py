"""pefx.rl.records: what is read is to the bit what was written; what is damaged or foreign is said to be."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pefx.errors import PefxError
from pefx.rl import records
from pefx.rl.records import Rollout, read_rollouts, rollouts_path, write_rollouts
from tests.rl_small import rollout, same

floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf")])
texts = st.text(st.characters(codec="utf-8"), max_size=6)


@st.composite
def fields_of(draw: st.DrawFn) -> dict[str, Any]:
    length, layers, experts = draw(st.integers(0, 5)), draw(st.integers(0, 2)), draw(st.integers(0, 3))
    routes = arrays.arrays(np.uint16, (length, layers, experts))
    return {
        "policy": draw(texts),
        "group": draw(st.integers(0, 2**40)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "tokens": draw(arrays.arrays(np.int32, length)),
        "sampled": draw(arrays.arrays(np.bool_, length)),
        "logprobs": draw(arrays.arrays(np.float32, length, elements=floats)),
        "routes": draw(st.none() | routes),
        "reward": draw(st.floats()),
        "parts": draw(st.dictionaries(texts, st.floats(), max_size=3)),
        "text": draw(texts),
        "error": draw(st.none() | texts),
        "transcript": tuple(draw(st.lists(texts, max_size=3))),
    }


@settings(max_examples=60)
@given(st.lists(fields_of(), max_size=6), st.sampled_from([1, 40, 1 << 20]))
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, given: list[dict[str, Any]], group: int
):
    some = [rollout(**fields) for fields in given]
    path = tmp_path_factory.mktemp("records") / "a" / "000000.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "GROUP_BYTES", group)
        write_rollouts(path, some)
        first = path.read_bytes()
        write_rollouts(path, some)
    assert path.read_bytes() == first
    found = read_rollouts(path)
    assert len(found) == len(some)
    assert all(same(one, other) for one, other in zip(found, some, strict=True))
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    light = read_rollouts(path, routes=False)
    assert all(same(one, other, but=("routes",)) for one, other in zip(light, some, strict=True))
    assert all(one.routes is None for one in light)


def test_what_is_read_may_be_changed(tmp_path: Path):
    path = tmp_path / "x.parquet"
    write_rollouts(path, [rollout()])
    (found,) = read_rollouts(path)
    found.tokens[0] = 1
    assert found.routes is not None
    found.routes[0] = 1


def spoiled(**changes: Any) -> Rollout:
    """A rollout with fields that it could not be made with."""
    one = rollout()
    for name, value in changes.items():
        object.__setattr__(one, name, value)
    return one


def test_figures():
    one = rollout()
    assert (one.drawn, one.mean_logprob, one.routed) == (2, -1.0, 5)
    assert rollout(sampled=np.zeros(5, np.bool_)).mean_logprob == 0
    partly = np.full((5, 2, 2), 65535, np.uint16)
    partly[:3] = 4
    assert rollout(routes=partly).routed == 3
    assert rollout(routes=None).routed == 0
    assert rollouts_path("out", "team/ann", 12) == Path("out/rollouts/team/ann/000012.parquet")


def told(path: Path) -> list[Rollout] | str:
    """What is read, or why it is not."""
    try:
        return read_rollouts(path)
    except PefxError as error:
        return str(error)


def test_a_damaged_file_is_never_read_as_another(tmp_path: Path):
    path = tmp_path / "x.parquet"
    some = [rollout(), rollout(sample=2, routes=None, error="no")]
    write_rollouts(path, some)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.permutation(len(whole))[:400].tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        found = told(path)
        if isinstance(found, str):
            assert found.startswith(f"{path}: ")
            refused += 1
        else:
            assert all(same(one, other) for one, other in zip(found, some, strict=True))
    assert refused > 200
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PefxError, match="cannot be read as Parquet"):
            read_rollouts(path)


def test_what_is_no_file_of_rollouts_is_refused(tmp_path: Path):
    path = tmp_path / "x.parquet"
    with pytest.raises(PefxError, match="no such file"):
        read_rollouts(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(PefxError, match=r"holds no rollouts; they are in files of format pefx\.rollouts\.1"):
        read_rollouts(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"format": records.FORMAT}), path)
    with pytest.raises(PefxError, match="its columns are not those of rollouts"):
        read_rollouts(path)
    with pytest.raises(PefxError, match="cannot be read as Parquet"):
        read_rollouts(tmp_path)


def test_rows_that_do_not_fit_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.parquet"
    monkeypatch.setattr(records, "_check", lambda rollout, where: None)
    write_rollouts(path, [rollout(), spoiled(sampled=np.zeros(4, np.bool_))])
    with pytest.raises(PefxError, match="row 2: tokens, sampled and logprobs are not of one length"):
        read_rollouts(path)
    write_rollouts(path, [spoiled(routes=np.zeros((4, 1, 2), np.uint16))])
    with pytest.raises(PefxError, match=r"row 1, column 'routes': is not of the shape \[1, 2\] a token"):
        read_rollouts(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros(5, np.int64)}, r"field 'tokens': must be int32\[5\], is int64\[5\]"),
        ({"sampled": np.zeros(4, np.bool_)}, r"field 'sampled': must be bool\[5\], is bool\[4\]"),
        ({"routes": np.zeros((5, 2), np.uint16)}, r"field 'routes': must be uint16\[5, layers, experts\]"),
        ({"text": "\ud800"}, "field 'text': is no UTF-8 text"),
        ({"parts": {"\ud800": 1.0}}, "field 'parts': is no UTF-8 text"),
        ({"transcript": ("a", "\ud800")}, "field 'transcript': is no UTF-8 text"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(PefxError, match=rf"x\.parquet: rollout 2, {message}"):
        write_rollouts(tmp_path / "x.parquet", [rollout(), spoiled(**changes)])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.parquet"
    write_rollouts(path, [rollout()])
    table = records._table

    def fail(some: Any) -> Any:
        if len(some) > 1:
            raise OSError(28, "No space left on device")
        return table(some)

    monkeypatch.setattr(records, "_table", fail)
    with pytest.raises(PefxError, match=r"cannot be written .*No space") as caught:
        write_rollouts(path, [rollout(), rollout()])
    assert caught.value.kind == "storage"
    assert [one.name for one in tmp_path.iterdir()] == ["x.parquet"]
    assert len(read_rollouts(path)) == 1
