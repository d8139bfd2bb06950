"""Single rows and tiles of rows: regions, owners, and what a tile's owner is."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.rows import Rows, rows_of


def test_a_tiles_owner_is_its_first_rows():
    rows = rows_of(jnp.array([3, -1, 5, 5, 5, 7, 7, -1], jnp.int32), singles=2, tile=3)
    np.testing.assert_array_equal(rows.owner, [3, -1, 5, 7])
    np.testing.assert_array_equal(rows.of_each(), [3, -1, 5, 5, 5, 7, 7, 7])
    assert (rows.singles, rows.tile, rows.tiles) == (2, 3, 2)


@pytest.mark.parametrize(
    ("singles", "tiles", "parts"),
    [
        (2, 2, [(slice(0, 2), slice(0, 2), 1), (slice(2, 8), slice(2, 4), 3)]),
        (2, 0, [(slice(0, 2), slice(0, 2), 1)]),
        (0, 1, [(slice(0, 3), slice(0, 1), 3)]),
    ],
)
def test_parts_are_the_regions_that_are_there(singles, tiles, parts):
    assert Rows(jnp.zeros(singles + tiles, jnp.int32), singles, 3).parts() == parts
