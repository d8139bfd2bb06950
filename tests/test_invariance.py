import numpy as np

from pefx.invariance import check_row_invariance, differing


def test_this_machine_keeps_a_rows_bits():
    check_row_invariance()


def test_one_bit_is_seen():
    whole = np.ones((4, 3), np.float32)
    part = whole[:2].copy()
    assert differing([part, whole]) == []
    part[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    assert differing([part, whole]) == [0]
