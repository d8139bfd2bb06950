"""The choice of keys against the oracle: packed sequences, chunks and decodes, ties, and pages of others."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.key_choice.api import choose
from kernels.key_choice.reference import chosen as reference
from pefx.batch import TokenBatch
from pefx.compiler import jit
from pefx.packing import Sizes, Span, pack, span_rows, whole_pages

PAGE, PAGES, HEADS, SIZE = 8, 40, 3, 10
WHOLE, BOTH = Sizes(0, 16, 4, 11, PAGE, PAGE), Sizes(4, 5, 4, 11, PAGE, PAGE)


def spans_of(lengths: list[int]) -> list[Span]:
    pages = np.random.default_rng(0).permutation(PAGES).tolist()
    return [Span(np.zeros(n, np.int32), 0, -1, [pages.pop() for _ in range(whole_pages(n, PAGE))]) for n in lengths]


def layout_of(spans, sizes):
    return TokenBatch(**pack(spans, sizes)).layout()


@jit
def step(q, weights, k, keys, layout, count):
    return choose(q, weights, k[:, None], keys, jnp.asarray(1, jnp.int32), layout, count.shape[0])


def numbers(rows: int, kind: str):
    """`ties`: small whole numbers, so that scores are exact and many are equal."""
    rng = np.random.default_rng(1)
    shapes = (rows, HEADS, SIZE), (rows, HEADS), (rows, SIZE)
    if kind == "ties":
        return [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("kind", "count"), [("plain", 5), ("ties", 5), ("plain", 60)])
def test_the_best_keys_are_chosen_and_the_first_of_equals(kind, count):
    spans = spans_of([40, 1, 9, 61])
    layout, (q, weights, k) = layout_of(spans, WHOLE), numbers(WHOLE.tokens, kind)
    pool = jnp.full((2, PAGES, 1, PAGE, SIZE), jnp.nan)
    got, after = step(q, weights, k, pool, layout, np.zeros(count))
    q, weights, k, positions = (jnp.asarray(x) for x in (q, weights, k, layout.positions))
    want = reference(q, weights, k, positions, layout.rows.of_each(), count)
    for span, row in zip(spans, span_rows(spans, WHOLE), strict=True):
        n = len(span.tokens)
        own = np.tril(np.asarray(got[row : row + n, :n]))
        np.testing.assert_array_equal(own, want[row : row + n, row : row + n])
        np.testing.assert_array_equal(own.sum(1), np.minimum(np.arange(n) + 1, count))
        np.testing.assert_array_equal(after[1, span.pages[0], 0, 0], k[row])
    assert np.isnan(after[0]).all()


def test_chunks_and_decodes_choose_as_the_whole_does():
    spans = spans_of([40, 23])
    layout, (q, weights, k) = layout_of(spans, WHOLE), numbers(WHOLE.tokens, "plain")
    count, pool = np.zeros(6), jnp.full((2, PAGES, 1, PAGE, SIZE), jnp.nan)
    whole, _ = step(q, weights, k, pool, layout, count)
    rows = span_rows(spans, WHOLE)
    for chunks in ([(0, 0, 13), (1, 0, 11)], [(0, 13, 39), (1, 11, 12)], [(1, 12, 13), (0, 39, 40)]):
        parts = [Span(np.zeros(end - start, np.int32), start, -1, spans[i].pages) for i, start, end in chunks]
        source = np.zeros(BOTH.tokens, np.int64)
        at = span_rows(parts, BOTH)
        for (i, start, end), row in zip(chunks, at, strict=True):
            source[row : row + end - start] = rows[i] + np.arange(start, end)
        got, pool = step(q[source], weights[source], k[source], pool, layout_of(parts, BOTH), count)
        for (_, start, end), row in zip(chunks, at, strict=True):
            for j in range(end - start):
                seen = start + j + 1
                np.testing.assert_array_equal(got[row + j, :seen], whole[source[row + j], :seen])
