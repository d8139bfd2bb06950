"""A dense projection of the base, with the adapters of a mixed batch as an argument."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from kernels.lora_matmul.api import lora_matmul
from kernels.tiles import TileMap, tile_map


class Factors(NamedTuple):
    """One site's LoRA factors as a layer reads them: slot s is row `offset + s`; `scales[s]` is folded per slot.

    `a [G, R, in]`, `b [G, R, out]`; at an expert site `[G, E, R, .]`, or without E where the layer's experts share it.
    """

    a: Array
    b: Array
    scales: Float[Array, "N"]
    offset: Int32[Array, ""]


Adapters = dict[str, Factors]  # by site name; a missing site has no adapter


class Mix(NamedTuple):
    """Which rows belong to which slot, grouped once for all the dense sites of a step."""

    slots: Int32[Array, "T"]
    tiles: TileMap


def mix_rows(slots: Int32[Array, "T"], bank_slots: int, tile: int) -> Mix:
    """Group rows by slot into tiles of `tile` rows; slot -1 is the bare base and gets none."""
    return Mix(slots, tile_map(slots, groups=bank_slots, tile=tile))


def dot(x: Float[Array, "T D"], w: Float[Array, "F D"]) -> Float[Array, "T F"]:
    """`x w^T`, accumulated in float32. Weights are `[out, in]`: a row's bits do not depend on the number of rows."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def linear(
    x: Float[Array, "T D"], w: Float[Array, "F D"], factors: Factors | None, mix: Mix | None
) -> Float[Array, "T F"]:
    """The base's projection plus each row's own adapter; rows without one keep the base's bits. Float32."""
    y = dot(x, w)
    if factors is None or mix is None:
        return y
    delta = lora_matmul(x, factors.a, factors.b, factors.scales, mix.tiles, factors.offset)
    return jnp.where((mix.slots >= 0)[:, None], y + delta, y)
