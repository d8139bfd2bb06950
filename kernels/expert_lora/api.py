"""LoRA inside an expert layer, keyed by (expert, slot)."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.expert_lora import xla
from kernels.tiles import TileMap


@jax.custom_vjp
def expert_lora(
    x: Float[Array, "NB D"],
    a: Float[Array, "G E R D"] | Float[Array, "G R D"],
    b: Float[Array, "G E R F"] | Float[Array, "G R F"],
    scales: Float[Array, "N"],
    tiles: TileMap,
    offset: Int32[Array, ""],
) -> Float[Array, "NB F"]:
    """Float32 deltas on the expert buffer; zeros where a row has no adapter.

    `tiles` groups by expert, subgroup 0 the bare base and s + 1 slot s. A factor without an expert axis is shared by
    the layer's experts (`shared_hidden`). Slot s reads factors `offset + s`. Differentiable in x, a, b.
    """
    return xla.forward(x, a, b, scales, tiles, offset)[0]


def _forward(x, a, b, scales, tiles, offset):
    y, z = xla.forward(x, a, b, scales, tiles, offset)
    return y, (x, a, b, scales, tiles, offset, z)


def _backward(residuals, dy):
    x, a, b, scales, tiles, offset, z = residuals
    return *xla.backward(x, a, b, scales, tiles, offset, z, dy), None, None, None


expert_lora.defvjp(_forward, _backward)
