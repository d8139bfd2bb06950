"""From spans to a flat batch: every token has one row and one tile place, and what does not fit is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.packing import Span, pack, span_rows, whole_pages

FIELDS = {
    "tokens", "positions", "slots", "sequences", "rows", "tile_sequence", "place", "pages", "lengths", "page_size",
}  # fmt: skip


def draw_case(draw):
    """Spans and sizes they fit in: exactly, or with room to spare."""
    whole = draw(st.booleans())
    tile = draw(st.sampled_from([1, 2, 8, 16]))
    page_size = draw(st.sampled_from([8, 16] if not whole else [max(tile, 8), 2 * max(tile, 8)]))
    count = draw(st.integers(0, 5))
    spans, page = [], 0
    for i in range(count):
        size = draw(st.integers(1, 30))
        start = 0 if whole else draw(st.integers(0, 40))
        pages = whole_pages(start + size, page_size) + draw(st.integers(0, 2))
        tokens = [100 * i + j for j in range(size)]
        spans.append(Span(tokens, start, draw(st.integers(-1, 4)), list(range(page, page + pages))))
        page += pages
    used = sum(whole_pages(len(s.tokens), page_size) * page_size if whole else len(s.tokens) for s in spans)
    tokens = used + draw(st.integers(0, 2)) * (page_size if whole else 1)
    sizes = {
        "tokens": max(tokens, page_size),
        "sequences": count + draw(st.integers(0 if count else 1, 2)),
        "blocks": max([len(s.pages) for s in spans], default=1),
        "page_size": page_size,
        "tile": tile,
    }
    return spans, sizes, whole


@given(data=st.data())
def test_every_token_has_one_row_and_one_tile_place(data):
    spans, sizes, whole = draw_case(data.draw)
    batch = pack(spans, **sizes, whole=whole)
    assert set(batch) == FIELDS
    assert all(x.dtype == np.int32 for name, x in batch.items() if name != "page_size")
    tokens, tile = sizes["tokens"], sizes["tile"]
    assert batch["pages"].shape == (sizes["sequences"], sizes["blocks"])
    assert batch["lengths"].shape == (sizes["sequences"],)
    first = span_rows(spans, sizes["page_size"], whole)
    taken = np.zeros(tokens, bool)
    for i, (span, row) in enumerate(zip(spans, first, strict=True)):
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
        if whole:
            assert row % sizes["page_size"] == 0
    # Padding is inert: no position, no slot, no tile; absent sequences are empty.
    assert (batch["positions"][~taken] == -1).all()
    assert (batch["slots"][~taken] == -1).all()
    assert (batch["place"][~taken] == batch["rows"].size).all()
    assert not batch["lengths"][len(spans) :].any()
    # `rows` and `place` are each other's inverse, in order, and no tile mixes sequences.
    flat = batch["rows"].reshape(-1)
    np.testing.assert_array_equal(flat[batch["place"][taken]], np.flatnonzero(taken))
    np.testing.assert_array_equal(flat[flat >= 0], np.flatnonzero(taken))
    for rows, sequence in zip(batch["rows"], batch["tile_sequence"], strict=True):
        live = rows[rows >= 0]
        assert len(live) == 0 or set(batch["sequences"][live]) == {sequence}
    assert batch["rows"].shape[1] == tile
    assert len(batch["rows"]) <= tokens


def test_shapes_depend_on_the_sizes_alone():
    sizes: dict[str, Any] = {"tokens": 64, "sequences": 3, "blocks": 4, "page_size": 16, "tile": 8}
    shapes = [
        {name: np.shape(x) for name, x in pack(spans, **sizes).items()}
        for spans in ([], [Span([1], 0, -1, [0])], [Span([1] * 21, 9, 2, [5, 6])] * 3)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_whole_pages_rounds_up():
    assert [whole_pages(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


SIZES: dict[str, Any] = {"tokens": 16, "sequences": 2, "blocks": 2, "page_size": 8, "tile": 8}


@pytest.mark.parametrize(
    ("spans", "whole", "message"),
    [
        ([Span([1] * 17, 0, -1, [0, 1, 2])], False, "1 spans of 17 tokens do not fit a step of 2 and 16"),
        ([Span([1], 0, -1, [0])] * 3, False, "3 spans of 3 tokens do not fit"),
        ([Span([1] * 9, 0, -1, [0, 1]), Span([1], 0, -1, [2])], True, "2 spans of 17 tokens do not fit"),
        ([Span([1], 8, -1, [0])], False, r"span 0 of 1 tokens to position 9 lacks pages \(1 given\)"),
        ([Span([1], 16, -1, [0, 1, 2])], False, "to position 17 lacks pages"),
        ([Span([], 0, -1, [0])], False, "span 0 of 0 tokens"),
        ([Span([1], 3, -1, [0])], True, "span 0 starts at 3: a whole sequence starts at 0"),
    ],
)
def test_what_does_not_fit_is_refused(spans, whole, message):
    with pytest.raises(PefxError, match=message):
        pack(spans, **SIZES, whole=whole)


def test_tiles_wider_than_a_page_are_refused_where_sequences_are_whole():
    with pytest.raises(PefxError, match="tile"):
        pack([Span([1], 0, -1, [0])] * 2, **{**SIZES, "tile": 16}, whole=True)
