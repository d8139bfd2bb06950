"""The many small arrays of a step as one, so that they reach the shards in one transfer and not in one each."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parcel:
    """A pytree of 4-byte numbers whose arrays are divided by rows: int32 `words [shards, n]`, a shard's part of each.

    `structure` is the pytree's; `arrays` are the shape of a shard's part and the type of each of its leaves.
    """

    words: Any
    structure: Any = field(metadata={"static": True})
    arrays: tuple[tuple[tuple[int, ...], str], ...] = field(metadata={"static": True})


def wrap(tree: Any, shards: int) -> Parcel:
    """`tree` of numpy arrays, each a multiple of `shards` rows. Raises TypeError for numbers of other than 4 bytes."""
    leaves, structure = jax.tree.flatten(tree)
    for leaf in leaves:
        if leaf.dtype.itemsize != 4:
            raise TypeError(f"a parcel holds numbers of 4 bytes, not {leaf.dtype}")
    parts = [np.ascontiguousarray(leaf).view(np.int32).reshape(shards, -1) for leaf in leaves]
    arrays = tuple(((x.shape[0] // shards, *x.shape[1:]), x.dtype.name) for x in leaves)
    return Parcel(np.concatenate(parts, axis=1), structure, arrays)


def unwrap(parcel: Parcel) -> Any:
    """One shard's part of what was wrapped, within a step."""
    leaves, start = [], 0
    for shape, dtype in parcel.arrays:
        size = math.prod(shape)
        words = jax.lax.slice_in_dim(parcel.words[0], start, start + size)
        leaves.append(jax.lax.bitcast_convert_type(words, jnp.dtype(dtype)).reshape(shape))
        start += size
    return jax.tree.unflatten(parcel.structure, leaves)
