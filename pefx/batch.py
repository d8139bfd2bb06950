"""What a step reads: a flat batch of tokens, its tiles, and the paged pool of keys and values.

Built on the host from numpy; all fields are arrays, so that one compiled step serves every batch of its shapes.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from kernels.paged_attention.xla import Layout
from pefx.config import ModelConfig

# The host hands over numpy; inside a step it is jax's. No static type says both.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """A flat batch of `T` tokens of `S` sequences; padding tokens carry position -1 and slot -1.

    Attention works on tiles of `Q` tokens, each of one sequence. `rows` lists a tile's tokens (-1: none); `place` is
    the inverse (`tile * Q + offset`, any value for padding). `pages` maps a sequence's KV blocks to pool pages
    (-1: none). `lengths` counts a sequence's tokens up to and including this step's. Gradients exist only where every
    sequence lies whole in the batch, as training packs it.
    """

    tokens: Int32[Array, "T"]
    positions: Int32[Array, "T"]
    slots: Int32[Array, "T"]
    sequences: Int32[Array, "T"]
    rows: Int32[Array, "NT Q"]
    tile_sequence: Int32[Array, "NT"]
    place: Int32[Array, "T"]
    pages: Int32[Array, "S PS"]
    lengths: Int32[Array, "S"]
    page_size: int = field(metadata={"static": True})

    def layout(self) -> Layout:
        """The fields attention reads."""
        return Layout(
            self.positions, self.sequences, self.rows, self.tile_sequence, self.place, self.pages, self.lengths
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVPool:
    """Keys and values of all layers in `P` pages of `B` tokens. Pages are owned by the host's plan."""

    keys: Float[Array, "L P B G K"]
    values: Float[Array, "L P B G K"]

    @classmethod
    def zeros(cls, config: ModelConfig, pages: int, page_size: int) -> "KVPool":
        shape = (config.layers, pages, page_size, config.kv_heads, config.head_size)
        dtype = jnp.dtype(config.precision)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
