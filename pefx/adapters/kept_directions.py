"""Directions of a base, kept on disk: what one start has made, every later one reads, on any machine that shares them.

Linear algebra differs from machine to machine, most where singular values lie close. An adapter is learned between
directions, so that it means the same only between the same ones. They are kept in

    DIRECTORY/directions-1/BASE DIGEST/PRECISION/SITE/PART-RANK

where DIRECTORY is what the environment variable PEFX_CACHE names, else `pefx` in XDG_CACHE_HOME, else `~/.cache/pefx`.
A file is a line of JSON that says what it is, and float32 numbers, little-endian. It appears whole under its name and
is never replaced: of several who make the same at once the first one's is what all of them take. Fewer directions are
read from the smallest file that has enough.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pefx.adapters.directions import Directions, Part
from pefx.complete_directory import sync
from pefx.distributed import agree, from_owner, owner
from pefx.errors import PefxError

FORMAT = "directions-1"
CACHE = "PEFX_CACHE"
FLOAT = np.dtype("<f4")


class Wanted(NamedTuple):
    """Directions of a base, by its digest, as held in a precision, at a site."""

    base: str
    precision: str
    site: str
    part: Part


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where this machine keeps what it can make again."""
    if environment.get(CACHE):
        return Path(environment[CACHE])
    home = environment.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pefx"


def kept(wanted: Wanted, rank: int, make: Callable[[], Directions]) -> Directions:
    """`rank` directions as they are kept; where they are not, as `make` makes them, and kept from now on.

    Of several processes all must ask; all get the owner's, and `make` is called on all or none of them. Raises
    PefxError of kind "damaged" for a file that is not what it was written as, "storage" where the disk refuses.
    """
    found = _find(wanted, rank) if owner() else None
    known = agree("" if found is None else json.dumps([x.shape for x in found]))
    if not known:
        made = make()
        found = _keep(wanted, rank, made) if owner() else made
    if found is None:
        found = Directions(*(np.zeros(shape, np.float32) for shape in json.loads(known)))
    return Directions(*from_owner(tuple(found)))


def _folder(wanted: Wanted) -> Path:
    parts = (FORMAT, wanted.base.replace(":", "-"), wanted.precision, wanted.site)
    return cache_directory(os.environ).joinpath(*parts)


def _find(wanted: Wanted, rank: int) -> Directions | None:
    """From the smallest file that has enough: later ones are larger, so that it stays the same one."""
    folder = _folder(wanted)
    try:
        names = [path.name.rpartition("-") for path in folder.iterdir()] if folder.is_dir() else []
        ranks = sorted(int(count) for part, _, count in names if part == wanted.part and count.isdecimal())
        enough = next((count for count in ranks if count >= rank), None)
        data = None if enough is None else _path(wanted, enough).read_bytes()
    except OSError as error:
        raise PefxError(f"{folder}: kept directions cannot be read ({error})", "storage") from None
    if enough is None or data is None:
        return None
    whole = _unpacked(wanted, enough, data)
    here = slice(enough - rank, enough) if wanted.part == "last" else slice(0, rank)
    return Directions(whole.outward[..., here, :], whole.strengths[..., here], whole.inward[..., here, :])


def _path(wanted: Wanted, rank: int) -> Path:
    return _folder(wanted) / f"{wanted.part}-{rank}"


def _keep(wanted: Wanted, rank: int, made: Directions) -> Directions:
    """Write what was made, unless somebody was first; what is kept then."""
    path = _path(wanted, rank)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for part in _packed(wanted, rank, made):
                file.write(part)
        sync(partial)
        if _find(wanted, rank) is None:
            os.link(partial, path)
            sync(path.parent)
    except FileExistsError:
        pass  # another was first
    except OSError as error:
        told = f"{path}: directions of the base cannot be kept ({error})"
        told += f"; let environment variable {CACHE} name a directory that can be written"
        raise PefxError(told, "storage") from None
    finally:
        with suppress(OSError):  # where there is no directory, there is no file
            partial.unlink()
    found = _find(wanted, rank)
    assert found is not None
    return found


def _lead(wanted: Wanted, rank: int, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says that it is."""
    return {"format": FORMAT, **wanted._asdict(), "rank": rank, "shapes": {k: list(x) for k, x in shapes.items()}}


def _packed(wanted: Wanted, rank: int, made: Directions) -> list[bytes | memoryview]:
    arrays = [np.ascontiguousarray(x, FLOAT).reshape(-1).view(np.uint8).data for x in made]
    lead = _lead(wanted, rank, {name: x.shape for name, x in made._asdict().items()})
    told = json.dumps(lead | {"sha256": _hash(lead, arrays)}, sort_keys=True).encode()
    return [told + b"\n", *arrays]


def _hash(lead: Mapping[str, Any], arrays: list[memoryview]) -> str:
    found = hashlib.sha256(json.dumps(lead, sort_keys=True).encode() + b"\n")
    for part in arrays:
        found.update(part)
    return found.hexdigest()


def _unpacked(wanted: Wanted, rank: int, data: bytes) -> Directions:
    """What was packed; read-only views. Raises PefxError (kind "damaged")."""
    first, _, _ = data.partition(b"\n")
    try:
        told = json.loads(first)
        shapes = [tuple(told["shapes"][name]) for name in Directions._fields]
        sizes = [math.prod(shape) for shape in shapes]
        lead = _lead(wanted, rank, dict(zip(Directions._fields, shapes, strict=True)))
        sound = told == lead | {"sha256": _hash(lead, [memoryview(data)[len(first) + 1 :]])}
        flat = np.frombuffer(data, FLOAT, sum(sizes), len(first) + 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound, shapes, sizes, flat = False, [], [], np.zeros(0, FLOAT)
    if not sound:
        told = f"{_path(wanted, rank)}: is damaged, or of something else than its name says"
        raise PefxError(
            f"{told}; restore it, or remove it: it is then made anew, to the same bits only where the same machine "
            "makes it",
            "damaged",
        )
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return Directions(
        *(x.reshape(shape).astype(np.float32, copy=False) for x, shape in zip(parts, shapes, strict=True))
    )
