"""Windows over rows in the order of their (group, subgroup): every row once, each pair from a window of its own."""

import jax
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
    source, place, used = np.asarray(found.source), np.asarray(found.place), np.flatnonzero(group >= 0)
    for cuts, keys in ((found.groups, (group,)), (found.pairs, (group, subgroup))):
        seen = cut_rows(jax.tree.map(np.asarray, cuts), source, keys)
        # In order of pairs, each pair's rows in their own order.
        assert seen == sorted(used, key=lambda row: (group[row], subgroup[row], row))
        np.testing.assert_array_equal(place[seen], np.arange(len(seen)))
    np.testing.assert_array_equal(place[group < 0], len(source))
    assert (source[len(used) :] == ROWS).all()


def cut_rows(cuts, source: np.ndarray, keys) -> list[int]:
    """Rows of all windows, in order. Every window holds rows of its own key, and only a key's last may be short."""
    seen, sizes = [], {}
    for w in range(len(cuts.start)):
        length = int(cuts.length[w])
        assert (length > 0) == (w < cuts.live)
        if w >= cuts.live:
            continue
        assert length <= SIZE
        assert cuts.start[w] + SIZE <= len(source)
        rows = source[cuts.start[w] : cuts.start[w] + length]
        own = (cuts.group[w], cuts.subgroup[w])[: len(keys)]
        for key, mine in zip(keys, own, strict=True):
            assert (key[rows] == mine).all()
        seen += rows.tolist()
        sizes.setdefault(tuple(int(key) for key in own), []).append(length)
    assert all(set(cut[:-1]) <= {SIZE} for cut in sizes.values())
    return seen
