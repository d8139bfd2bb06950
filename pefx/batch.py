"""What a step reads: a flat batch of tokens, its tiles, and the paged pool of keys and values.

Built on the host from numpy; all fields are arrays, so that one compiled step serves every batch of its shapes.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from kernels.delta_rule.api import EXTRA
from kernels.paged_attention.xla import Layout
from kernels.rows import Rows, rows_of
from pefx.collectives import size
from pefx.config import ModelConfig
from pefx.mesh import MODEL

# The host hands over numpy; inside a step it is jax's. No static type says both.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """A flat batch of `T` tokens of `S` sequences; padding tokens carry position -1 and slot -1.

    The first `singles` rows hold one token each of a sequence of its own; the others come in tiles of `tile` rows,
    each of one sequence, filled from the front. `pages` maps a sequence's KV blocks to pool pages (-1: none). `lengths`
    counts a sequence's tokens up to and including this step's. Gradients exist where there are no singles and every
    sequence lies whole in the batch, in tiles that follow each other, as training packs it.
    `memory` says what each token does to its sequence's memory, in the bits of `pefx.packing` (None: there is none).
    """

    tokens: Int32[Array, "T"]
    positions: Int32[Array, "T"]
    slots: Int32[Array, "T"]
    sequences: Int32[Array, "T"]
    pages: Int32[Array, "S PS"]
    lengths: Int32[Array, "S"]
    page_size: int = field(metadata={"static": True})
    singles: int = field(metadata={"static": True})
    tile: int = field(metadata={"static": True})
    memory: Int32[Array, "T"] | None = None

    def by_slot(self) -> Rows:
        """The rows, owned by slots."""
        return rows_of(jnp.asarray(self.slots), self.singles, self.tile)

    def layout(self) -> Layout:
        """The fields attention reads; rows are owned by sequences."""
        owner = jnp.where(jnp.asarray(self.positions) < 0, -1, self.sequences)
        return Layout(self.positions, rows_of(owner, self.singles, self.tile), self.pages, self.lengths)


LANES = 128  # numbers in which a TPU lays out a row


def latent_key_width(config: ModelConfig) -> int:
    """Numbers of a latent key in the pool: whole lanes where it has several, else XLA lays the pool out anew."""
    size = config.kv_rank + config.rope_head_size
    return size if size <= LANES else -(-size // LANES) * LANES


def state_shape(states: int, rank: int) -> tuple[int, int, int]:
    """Of a sequence's memory in one layer: each state is a matrix, and what is gathered of a message."""
    return states, rank + EXTRA, rank


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVPool:
    """Keys and values of all layers in `P` pages of `B` tokens, which the host's plan owns.

    Latent keys (`pefx.layers.mla`) hold their values. `index` are the keys by which sparse attention chooses. `memory`
    is the state of `pefx.layers.memory` that a sequence begins with at its first page (0), and after the newest token
    of each page (1): so pages that are shared bring it along.
    """

    keys: Float[Array, "L P G B K"]
    values: Float[Array, "L P G B K"] | None
    index: Float[Array, "L P 1 B I"] | None = None
    memory: Float[Array, "L P 2 M S R"] | None = None

    @classmethod
    def zeros(cls, config: ModelConfig, pages: int, page_size: int, memory: tuple[int, int] | None = None) -> "KVPool":
        """Empty pages; within a step, of this shard's heads. A latent key is one head, whole on every shard.

        `memory`: states of a sequence and their rank, where sequences have memories.
        """
        latent = config.kv_rank > 0
        heads, width = (1, latent_key_width(config)) if latent else (config.kv_heads // size(MODEL), config.head_size)
        shape = (config.layers, pages, heads, page_size, width)
        dtype, index = jnp.dtype(config.precision), None
        if config.index_keys:
            index = jnp.zeros((config.layers, pages, 1, page_size, config.index_head_size), dtype)
        held = None
        if memory is not None:
            held = jnp.zeros((config.layers, pages, 2, *state_shape(*memory)), jnp.float32)
        return cls(jnp.zeros(shape, dtype), None if latent else jnp.zeros(shape, dtype), index, held)
