"""`pefx convert`: a Hugging Face directory made into the form of `pefx.converted`, a chunk at a time.

It is written beside its place as `<target>.partial` and renamed when whole, so what can be seen is complete. Each chunk
that is written has a line in a journal there; a conversion that was stopped goes on behind the last line.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pefx import converted
from pefx.config import Precision
from pefx.converted import ARRAYS, Layout, Record
from pefx.errors import PefxError
from pefx.families.config_json import read_json
from pefx.huggingface import parameters, shape_digest
from pefx.loading import HuggingFaceBase
from pefx.model import abstract_base
from pefx.progress import Display

JOURNAL = "journal.jsonl"
# What a directory may hold beside config and weights, and what is of use without them.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
    "LICENSE",
)


@dataclass(frozen=True)
class Work:
    """One conversion: where from, and what each parameter becomes."""

    stored: HuggingFaceBase
    record: Record  # without hashes
    stamps: dict[Path, tuple[int, int]]

    @property
    def heading(self) -> dict[str, Any]:
        """The journal's first line: what must be the same for a conversion to go on."""
        layouts = {path: [x.dtype, list(x.shape), list(x.chunk)] for path, x in self.record.layouts.items()}
        return {"digest": self.record.digest, "precision": self.record.precision, "layouts": layouts}


def convert(source: str | Path, target: str | Path, precision: Precision | None = None) -> str:
    """Convert the base in `source` into directory `target`, at `precision` (default: as stored). Returns its digest.

    Started again after it was stopped, it goes on. Raises PefxError for what `load_base` refuses, where `target` is
    there already as something else, or where the disk has no room.
    """
    source, target = Path(source), Path(target)
    if converted.is_converted(source):
        raise PefxError(f"{source}: is converted already; name the Hugging Face directory")
    stored = HuggingFaceBase(source)
    if target.exists() and not converted.is_converted(target):
        raise PefxError(f"{target}: is there already and is no converted base; choose another target")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"reading {source}", markup=False)
    work = plan(stored, precision)
    if target.exists():
        _check_done(target, work)
        console.print(f"{target} is complete already", markup=False)
        return work.record.digest
    partial = target.with_name(target.name + ".partial")
    with _journal(partial, work) as (journal, hashes):
        _check_room(partial, work, hashes)
        write_chunks(partial, work, journal, hashes, console)
        if _stamps(stored) != work.stamps:
            raise PefxError(f"{source}: was changed while it was converted; delete {partial} and begin anew")
        _finish(partial, work, hashes)
        os.rename(partial, target)
        _sync(target.parent)
        (target / JOURNAL).unlink()
    console.print(f"{target} is complete, base {work.record.digest}", markup=False)
    return work.record.digest


def plan(stored: HuggingFaceBase, precision: Precision | None) -> Work:
    """What is to be done; reads the whole checkpoint for its digest."""
    stamps = _stamps(stored)
    config = replace(stored.config, precision=precision or stored.config.precision)
    layouts, exact = {}, True
    for path, variable in parameters(abstract_base(config)).items():
        dtype = np.dtype(variable.dtype)
        layouts[path] = converted.lay_out(dtype, variable.shape, converted.CHUNK_BYTES)
        exact = exact and stored.weights.exact({path: stored.sources[path]}, dtype)
    record = Record(stored.digest(), shape_digest(config), config.precision, exact, layouts, {})
    return Work(stored, record, stamps)


def _stamps(stored: HuggingFaceBase) -> dict[Path, tuple[int, int]]:
    """Size and time of last change of each file, by which a change is noticed between digest and copy."""
    found = {file: file.stat() for file in {tensor.file for tensor in stored.tensors.values()}}
    return {file: (status.st_size, status.st_mtime_ns) for file, status in found.items()}


def write_chunks(partial: Path, work: Work, journal: BufferedRandom, hashes: dict[str, list[str]], console: Console):
    """Write the chunks that `hashes` lacks, each with its line in the journal once it is on disk."""
    layouts = work.record.layouts
    total, done = sum(len(x.chunks()) for x in layouts.values()), sum(map(len, hashes.values()))
    with Display("convert", total, done, console) as display:
        if done:
            display.say(f"{done} of {total} chunks are there already, going on")
        for path, layout in layouts.items():
            found = hashes.setdefault(path, [])
            todo = layout.chunks()[len(found) :]
            array = converted.open_array(partial, path, layout, write=True) if todo else None
            for place in todo:
                found.append(_write(partial, work, path, array, layout.index(place)))
                _append(journal, {"parameter": path, "sha256": found[-1]})
                done += 1
                display.show(done, f"{done} of {total} chunks")


def _write(partial: Path, work: Work, path: str, array: Any, index: tuple[slice, ...]) -> str:
    layout: Layout = work.record.layouts[path]
    part = work.stored.read(path, index, layout.shape, converted.DTYPES[layout.dtype])
    try:
        array[index].write(part).result()
    except (ValueError, OSError) as error:
        raise PefxError(f"{partial / ARRAYS / path}: cannot be written ({converted.first_line(error)})") from None
    return converted.chunk_hash(part)


@contextmanager
def _journal(partial: Path, work: Work) -> Iterator[tuple[BufferedRandom, dict[str, list[str]]]]:
    """The journal, locked and open at its end, and the hashes it holds: those of the first chunks of each parameter.

    Raises PefxError where another process converts there, or the journal is of another conversion or damaged.
    """
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / JOURNAL
    with open(path, "a+b") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PefxError(f"{partial}: another process is converting there") from None
        opened.seek(0)
        lines = opened.read().split(b"\n")
        # What stands behind the last newline was being written when the process was stopped.
        opened.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if len(lines) == 1:
            _append(opened, work.heading)
            lines = [json.dumps(work.heading).encode(), b""]
        for lost in (partial / ARRAYS).rglob("*.__lock"):  # what a killed writer left of a chunk
            lost.unlink()
        yield opened, _written(path, lines[:-1], work)


def _written(path: Path, lines: list[bytes], work: Work) -> dict[str, list[str]]:
    hashes: dict[str, list[str]] = {}
    damaged = PefxError(f"{path}: damaged; delete {path.parent} to begin anew")
    try:
        heading, *entries = [json.loads(line) for line in lines]
        for entry in entries:
            hashes.setdefault(entry["parameter"], []).append(entry["sha256"])
        if heading != work.heading:
            raise PefxError(
                f"{path}: belongs to a conversion of another base or to another precision; "
                f"delete {path.parent} to begin anew"
            )
        fits = all(len(found) <= len(work.record.layouts[name].chunks()) for name, found in hashes.items())
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if not fits:
        raise damaged
    return hashes


def _append(journal: BufferedRandom, entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())


def _check_done(target: Path, work: Work) -> None:
    """Raise PefxError unless `target` is what this conversion would make."""
    found = converted.read_record(target)
    if (found.digest, found.precision) != (work.record.digest, work.record.precision):
        raise PefxError(
            f"{target}: is there already, with base {found.digest} in {found.precision}; "
            f"this is {work.record.digest} in {work.record.precision}"
        )


def _check_room(partial: Path, work: Work, hashes: dict[str, list[str]]) -> None:
    layouts = work.record.layouts
    there = sum(
        layouts[path].chunk_bytes(place)
        for path, found in hashes.items()
        for place in layouts[path].chunks()[: len(found)]
    )
    needed, free = converted.total_bytes(layouts) - there, shutil.disk_usage(partial).free
    if needed > free:
        raise PefxError(f"{partial}: needs {needed / 2**30:.2f} GiB more, its disk has {free / 2**30:.2f} GiB free")


def _finish(partial: Path, work: Work, hashes: dict[str, list[str]]) -> None:
    """Everything beside the arrays, the record last."""
    source = work.stored.directory
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    raw = read_json(source / "config.json")
    raw.pop("quantization_config", None)
    raw |= {"dtype": work.record.precision, "torch_dtype": work.record.precision}
    converted.write_whole(partial / "config.json", json.dumps(raw, indent=2) + "\n")
    converted.write_record(partial, replace(work.record, hashes=hashes))
    _sync(partial)


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
