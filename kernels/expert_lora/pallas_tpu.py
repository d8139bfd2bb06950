"""The TPU's form of an expert layer's projection with LoRA: the experts' product and the adapters' in one kernel.

The contract is that of the portable form. A bank whose rank is no multiple of eight is padded, a copy at each call:
allocate banks at such a rank.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp

from kernels.expert_lora.block_sizes import TPU_SUMS
from kernels.expert_lora.pallas_product import Given, product, runs_of
from kernels.expert_lora.pallas_sums import sums
from kernels.factors import Factors
from kernels.grouped_matmul import pallas_tpu as grouped_matmul
from kernels.lora_matmul.pallas_blocks import SUBLANES
from kernels.tiles import TileMap, take_rows, tile_map


def unsupported(x, w, factors: Factors | None, sizes: tuple[int, int]) -> str | None:
    """Why these kernels cannot take rows x in (tiles, subtiles) of such sizes, or None. Without factors: bare ones."""
    tile, subtile = sizes
    if factors is not None and _rank(factors) > 64:
        return f"rank {_rank(factors)} (at most 64)"
    if subtile > 1 and subtile % SUBLANES:
        return f"subtiles of {subtile} rows (one, or a multiple of {SUBLANES} is needed)"
    return grouped_matmul.unsupported(x, w, tile)


def forward(x, z, w, factors: Factors, tiles: TileMap, offset):
    """The projection of the buffer and its shrunk, scaled rows `z [NB, R]`, in x's type."""
    banks, pair, scale = _looked_up(factors, tiles)
    runs = runs_of(tiles, pair, scale, factors.scales.shape[0] * _experts(factors))
    given = Given(x, w, first=banks["a"], small=_pad(z, 1) if banks["a"] is None else None, second=banks["b"])
    y, small = product("expert_lora", tiles, offset, runs, given)
    return y, z if small is None else small[:, : _rank(factors)]


def backward(x, w, factors: Factors, tiles: TileMap, offset, z, cotangents):
    """Gradients of x, z, a and b, None for what was not given. `z` is what `forward` returned."""
    dy, dz = cotangents
    banks, pair, scale = _looked_up(factors, tiles)
    if banks["a"] is None:  # what comes back is the gradient of z itself
        scale = jnp.ones_like(scale)
    small = None
    if banks["b"] is None:
        dz = dz.astype(jnp.float32) * jnp.repeat(scale, tiles.subtile)[:, None]
        small = _pad(jnp.where(jnp.repeat(pair >= 0, tiles.subtile)[:, None], dz, 0).astype(x.dtype), 1)
    runs = runs_of(tiles, pair, scale, factors.scales.shape[0] * _experts(factors))
    given = Given(dy, w, first=banks["b"], small=small, second=banks["a"])
    dx, found = product("expert_lora_backward", tiles, offset, runs, given, transpose=True)
    small = cast(jax.Array, found if small is None else small)
    dz, da, db = None, None, None
    apart, at = _apart(factors, tiles)
    own = _looked_up(factors, apart)[1]
    if banks["a"] is None:
        dz = small[:, : _rank(factors)]
    else:
        da = sums("expert_lora_sums_a", apart, own, take_rows(small, at), take_rows(x, at), banks["a"])
        da = _like(da, factors.a)
    if banks["b"] is not None:
        db = sums(
            "expert_lora_sums_b", apart, own, take_rows(cast(jax.Array, _pad(z, 1)), at), take_rows(dy, at), banks["b"]
        )
        db = _like(db, factors.b)
    return dx, dz, da, db


def _apart(factors: Factors, tiles: TileMap) -> tuple[TileMap, Any]:
    """The map's rows with an adapter once more, each (expert, slot) in subtiles of its own, and their old places.

    A sum over such subtiles depends on the pair's own rows, not on where others left it to begin.
    """
    absent = tiles.source.shape[0]
    place = jnp.minimum(tiles.place, absent - 1)
    expert, subgroup = tiles.group[place // tiles.tile], tiles.subgroup[place // tiles.subtile]
    expert = jnp.where((tiles.place < absent) & (subgroup > 0), expert, -1)
    pairs = {"groups": _experts(factors), "subgroups": factors.scales.shape[0] + 1}
    apart = tile_map(expert, jnp.maximum(subgroup, 0), **pairs, tile=max(tiles.tile, TPU_SUMS), subtile=TPU_SUMS)
    return apart, jnp.append(tiles.place, absent)[apart.source]


def _like(total, factor):
    """A gradient in the shape and dtype of its factor."""
    return total[:, : factor.shape[-2]].reshape(factor.shape).astype(factor.dtype)


def _rank(factors: Factors) -> int:
    return next(f.shape[-2] for f in factors[:2] if f is not None)


def _experts(factors: Factors) -> int:
    return next(f.shape[1] for f in factors[:2] if f is not None)


def _looked_up(factors: Factors, tiles: TileMap) -> tuple[dict[str, Any], Any, Any]:
    """The banks with slots and experts in one row, ranks padded; of each subtile its row of them, -1 for none, and its
    scale.
    """
    banks = {}
    for name, bank in zip("ab", factors[:2], strict=True):
        banks[name] = None if bank is None else _pad(bank.reshape(-1, *bank.shape[2:]), 1)
    experts, slot = _experts(factors), tiles.subgroup - 1
    expert = jnp.repeat(tiles.group, tiles.tile // tiles.subtile)
    pair = jnp.where((slot >= 0) & (expert >= 0), (factors.offset + slot) * experts + expert, -1)
    return banks, pair, factors.scales[jnp.maximum(slot, 0)]


def _pad(array, axis: int):
    """Zeros up to a multiple of eight along an axis of ranks."""
    if array is None or array.shape[axis] % SUBLANES == 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % SUBLANES)
    return jnp.pad(array, widths)
