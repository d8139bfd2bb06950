"""Directions on disk: made once, the same bits ever after, never another's, never damaged ones."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pefx.adapters import kept_directions
from pefx.adapters.directions import Directions, Part, directions
from pefx.adapters.kept_directions import Wanted, cache_directory, kept
from pefx.errors import PefxError

MATRICES = np.random.default_rng(0).normal(size=(2, 3, 7, 5)).astype(np.float32)
FIRST = Wanted("sha256:ab", "float32", "q_proj", "first")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PEFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(rank: int = 3, part: Part = "first", by: float = 1.0) -> Directions:
    return directions("q_proj", lambda: by * MATRICES, rank, part)


def never() -> Directions:
    raise AssertionError("made anew")


def same(left: Directions, right: Directions) -> bool:
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("part", ["first", "last", "orthogonal"])
def test_what_was_made_is_read_ever_after(part):
    wanted, made = FIRST._replace(part=part), make(part=part)
    assert same(kept(wanted, 3, lambda: made), made)
    assert same(kept(wanted, 3, never), made)
    # Fewer are among them.
    assert same(kept(wanted, 1, never), make(1, part))


def test_more_are_made_and_the_old_ones_stay_who_they_are():
    kept(FIRST, 2, lambda: make(2))
    large = kept(FIRST, 4, lambda: make(4, by=2.0))
    assert same(large, make(4, by=2.0))
    assert same(kept(FIRST, 1, never), make(1))
    assert same(kept(FIRST, 3, never), make(3, by=2.0))


OTHERS = [{"base": "sha256:cd"}, {"precision": "bfloat16"}, {"site": "o_proj"}, {"part": "last"}]


@pytest.mark.parametrize("change", OTHERS, ids=["base", "precision", "site", "part"])
def test_others_have_their_own(cache, change):
    kept(FIRST, 3, make)
    other = FIRST._replace(**change)
    with pytest.raises(AssertionError, match="made anew"):
        kept(other, 3, never)
    # ... and a file under another's name is not taken for its own.
    (mine,) = (path for path in cache.rglob("*") if path.is_file())
    part = other.part
    place = cache / "directions-1" / other.base.replace(":", "-") / other.precision / other.site / f"{part}-3"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(mine.read_bytes())
    with pytest.raises(PefxError, match="is damaged, or of something else than its name says") as caught:
        kept(other, 3, never)
    assert caught.value.kind == "damaged"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "lead", "words"])
def test_a_damaged_file_is_refused_and_named(cache, damage):
    kept(FIRST, 3, make)
    (path,) = (path for path in cache.rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-5] ^= 1
    elif damage == "lead":
        data[data.index(b"float32")] ^= 1
    new = {"cut": data[:-4], "longer": data + b"1234", "empty": b"", "words": b"[1, 2]\n"}.get(damage, data)
    path.write_bytes(bytes(new))
    with pytest.raises(PefxError, match=r"first-3: is damaged, .* or remove it") as caught:
        kept(FIRST, 3, never)
    assert caught.value.kind == "damaged"
    path.unlink()
    assert same(kept(FIRST, 3, make), make())


def test_a_cut_write_leaves_nothing_that_is_read(cache, monkeypatch):
    monkeypatch.setattr(kept_directions, "sync", lambda path: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(PefxError, match=r"cannot be kept \(cut\); let environment variable PEFX_CACHE name") as caught:
        kept(FIRST, 3, make)
    assert caught.value.kind == "storage"
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    os.environ["PEFX_CACHE"] = str(cache)
    # What a killed writer leaves is no name of directions.
    (cache / "directions-1" / "sha256-ab" / "float32" / "q_proj" / ".first-3.1234.partial").write_bytes(b"half")
    assert same(kept(FIRST, 3, make), make())


def test_of_racing_writers_all_take_the_first_ones(cache):
    count, found = 8, {}
    gate = threading.Barrier(count)

    def one(number: int) -> None:
        def slow() -> Directions:
            gate.wait()
            return make(by=1.0 + number)

        found[number] = kept(FIRST, 3, slow)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = kept(FIRST, 3, never)
    assert len(found) == count
    assert all(same(own, last) for own in found.values())
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["first-3"]


def test_a_directory_that_cannot_be_written_is_named(cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    with pytest.raises(PefxError, match="directions of the base cannot be kept") as caught:
        kept(FIRST, 3, make)
    assert caught.value.kind == "storage"


def test_where_it_lies():
    assert cache_directory({"PEFX_CACHE": "/here", "XDG_CACHE_HOME": "/x"}) == Path("/here")
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/pefx")
    assert cache_directory({}) == Path.home() / ".cache" / "pefx"
