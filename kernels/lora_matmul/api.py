"""Mixed LoRA product `y[t] = scales[s] x[t] A[s]^T B[s]`, s the slot of row t."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.lora_matmul import xla
from kernels.tiles import TileMap


@jax.custom_vjp
def lora_matmul(
    x: Float[Array, "T D"],
    a: Float[Array, "G R D"],
    b: Float[Array, "G R F"],
    scales: Float[Array, "N"],
    tiles: TileMap,
    offset: Int32[Array, ""],
) -> Float[Array, "T F"]:
    """Float32 deltas `[T, F]`, zeros for rows without a place in `tiles` (whose groups are slots).

    Slot s reads factors `offset + s`: a bank of all layers folded to `[L * N, R, D]` is read in place with
    `offset = layer * N`. Differentiable in x, a, b.
    """
    return xla.forward(x, a, b, scales, tiles, offset)[0]


def _forward(x, a, b, scales, tiles, offset):
    y, z = xla.forward(x, a, b, scales, tiles, offset)
    return y, (x, a, b, scales, tiles, offset, z)


def _backward(residuals, dy):
    x, a, b, scales, tiles, offset, z = residuals
    return *xla.backward(x, a, b, scales, tiles, offset, z, dy), None, None, None


lora_matmul.defvjp(_forward, _backward)
