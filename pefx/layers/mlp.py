"""Gated feed-forward layer (SwiGLU, Shazeer 2020)."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from kernels.rows import Rows
from pefx.collectives import enter, leave
from pefx.config import ModelConfig
from pefx.layers.linear import Adapters, linear
from pefx.layers.parameter import weight


class Mlp(nnx.Module):
    """Weights of `layers` dense feed-forward layers of hidden size `wide`, stacked; projections are `[out, in]`."""

    def __init__(self, config: ModelConfig, layers: int, wide: int, rngs: nnx.Rngs):
        c, d, f = config, config.hidden, wide
        self.gate_proj = weight(rngs, (layers, f, d), ("layers", "mlp", "embed"), d**-0.5, c.precision)
        self.up_proj = weight(rngs, (layers, f, d), ("layers", "mlp", "embed"), d**-0.5, c.precision)
        self.down_proj = weight(
            rngs, (layers, d, f), ("layers", "embed", "mlp"), (2 * c.layers * f) ** -0.5, c.precision
        )


def mlp(
    x: Float[Array, "T D"], weights: Mlp, adapters: Adapters, rows: Rows | None, sites: str = ""
) -> Float[Array, "T D"]:
    """`(silu(x gate) * (x up)) down`, each with its rows' adapters, in x's dtype. Names of its sites begin `sites`."""
    x = enter(x)
    gate = linear(x, weights.gate_proj[...], adapters.get(f"{sites}gate_proj"), rows)
    up = linear(x, weights.up_proj[...], adapters.get(f"{sites}up_proj"), rows)
    return leave(linear(jax.nn.silu(gate) * up, weights.down_proj[...], adapters.get(f"{sites}down_proj"), rows))
