"""From spans to a flat batch: every token has one row, single or in a tile, and what does not fit is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.packing import Sizes, Span, beside, pack, span_rows, tile_of, whole_pages

FIELDS = {"tokens", "positions", "slots", "sequences", "pages", "lengths", "page_size", "singles", "tile"}


def draw_case(draw):
    """Spans and sizes they fit in: exactly, or with room to spare."""
    tile, page_size = draw(st.sampled_from([(2, 8), (8, 8), (8, 16)]))
    count, spans, page = draw(st.integers(0, 5)), [], 0
    for i in range(count):
        size, start = draw(st.integers(1, 30) | st.just(1)), draw(st.integers(0, 40))
        pages = whole_pages(start + size, page_size) + draw(st.integers(0, 2))
        tokens = [100 * i + j for j in range(size)]
        spans.append(Span(tokens, start, draw(st.integers(-1, 4)), list(range(page, page + pages))))
        page += pages
    singles = draw(st.integers(0, 4))
    alone = min(singles, sum(len(s.tokens) == 1 for s in spans))
    longer = sum(whole_pages(len(s.tokens), tile) for s in spans)
    tiles = longer - alone + draw(st.integers(0, 2))
    sequences = count + draw(st.integers(0 if count else 1, 2))
    blocks = max([len(s.pages) for s in spans], default=1)
    return spans, Sizes(singles, max(tiles, 1 - min(singles, 1)), sequences, blocks, page_size, tile)


@given(data=st.data())
def test_every_token_has_one_row_and_no_tile_mixes_sequences(data):
    spans, sizes = draw_case(data.draw)
    batch, tokens = pack(spans, sizes), sizes.tokens
    assert set(batch) == FIELDS
    assert all(x.dtype == np.int32 for x in batch.values() if isinstance(x, np.ndarray))
    assert batch["pages"].shape == (sizes.sequences, sizes.blocks)
    assert batch["lengths"].shape == (sizes.sequences,)
    taken = np.zeros(tokens, bool)
    for i, (span, row) in enumerate(zip(spans, span_rows(spans, sizes), strict=True)):
        here = slice(row, row + len(span.tokens))
        assert not taken[here].any()
        taken[here] = True
        np.testing.assert_array_equal(batch["tokens"][here], span.tokens)
        np.testing.assert_array_equal(batch["positions"][here], span.start + np.arange(len(span.tokens)))
        assert set(batch["slots"][here]) == {span.slot}
        assert set(batch["sequences"][here]) == {i}
        assert batch["lengths"][i] == span.start + len(span.tokens)
        np.testing.assert_array_equal(batch["pages"][i, : len(span.pages)], span.pages)
        assert (batch["pages"][i, len(span.pages) :] == -1).all()
        assert row < sizes.singles or (row - sizes.singles) % sizes.tile == 0
    # Padding is inert: no position, no slot; absent sequences are empty.
    assert (batch["positions"][~taken] == -1).all()
    assert (batch["slots"][~taken] == -1).all()
    assert not batch["lengths"][len(spans) :].any()
    owners = np.where(taken, batch["sequences"], -1)[sizes.singles :].reshape(-1, sizes.tile)
    for tile in owners:
        live = tile[tile >= 0]
        assert len(set(live)) <= 1
        assert (tile[: len(live)] == live).all(), "a tile is filled from the front"


def test_spans_of_one_token_fill_the_single_rows_first():
    spans = [Span([1], 3, 0, [0]), Span([2, 3], 0, 1, [1]), Span([4], 0, 2, [2]), Span([5], 0, 2, [3])]
    assert span_rows(spans, Sizes(2, 3, 4, 1, 8, 4)) == [0, 2, 1, 6]


def test_rows_may_be_given():
    batch = pack([Span([1, 2], 0, 0, [0])], Sizes(0, 3, 1, 1, 8, 4), rows=[8])
    np.testing.assert_array_equal(np.flatnonzero(batch["positions"] >= 0), [8, 9])


def test_shapes_depend_on_the_sizes_alone():
    sizes = Sizes(2, 9, 3, 4, 16, 8)
    shapes = [
        {name: np.shape(x) for name, x in pack(spans, sizes).items()}
        for spans in ([], [Span([1], 0, -1, [0])], [Span([1] * 21, 9, 2, [5, 6])] * 3)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_batches_of_shards_lie_one_after_another():
    sizes = Sizes(0, 1, 1, 1, 8, 4)
    both = beside([pack([Span([n], 0, n, [n])], sizes) for n in (1, 2)])
    np.testing.assert_array_equal(both["tokens"], [1, 0, 0, 0, 2, 0, 0, 0])
    np.testing.assert_array_equal(both["pages"], [[1], [2]])
    assert both["tile"] == 4


def test_whole_pages_rounds_up():
    assert [whole_pages(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_a_page_holds_whole_tiles():
    assert [tile_of(n) for n in (8, 32, 64)] == [8, 32, 32]
    for page_size in (1, 48):
        with pytest.raises(PefxError, match=f"page_size is {page_size}; it must be a multiple of 32"):
            tile_of(page_size)


SIZES = Sizes(singles=0, tiles=2, sequences=2, blocks=2, page_size=8, tile=8)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span([1] * 17, 0, -1, [0, 1, 2])], "1 spans of 17 tokens do not fit a step of 2 sequences"),
        ([Span([1], 0, -1, [0])] * 3, "3 spans of 3 tokens do not fit"),
        ([Span([1] * 9, 0, -1, [0, 1]), Span([1], 0, -1, [2])], "2 spans of 10 tokens do not fit"),
        ([Span([1], 8, -1, [0])], r"span 0 of 1 tokens to position 9 lacks pages \(1 given\)"),
        ([Span([1], 16, -1, [0, 1, 2])], "to position 17 lacks pages"),
        ([Span([], 0, -1, [0])], "span 0 of 0 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(spans, message):
    with pytest.raises(PefxError, match=message):
        pack(spans, SIZES)
