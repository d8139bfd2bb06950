"""Singular directions: products that give the matrix, in order, with signs that mean nothing; and what has none."""

import numpy as np
import pytest

from pefx.adapters.directions import Part, directions
from pefx.errors import PefxError

MATRICES = np.random.default_rng(0).normal(size=(2, 3, 7, 5)).astype(np.float32)


def test_all_directions_make_the_matrix():
    found = directions("q_proj", lambda: MATRICES, 5)
    made = np.einsum("...ro,...r,...ri->...oi", found.outward, found.strengths, found.inward)
    np.testing.assert_allclose(made, MATRICES, atol=1e-5)
    assert (np.diff(found.strengths) <= 0).all()
    peaks = np.take_along_axis(found.inward, np.abs(found.inward).argmax(-1)[..., None], -1)
    assert (peaks > 0).all()


def test_the_first_and_the_last_are_the_ends_of_all():
    every = directions("q_proj", lambda: MATRICES, 5)
    parts: tuple[tuple[Part, slice], ...] = (("first", slice(0, 2)), ("last", slice(3, 5)))
    for part, here in parts:
        found = directions("q_proj", lambda: MATRICES, 2, part)
        np.testing.assert_array_equal(found.strengths, every.strengths[..., here])
        np.testing.assert_array_equal(found.inward, every.inward[..., here, :])


def test_orthogonal_ones_make_the_matrix_too():
    found = directions("q_proj", lambda: MATRICES, 5, "orthogonal")
    made = np.einsum("...ro,...r,...ri->...oi", found.outward, found.strengths, found.inward)
    np.testing.assert_allclose(made, MATRICES, atol=1e-5)
    squares = found.outward @ np.swapaxes(found.outward, -1, -2)
    np.testing.assert_allclose(squares, np.broadcast_to(np.eye(5), squares.shape), atol=1e-5)
    few = directions("q_proj", lambda: MATRICES, 2, "orthogonal")
    np.testing.assert_array_equal(few.inward, found.inward[..., :2, :])


def test_what_has_no_directions_is_named():
    with pytest.raises(PefxError, match="rank 6 is above the size of 'q_proj', 7 x 5: at most 5"):
        directions("q_proj", lambda: MATRICES, 6)
    bad = MATRICES.copy()
    bad[1, 2, 3, 4] = np.nan
    with pytest.raises(PefxError, match="'q_proj' of the base has 1 NaN or infinite weights"):
        directions("q_proj", lambda: bad, 2)
