"""Sparse attention: which keys each query attends to, by the scores of a small index (DeepSeek-V3.2, section 2.1)."""

import jax
from jaxtyping import Array, Bool, Float, Int32

from kernels.key_choice import xla
from kernels.paged_attention.xla import Layout, write


def choose(
    q: Float[Array, "T H K"],
    weights: Float[Array, "T H"],
    k: Float[Array, "T 1 K"],
    keys: Float[Array, "L P 1 B K"],
    layer: Int32[Array, ""],
    at: Layout,
    count: int,
) -> tuple[Bool[Array, "T C"], Float[Array, "L P 1 B K"]]:
    """Write this step's index keys to their pages; then, of the positions of each query's sequence up to itself, the
    `count` with the highest `sum_h weights_h relu(q_h . k)`, the first ones of equals. Where there are fewer, all.

    Positions past the query's may be among the chosen then: attention does not look at them. No gradients. There is
    only a portable form.
    """
    q, weights, k, keys = jax.lax.stop_gradient((q, weights, k, keys))
    (keys,) = write((keys,), (k,), layer, at)
    return xla.choose(q, weights, keys, layer, at, count), keys
