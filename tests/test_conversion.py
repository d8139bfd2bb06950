"""Conversion: the same base under the same digest, continued wherever it was stopped, never seen before it is whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pefx import conversion
from pefx.config import Precision
from pefx.conversion import JOURNAL, convert
from pefx.converted import ARRAYS, RECORD
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.huggingface import parameters
from pefx.loading import load_base
from tests.test_loading import divided

ROOT = Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens"
DIGEST = "sha256:802da4c1926cd28af402a8140d814ad00778589e102c1f874438bb1229329ec1"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pefx.converted.CHUNK_BYTES", 8000)


def same(one: Path, other: Path, precision: Precision | None = None) -> None:
    """Two directories are the same base to the bit."""
    (a, digest), (b, same_digest) = load_base(one, precision), load_base(other, precision)
    assert digest == same_digest
    assert a.config == b.config
    for (path, x), (_, y) in zip(parameters(a).items(), parameters(b).items(), strict=True):
        assert np.asarray(x[...]).tobytes() == np.asarray(y[...]).tobytes(), path


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("name", ["odd", "plain"])
def test_a_converted_base_is_the_base(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / name, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    digest = convert(tmp_path / "source", tmp_path / "base")
    assert digest == load_base(GOLDENS / name)[1]
    assert read_config(tmp_path / "base") == read_config(GOLDENS / name)
    assert (tmp_path / "base" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "base.partial").exists()
    assert not (tmp_path / "base" / JOURNAL).exists()
    same(GOLDENS / name, tmp_path / "base")
    same(GOLDENS / name, tmp_path / "base", "bfloat16")
    same(GOLDENS / name, tmp_path / "base", "float32")


def test_shards_of_a_converted_base_are_read_by_their_parts(tmp_path: Path) -> None:
    convert(GOLDENS / "plain", tmp_path / "base")
    whole, _ = load_base(GOLDENS / "plain")
    parts, _ = load_base(tmp_path / "base", placement=divided)
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    for (path, a), (_, b) in zip(parameters(whole).items(), parameters(parts).items(), strict=True):
        assert b[...].sharding == divided(a)
        assert np.asarray(a[...]).tobytes() == np.asarray(b[...]).tobytes(), path


def test_what_was_rounded_is_not_passed_off_as_what_was_not(tmp_path: Path) -> None:
    convert(GOLDENS / "odd", tmp_path / "base", "bfloat16")
    same(GOLDENS / "odd", tmp_path / "base", "bfloat16")
    assert load_base(tmp_path / "base")[0].config.precision == "bfloat16"
    with pytest.raises(PefxError, match=r"rounded to bfloat16.*convert with --precision float32"):
        load_base(tmp_path / "base", "float32")
    convert(GOLDENS / "plain", tmp_path / "wide", "float32")
    same(GOLDENS / "plain", tmp_path / "wide", "float32")
    same(GOLDENS / "plain", tmp_path / "wide", "bfloat16")


class Stop(Exception):
    pass


def stopping(after: int, tear: bool) -> Callable[..., None]:
    """`_append` that gives up after some lines, in the middle of one where `tear`."""
    append, count = conversion._append, 0

    def stop(journal, entry) -> None:
        nonlocal count
        count += 1
        if count > after:
            if tear:
                journal.write(json.dumps(entry).encode()[:20])
                journal.flush()
            raise Stop
        append(journal, entry)

    return stop


def test_a_stopped_conversion_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(GOLDENS / "odd", tmp_path / "straight")
    written: list[str] = []
    write = conversion._write

    def spy(partial, work, path, array, index) -> str:
        written.append(f"{path} {index}")
        return write(partial, work, path, array, index)

    monkeypatch.setattr(conversion, "_write", spy)
    for after, tear in [(0, True), (1, False), (7, True), (20, False)]:
        monkeypatch.setattr(conversion, "_append", stopping(after, tear))
        with pytest.raises(Stop):
            convert(GOLDENS / "odd", tmp_path / "base")
        monkeypatch.undo()
        monkeypatch.setattr("pefx.converted.CHUNK_BYTES", 8000)
        monkeypatch.setattr(conversion, "_write", spy)
        assert not (tmp_path / "base").exists()
        with pytest.raises(PefxError, match="no such file"):
            load_base(tmp_path / "base")
        with pytest.raises(PefxError, match="no such file"):
            load_base(tmp_path / "base.partial")
    stale = next(f for f in (tmp_path / "base.partial" / ARRAYS).rglob("*") if f.is_file())
    stale.with_name(stale.name + ".__lock").write_bytes(b"what a killed writer left")
    convert(GOLDENS / "odd", tmp_path / "base")
    # Only a chunk whose line was not written is written again: one for each stop but the first, before any chunk.
    assert len(written) == len(set(written)) + 3
    assert files(tmp_path / "base") == files(tmp_path / "straight")
    assert not (tmp_path / "base.partial").exists()


KILLED = """
import os, signal, sys
from pefx import conversion, converted
converted.CHUNK_BYTES = 8000
write, count = conversion._write, 0
def stop(*args):
    global count
    count += 1
    if count == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*args)
conversion._write = stop
conversion.convert(*sys.argv[1:])
"""


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(GOLDENS / "odd"), str(tmp_path / "base")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "base").exists()
    assert len((tmp_path / "base.partial" / JOURNAL).read_bytes().splitlines()) == 30
    assert convert(GOLDENS / "odd", tmp_path / "base") == DIGEST
    same(GOLDENS / "odd", tmp_path / "base")


def test_a_conversion_that_is_done_stays(tmp_path: Path) -> None:
    convert(GOLDENS / "odd", tmp_path / "base")
    before = files(tmp_path / "base")
    assert convert(GOLDENS / "odd", tmp_path / "base") == DIGEST
    assert files(tmp_path / "base") == before
    for source, precision, told in [(GOLDENS / "plain", None, "in float32; this is sha256:"), (None, "bfloat16", "in")]:
        with pytest.raises(PefxError, match=f"base: is there already, .*{told}"):
            convert(source or GOLDENS / "odd", tmp_path / "base", precision)
    with pytest.raises(PefxError, match="is converted already"):
        convert(tmp_path / "base", tmp_path / "again")
    (tmp_path / "other").mkdir()
    with pytest.raises(PefxError, match="is there already and is no converted base"):
        convert(GOLDENS / "odd", tmp_path / "other")


def test_an_unfinished_conversion_of_something_else_is_refused(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_append", stopping(9, False))
        with pytest.raises(Stop):
            convert(GOLDENS / "odd", tmp_path / "base")
    journal = tmp_path / "base.partial" / JOURNAL
    for source, precision in [("plain", None), ("odd", "bfloat16")]:
        with pytest.raises(PefxError, match=r"journal\.jsonl: belongs to a conversion of another base or"):
            convert(GOLDENS / source, tmp_path / "base", precision)
    lines = journal.read_text().splitlines(keepends=True)
    for damage in ['{"parameter": \n', "3\n", '{"parameter": "nothing", "sha256": "0"}\n', *[lines[1:] * 99]]:
        journal.write_text("".join([*lines, *damage]))
        with pytest.raises(PefxError, match=r"journal\.jsonl: damaged; delete"):
            convert(GOLDENS / "odd", tmp_path / "base")
    journal.write_text("".join(lines))
    with open(journal, "rb") as held:
        conversion.fcntl.flock(held, conversion.fcntl.LOCK_EX)
        with pytest.raises(PefxError, match="another process is converting there"):
            convert(GOLDENS / "odd", tmp_path / "base")
    convert(GOLDENS / "odd", tmp_path / "base")
    assert (tmp_path / "base" / RECORD).exists()


def test_a_checkpoint_that_changes_meanwhile_is_not_passed_off_under_its_digest(tmp_path: Path, monkeypatch) -> None:
    source = Path(shutil.copytree(GOLDENS / "odd", tmp_path / "source"))
    write = conversion._write

    def touching(*args) -> str:
        os.utime(source / "model.safetensors", ns=(1, 1))
        return write(*args)

    monkeypatch.setattr(conversion, "_write", touching)
    with pytest.raises(PefxError, match="source: was changed while it was converted"):
        convert(source, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(PefxError, match=r"base\.partial: needs 0\.00 GiB more, its disk has"):
        convert(GOLDENS / "odd", tmp_path / "base")
    assert not (tmp_path / "base.partial" / ARRAYS).exists()
