"""A share of a step is laid out the same, whoever else is in it."""

import subprocess
import sys

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.training.planner import Layout, Lesson, lay_out, lesson

PAGE = 8


def make(length: int, slot: int, seed: int) -> Lesson:
    rng = np.random.default_rng(seed)
    return lesson(rng.integers(0, 50, length + 1), rng.integers(0, 2, length + 1), slot)


def rows_of(fields: dict, share: int, layout: Layout) -> dict[str, np.ndarray]:
    own = slice(share * layout.share, (share + 1) * layout.share)
    flat = {name: fields["tokens"][name][own] for name in ("tokens", "positions", "slots")}
    return flat | {"targets": fields["targets"][own], "weights": fields["weights"][own]}


def test_a_lesson_is_shifted_by_one() -> None:
    item = lesson([5, 6, 7, 8], [0.0, 0.0, 1.0, 1.0], 2)
    assert (item.tokens.tolist(), item.targets.tolist(), item.weights.tolist()) == ([5, 6, 7], [6, 7, 8], [0, 1, 1])


def test_a_share_starts_where_it_always_does() -> None:
    layout = Layout(shares=3, share=64, length=32, page_size=PAGE)
    ann = [make(20, 0, 1), make(3, 0, 2)]  # leaves 32 of its 64 rows unused
    bob = [make(32, 1, 3), make(32, 1, 4)]
    cat = [make(9, 2, 5)]
    mixed = lay_out([[ann, bob, cat]], layout)
    for share, lessons in enumerate([ann, bob, cat]):
        alone = rows_of(lay_out([[lessons]], Layout(1, 64, 32, PAGE)), 0, Layout(1, 64, 32, PAGE))
        here = rows_of(mixed, share, layout)
        used = sum(item.pages(PAGE) for item in lessons) * PAGE
        for name, values in alone.items():
            np.testing.assert_array_equal(here[name][:used], values[:used], err_msg=name)
        assert not here["weights"][used:].any()
        assert np.all(here["targets"][used:] == -1)
        assert np.all(here["slots"][used:] == -1)
    live = mixed["weights"] > 0
    assert live.sum() == sum((item.weights > 0).sum() for lessons in (ann, bob, cat) for item in lessons)
    assert np.all(mixed["targets"][~live] == -1)


def test_shards_lie_side_by_side_each_as_it_would_alone() -> None:
    ann, bob, cat = ([make(n, slot, slot)] for slot, n in enumerate((20, 9, 31)))
    layout = Layout(shares=2, share=64, length=32, page_size=PAGE, shards=2)
    both = lay_out([[ann, bob], [cat]], layout)
    for shard, shares in enumerate([[ann, bob], [cat]]):
        alone = lay_out([shares], Layout(2, 64, 32, PAGE))
        rows = slice(shard * layout.tokens, (shard + 1) * layout.tokens)
        np.testing.assert_array_equal(both["targets"][rows], alone["targets"])
        np.testing.assert_array_equal(both["tokens"]["positions"][rows], alone["tokens"]["positions"])
        sequences = slice(shard * layout.sizes.sequences, (shard + 1) * layout.sizes.sequences)
        np.testing.assert_array_equal(both["tokens"]["pages"][sequences], alone["tokens"]["pages"])


def test_every_sequence_owns_its_pages() -> None:
    layout = Layout(shares=2, share=64, length=32, page_size=PAGE)
    fields = lay_out([[[make(20, 0, 1)], [make(32, 1, 2), make(10, 1, 3)]]], layout)["tokens"]
    pages = fields["pages"][fields["pages"] >= 0]
    assert len(set(pages.tolist())) == len(pages)
    assert pages.max() < layout.tokens // PAGE
    for row in np.flatnonzero(fields["positions"] == 0):
        assert row % PAGE == 0
        assert fields["pages"][fields["sequences"][row], 0] == row // PAGE


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout(shares=2, share=32, length=32, page_size=PAGE)
    with pytest.raises(PefxError, match="share 1: 2 sequences do not fit 32 tokens"):
        lay_out([[[make(8, 0, 1)], [make(30, 1, 2), make(4, 1, 3)]]], layout)
    with pytest.raises(PefxError, match="60 tokens per user and step do not divide into pages of 8"):
        Layout(1, 60, 32, PAGE)
    with pytest.raises(PefxError, match="page_size is 48; it must be a multiple of 32, or from 2 to 32"):
        Layout(1, 96, 32, 48)
    with pytest.raises(PefxError, match="sequence_length is 128"):
        Layout(1, 64, 128, PAGE)


def test_the_planner_imports_no_jax() -> None:
    code = "import sys, pefx.training.planner\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
