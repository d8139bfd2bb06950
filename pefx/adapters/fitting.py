"""An adapter in the shapes of a bank: checked, and padded to its ranks."""

from typing import Any

import numpy as np

from pefx.adapters.methods.method import Leaf, sizes
from pefx.adapters.methods.table import METHODS, Adapter, home
from pefx.config import AdapterSpec
from pefx.errors import PefxError

FactorTree = dict[str, dict[str, Any]]  # by site and factor; None where a tree was taken apart
MEMORY = "memory"  # the site of `pefx.layers.memory`


def memory_of(factors: FactorTree) -> tuple[int, int] | None:
    """States of a memory and their rank, where adapters of a bank have memories."""
    if MEMORY not in factors:
        return None
    states, rank = factors[MEMORY]["bias"].shape[-2:]
    return states, rank


def padded_factors(room: FactorTree, adapter: Adapter, spec: AdapterSpec) -> dict[str, dict[str, np.ndarray]]:
    """The adapter in the bank's shapes: checked, padded with zeros, missing sites and leaves zero, gains one."""
    foreign = sorted(set(adapter) - set(room))
    if foreign:
        raise PefxError(f"the bank has no site '{foreign[0]}'; it has {', '.join(room)}", "bad_adapter")
    leaves = METHODS[spec.method].leaves
    targets = (home(spec.targets, room),) if spec.tied == "all" else spec.targets
    if MEMORY in adapter:
        _check_memory(room, spec)
    for site in room:
        if (site in targets) != (site in adapter):
            wrong = "lacks" if site in targets else "has"
            raise PefxError(
                f"the adapter {wrong} site '{site}', its spec says {', '.join(spec.targets)}", "bad_adapter"
            )
        if site in adapter and set(adapter[site]) != set(leaves):
            told = f"site '{site}' has factors {sorted(adapter[site])}, not {' and '.join(leaves)}"
            raise PefxError(told, "bad_adapter")
        if site in adapter and not set(leaves) <= set(room[site]):
            missing = ", ".join(sorted(set(leaves) - set(room[site])))
            raise PefxError(f"the bank has no room for {missing} of method '{spec.method}' at '{site}'", "bad_adapter")
    out = {}
    for site, own in room.items():
        out[site] = {}
        for name, held in own.items():
            shape = (held.shape[0], *held.shape[2:])
            if name in adapter.get(site, {}):
                out[site][name] = _padded(np.asarray(adapter[site][name]), shape, f"{site}.{name}", leaves[name], spec)
            else:
                out[site][name] = np.full(shape, 1.0 if name == "gains" else 0.0, np.float32)
    return out


def _check_memory(room: FactorTree, spec: AdapterSpec) -> None:
    """States stand one behind the other: there may be fewer, not smaller ones."""
    states, rank = memory_of(room) or (0, 0)
    if spec.rank != rank or spec.states > states:
        told = f"{spec.states} states of rank {spec.rank}; the bank has room for {states} of rank {rank}"
        raise PefxError(f"the adapter's memory has {told}", "bad_adapter")


def _padded(value: np.ndarray, shape: tuple[int, ...], where: str, leaf: Leaf, spec: AdapterSpec) -> np.ndarray:
    """One leaf in the bank's shape."""
    own = sizes(spec.rank, spec.units, spec.states)
    pad = [(0, 0)] * len(shape)
    pad[0] = (0, shape[0] - 1 if spec.tied else 0)
    for axis, named in ((-2, leaf.rows), (-1, leaf.columns)):
        if named not in own:
            continue
        found = value.shape[axis] if value.ndim >= 2 else -1
        if found != own[named]:
            raise PefxError(f"{where} has {named} {found}, its spec says {own[named]}", "bad_adapter")
        if found > shape[axis]:
            raise PefxError(f"{where} has {named} {found}, above the bank's {shape[axis]}", "bad_adapter")
        pad[axis] = (0, shape[axis] - found)
    padded = tuple(length - more for length, (_, more) in zip(shape, pad, strict=True))
    if value.shape != padded:
        raise PefxError(f"{where} has shape {value.shape}; this bank needs {padded}", "bad_adapter")
    return np.pad(value.astype(np.float32), pad, constant_values=leaf.beyond)
