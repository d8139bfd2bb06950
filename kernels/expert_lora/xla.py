"""Portable expert projection with LoRA: the grouped matmul over tiles, and the adapters row by row.

Made for decodes, where hardly two rows have one (expert, slot). Runs of rows go through `kernels.expert_mlp`.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kernels.factors import Factors
from kernels.grouped_matmul import xla as grouped_matmul
from kernels.lora_matmul import xla as lora_matmul
from kernels.rows import Rows
from kernels.tiles import TileMap, take_rows


def by_pair(factors: Factors, tiles: TileMap) -> tuple[Factors, Rows]:
    """The factors with slots and experts in one row, and the map's `M` rows, each owned by its own (slot, expert)."""
    experts = next(f.shape[1] for f in factors[:2] if f is not None)
    place = jnp.minimum(tiles.place, tiles.source.shape[0] - 1)
    expert, slot = tiles.group[place // tiles.tile], tiles.subgroup[place // tiles.subtile] - 1
    owner = jnp.where((tiles.place == place) & (slot >= 0), slot * experts + expert, -1)

    def folded(factor: Array | None) -> Array | None:
        return None if factor is None else factor.reshape(-1, *factor.shape[2:])

    flat = Factors(folded(factors.a), folded(factors.b), jnp.repeat(factors.scales, experts), factors.offset * experts)
    return flat, Rows(owner, owner.shape[0], 2)


def forward(x, z, w, factors: Factors, tiles: TileMap, offset):
    """The projection of the buffer and its shrunk, scaled rows `z [NB, R]`, in x's type."""
    y = grouped_matmul.forward(x, w, tiles, offset)
    pairs, rows = by_pair(factors, tiles)
    mine = take_rows(x, tiles.place)
    if factors.b is None:
        return y.astype(x.dtype), take_rows(lora_matmul.shrink(mine, pairs, rows), tiles.source)
    total = take_rows(y, tiles.place)
    if factors.a is None:
        delta = lora_matmul.products(take_rows(z, tiles.place), pairs, rows)
        total = jnp.where(lora_matmul.live_rows(rows), total + delta, total)
    else:
        total, shrunk = lora_matmul.forward(total, mine, pairs, rows)
        z = take_rows(shrunk, tiles.source)
    return take_rows(total.astype(x.dtype), tiles.source), z


def backward(x, w, factors: Factors, tiles: TileMap, offset, z, cotangents):
    """Gradients of x, z, a and b, None for what was not given. `z` is what `forward` returned."""
    pairs, rows = by_pair(factors, tiles)
    mine, shrunk = take_rows(x, tiles.place), take_rows(z, tiles.place)
    dy, dz = (None if d is None else take_rows(d, tiles.place) for d in cotangents)
    dx, da, db = grouped_matmul.forward(cotangents[0], w, tiles, offset, transpose=True), None, None
    if factors.a is None:
        dz, db = lora_matmul.expand_backward(shrunk, pairs, rows, dy)
        dz = take_rows(dz, tiles.source)
    else:
        if factors.b is None:
            delta, da = lora_matmul.shrink_backward(mine, pairs, rows, dz)
        else:
            delta, da, db = lora_matmul.backward(mine, pairs, rows, shrunk, dy)
        dx, dz = dx + take_rows(delta, tiles.source).astype(jnp.float32), None
    shaped = (None if g is None else g.reshape(f.shape) for g, f in zip((da, db), factors[:2], strict=True))
    return dx.astype(x.dtype), dz, *shaped
