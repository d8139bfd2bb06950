"""A gated expert layer with LoRA inside, for runs of rows."""

import jax
from jaxtyping import Array, Float

from kernels.expert_mlp import xla
from kernels.expert_mlp.xla import Matrices, Sites
from kernels.windows import Windows


@jax.custom_vjp
def expert_mlp(
    x: Float[Array, "NB D"], shrunk: Sites, matrices: Matrices, adapters: Sites, windows: Windows
) -> tuple[Float[Array, "NB D"], Float[Array, "NB R"] | None]:
    """`(silu(x gate) * (x up)) down` by each row's expert, each projection plus its own adapter's delta; in x's type.

    `windows` groups by expert, subgroup 0 the bare base and s + 1 slot s. What a layer's experts share of a pair of
    `adapters` stays outside, as in `expert_lora`: `shrunk` has the rows of a projection without `a`, and where `down`
    has no `b` its shrunk rows are returned. Differentiable in x, shrunk and the adapters' factors; matrices are frozen.
    """
    return _forward(x, shrunk, matrices, adapters, windows)[0]


def _forward(x, shrunk, matrices, adapters, windows):
    y, kept = xla.forward(x, shrunk, matrices, adapters, windows)
    outward = adapters.down is not None and adapters.down.b is None
    return (y, kept["zdown"] if outward else None), (x, matrices, adapters, windows, kept)


def _backward(residuals, cotangents):
    x, matrices, adapters, windows, kept = residuals
    dx, dz, factors = xla.backward(x, matrices, adapters, windows, kept, cotangents)
    return dx, dz, None, factors, None


expert_mlp.defvjp(_forward, _backward)
