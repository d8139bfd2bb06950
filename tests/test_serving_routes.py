"""pefx.serving.routes: what steps told of a sequence is there, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.routes import MISSING, RouteRecord


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8), st.integers(0, 60))
def test_what_was_told_is_there_and_the_rest_is_missing(told: list[tuple[int, int]], end: int):
    record, expected = RouteRecord(), np.full((100, 2, 3), MISSING, np.uint16)
    for turn, (start, size) in enumerate(told):
        ids = np.full((size, 2, 3), turn, np.uint16) + np.arange(size, dtype=np.uint16)[:, None, None]
        record.put(start, ids)
        expected[start : start + size] = ids
    for start in (0, min(5, end), end):
        found = record.of(start, end)
        np.testing.assert_array_equal(found, expected[start:end])
        assert found.dtype == np.uint16


def test_what_is_given_out_is_a_copy():
    record = RouteRecord()
    record.put(0, np.zeros((4, 1, 2), np.uint16))
    record.of(0, 4)[:] = 7
    assert not record.of(0, 4).any()


def test_a_base_without_experts_has_none_to_tell():
    record = RouteRecord()
    record.put(0, np.zeros((3, 0, 2), np.uint16))
    assert record.of(0, 5).shape == (5, 0, 2)


def test_before_a_step_nothing_is_known():
    with pytest.raises(RuntimeError, match="no step"):
        RouteRecord().of(0, 1)
