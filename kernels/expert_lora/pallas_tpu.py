"""The TPU's form of an expert layer's projection with LoRA inside: the experts' product and the adapters' in one kernel.

The contract is that of the portable form. A bank whose rank is no multiple of eight is padded, a copy at each call:
allocate banks at such a rank.
"""

from typing import Any

import jax.numpy as jnp

from kernels.expert_lora import xla
from kernels.expert_lora.pallas_product import Given, Runs, product, runs_of
from kernels.factors import Factors
from kernels.grouped_matmul import pallas_tpu as grouped_matmul
from kernels.lora_matmul.pallas_blocks import SUBLANES
from kernels.tiles import TileMap


def unsupported(x, w, factors: Factors, tiles: TileMap) -> str | None:
    """Why these kernels cannot take these shapes, or None."""
    rank = next(f.shape[-2] for f in factors[:2] if f is not None)
    if rank > 64:
        return f"rank {rank} (at most 64)"
    if tiles.subtile > 1 and tiles.subtile % SUBLANES:
        return f"subtiles of {tiles.subtile} rows (one, or a multiple of {SUBLANES} is needed)"
    return grouped_matmul.unsupported(x, w, tiles)


def forward(x, z, w, factors: Factors, tiles: TileMap, offset):
    """The projection of the buffer and its shrunk, scaled rows `z [NB, R]`, in x's type."""
    banks, runs = _looked_up(factors, tiles)
    given = Given(x, w, first=banks["a"], small=_pad(z, 1) if banks["a"] is None else None, second=banks["b"])
    y, small = product("expert_lora", tiles, offset, runs, given)
    return y, z if small is None else small[:, : _rank(factors)]


def backward(x, w, factors: Factors, tiles: TileMap, offset, z, cotangents):
    """Gradients of x, z, a and b, None for what was not given. `z` is what `forward` returned."""
    return xla.backward(x, w, factors, tiles, offset, z, cotangents)


def _rank(factors: Factors) -> int:
    return next(f.shape[-2] for f in factors[:2] if f is not None)


def _looked_up(factors: Factors, tiles: TileMap) -> tuple[dict[str, Any], Runs]:
    """The banks with slots and experts in one row, ranks padded, and which of them each tile needs."""
    banks = {}
    for name, bank in zip("ab", factors[:2], strict=True):
        banks[name] = None if bank is None else _pad(bank.reshape(-1, *bank.shape[2:]), 1)
    experts = next(f.shape[1] for f in factors[:2] if f is not None)
    slot = tiles.subgroup - 1
    expert = jnp.repeat(tiles.group, tiles.tile // tiles.subtile)
    pair = jnp.where((slot >= 0) & (expert >= 0), (factors.offset + slot) * experts + expert, -1)
    return banks, runs_of(tiles, pair, factors.scales[jnp.maximum(slot, 0)])


def _pad(array, axis: int):
    """Zeros up to a multiple of eight along an axis of ranks."""
    if array is None or array.shape[axis] % SUBLANES == 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % SUBLANES)
    return jnp.pad(array, widths)
