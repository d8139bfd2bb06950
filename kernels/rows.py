"""How the rows of a flat batch belong together: single rows first, then tiles of rows that have one owner.

The host lays a step out this way (a decode is a single row, a chunk of a prompt or a training sequence is whole tiles),
so that everything a row shares with its neighbours is read once a tile and nothing is sorted.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """`T = singles + NT * tile` rows. `owner` is that of each single row, then of each tile; -1: nobody's."""

    owner: Int32[Array, "G"]
    singles: int = field(metadata={"static": True})
    tile: int = field(metadata={"static": True})

    @property
    def tiles(self) -> int:
        """Number of tiles, NT."""
        return self.owner.shape[0] - self.singles

    def parts(self) -> list[tuple[slice, slice, int]]:
        """(rows, groups, rows of a group) of the two regions, without an empty one."""
        found = []
        if self.singles:
            found.append((slice(0, self.singles), slice(0, self.singles), 1))
        if self.tiles:
            rows = slice(self.singles, self.singles + self.tiles * self.tile)
            found.append((rows, slice(self.singles, self.owner.shape[0]), self.tile))
        return found

    def of_each(self) -> Int32[Array, "T"]:
        """The owner of every row."""
        return jnp.concatenate([self.owner[: self.singles], jnp.repeat(self.owner[self.singles :], self.tile)])


def rows_of(owner: Int32[Array, "T"], singles: int, tile: int) -> Rows:
    """`Rows` from the owner of every row: that of a tile is its first row's."""
    return Rows(jnp.concatenate([owner[:singles], owner[singles::tile]]), singles, tile)
