"""A dense projection of the base, with the adapters of a mixed batch as an argument."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.factors import Factors
from kernels.lora_matmul.api import lora_matmul
from kernels.rows import Rows
from kernels.slot_gain.api import slot_gain

Adapters = dict[str, Factors]  # by site name; a missing site has no adapter


def dot(x: Float[Array, "T D"], w: Float[Array, "F D"]) -> Float[Array, "T F"]:
    """`x w^T`, accumulated in float32. Weights are `[out, in]`: a row's bits do not depend on the number of rows."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def linear(
    x: Float[Array, "T D"],
    w: Float[Array, "F D"],
    factors: Factors | None,
    rows: Rows | None,
    bias: Float[Array, "F"] | None = None,
) -> Float[Array, "T F"]:
    """The base's projection plus each row's own adapter (`rows` owned by slots); others keep its bits. In x's dtype.

    A `bias` is part of the base's product, which is rounded before the adapter's is added: where they are bfloat16,
    half as much goes to and from memory for it.
    """
    y = dot(x, w)
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None]
    return adapted(y.astype(x.dtype), x, factors, rows)


def adapted(
    y: Float[Array, "T F"], x: Float[Array, "T D"], factors: Factors | None, rows: Rows | None
) -> Float[Array, "T F"]:
    """`y` plus each row's own adapter of `x`, times its gains if any, in y's dtype; others keep their bits."""
    if factors is None or rows is None:
        return y
    y = lora_matmul(y, x, factors._replace(gains=None), rows)
    return y if factors.gains is None else slot_gain(y, factors.gains, factors.offset, rows)
