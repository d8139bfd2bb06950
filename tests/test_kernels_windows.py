"""Windows over rows in the order of their (group, subgroup): every row once, each pair from a window of its own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.windows import windows
from pefx.compiler import jit

ROWS, GROUPS, SUBGROUPS, SIZE = 37, 5, 3, 4
_windows = jit(lambda group, subgroup: windows(group, subgroup, groups=GROUPS, subgroups=SUBGROUPS, size=SIZE))


@given(st.data())
def test_every_row_is_in_one_window_of_its_pair_and_pairs_begin_windows(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    groups = data.draw(st.sampled_from([[-1], [2], [0, 4], range(-1, GROUPS), range(GROUPS)]))
    group = rng.choice(list(groups), ROWS).astype(np.int32)
    subgroup = rng.integers(0, data.draw(st.integers(1, SUBGROUPS)), ROWS).astype(np.int32)
    found = _windows(group, subgroup)
    source, place, start, length = (np.asarray(x) for x in (found.source, found.place, found.start, found.length))
    live = int(found.live)
    assert live <= len(start)
    assert not length[live:].any()
    seen: list[int] = []
    for w in range(live):
        rows = source[start[w] : start[w] + length[w]]
        assert 1 <= length[w] <= SIZE
        assert start[w] + SIZE <= len(source)
        assert (group[rows] == found.group[w]).all()
        assert (subgroup[rows] == found.subgroup[w]).all()
        np.testing.assert_array_equal(place[rows], np.arange(start[w], start[w] + length[w]))
        seen += rows.tolist()
    used = np.flatnonzero(group >= 0)
    # In order of pairs, each pair's rows in their own order; so windows are cut within the pair's own rows.
    assert seen == sorted(used, key=lambda row: (group[row], subgroup[row], row))
    sizes = {(int(found.group[w]), int(found.subgroup[w])): [] for w in range(live)}
    for w in range(live):
        sizes[int(found.group[w]), int(found.subgroup[w])].append(int(length[w]))
    assert all(set(cut[:-1]) <= {SIZE} for cut in sizes.values())
    np.testing.assert_array_equal(place[group < 0], len(source))
    assert (np.delete(source, place[used]) == ROWS).all()
