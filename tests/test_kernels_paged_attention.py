"""Paged attention against softmax over whole sequences: packed, chunked, decoded, and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_attention.api import attend
from kernels.paged_attention.reference import attention as reference
from kernels.paged_attention.xla import MAX_ROWS, Latent, query_tile
from pefx.batch import TokenBatch
from pefx.compiler import jit
from pefx.packing import Sizes, Span, pack, span_rows, whole_pages

TO_THE_BIT = True

PAGE, PAGES, BLOCKS, SEQUENCES, LAYERS = 8, 40, 11, 4, 2
TOKENS = 128  # of the whole layout
CHUNKS, SINGLES = Sizes(0, 5, 4, 11, 8, 8), Sizes(4, 0, 4, 11, 8, 8)  # of a step of prompts, and of decodes
BOTH = Sizes(4, 5, 4, 11, 8, 8)
WHOLE = Sizes(0, TOKENS // PAGE, SEQUENCES, BLOCKS, PAGE, PAGE)
LAYER = 1
# (query heads, key heads, head size): groups of three with an odd size, and one query head to a key head.
HEADS = [(6, 2, 16), (2, 2, 8)]


@jit
def _step(q, k, v, keys, values, layout):
    return attend(q, k, v, keys, values, jnp.asarray(LAYER, jnp.int32), layout)


@jit
def _whole(q, k, v, keys, values, layout, do):
    def run(q, k, v):
        o, keys_after, values_after = attend(q, k, v, keys, values, jnp.asarray(LAYER, jnp.int32), layout)
        return o, (keys_after, values_after)

    o, pull, pool = jax.vjp(run, q, k, v, has_aux=True)
    return o, pool, pull(do)


@jit
def _oracle(q, k, v, positions, sequences, do):
    live = (positions >= 0)[:, None, None]
    q, k, v = (jnp.where(live, x.astype(jnp.float32), 0) for x in (q, k, v))
    o, pull = jax.vjp(lambda q, k, v: reference(q, k, v, positions, sequences), q, k, v)
    return o, pull(jnp.where(live, do.astype(jnp.float32), 0))


def dirty_pool(heads, dtype):
    """Pages of nobody hold NaN: whoever reads them shows it."""
    return jnp.full((LAYERS, PAGES, heads[1], PAGE, heads[2]), jnp.nan, dtype)


def draw_lengths(data: st.DataObject) -> list[int]:
    """Up to `SEQUENCES` lengths that fit the whole layout: one giant of several key blocks, single tokens, or any."""
    kind = data.draw(st.sampled_from(["any", "giant", "single"]))
    if kind == "giant":
        return [data.draw(st.integers(65, 87)), data.draw(st.integers(1, 16))]
    if kind == "single":
        return [1] * data.draw(st.integers(1, SEQUENCES))
    return data.draw(st.lists(st.integers(1, 32), min_size=1, max_size=SEQUENCES))


def layout_of(spans, sizes):
    return TokenBatch(**pack(spans, sizes)).layout()


def draw_whole(data: st.DataObject, heads, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pages = rng.permutation(PAGES).tolist()
    lengths = draw_lengths(data)
    spans = [Span(np.zeros(n, np.int32), 0, -1, [pages.pop() for _ in range(whole_pages(n, PAGE))]) for n in lengths]
    h, g, size = heads
    shapes = [(TOKENS, h, size), (TOKENS, g, size), (TOKENS, g, size), (TOKENS, h, size)]
    return spans, [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def assert_close(got, want, dtype):
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    want = np.asarray(want)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


@pytest.mark.parametrize(
    ("heads", "dtype"), [(HEADS[0], jnp.float32), (HEADS[1], jnp.float32), (HEADS[0], jnp.bfloat16)], ids=str
)
@settings(max_examples=20)
@given(data=st.data())
def test_values_gradients_and_pool_of_packed_sequences(heads, dtype, data):
    spans, (q, k, v, do) = draw_whole(data, heads, dtype)
    layout = layout_of(spans, WHOLE)
    pool = dirty_pool(heads, dtype)
    o, (keys, values), gradients = _whole(q, k, v, pool, pool, layout, do)
    want, want_gradients = _oracle(q, k, v, layout.positions, layout.rows.of_each(), do)
    live = np.asarray(layout.positions) >= 0
    assert o.dtype == dtype
    assert_close(o[live], np.asarray(want)[live], dtype)
    for got, wanted in zip(gradients, want_gradients, strict=True):
        assert got.dtype == dtype
        assert_close(got[live], np.asarray(wanted)[live], dtype)
        assert not np.asarray(got, np.float32)[~live].any()
    for got, new in ((keys, k), (values, v)):
        expected = np.full(pool.shape, np.nan, np.float32)
        for span, row in zip(spans, span_rows(spans, WHOLE), strict=True):
            for position in range(len(span.tokens)):
                expected[LAYER, span.pages[position // PAGE], :, position % PAGE] = new[row + position]
        np.testing.assert_array_equal(np.asarray(got, np.float32), expected)


@pytest.mark.parametrize(("heads", "dtype"), [(HEADS[0], jnp.float32), (HEADS[1], jnp.bfloat16)], ids=str)
@settings(max_examples=10)
@given(data=st.data())
def test_chunked_prefill_then_decode_gives_the_bits_of_the_whole(heads, dtype, data):
    spans, (q, k, v, do) = draw_whole(data, heads, dtype)
    layout = layout_of(spans, WHOLE)
    keys = values = dirty_pool(heads, dtype)
    whole, pool, _ = _whole(q, k, v, keys, values, layout, do)
    rows = span_rows(spans, WHOLE)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    done, seen = [0] * len(spans), np.zeros(whole.shape, np.float32)
    while waiting := [i for i, span in enumerate(spans) if done[i] < len(span.tokens)]:
        sizes = [CHUNKS, SINGLES, BOTH][rng.integers(3)]
        left, chunks = sizes.tiles, []
        for i in rng.permutation(waiting).tolist():
            rest = len(spans[i].tokens) - done[i]
            size = 1 if not left else min(rest, int(rng.integers(1, PAGE + 4)))
            if size > 1 or not sizes.singles:
                left -= whole_pages(size, sizes.tile)
            if left < 0:
                break
            chunks.append((i, size))
        parts = [Span(spans[i].tokens[:n], done[i], -1, spans[i].pages) for i, n in chunks]
        index, back = np.zeros(sizes.tokens, np.int64), []
        for (i, n), row in zip(chunks, span_rows(parts, sizes), strict=True):
            index[row : row + n] = rows[i] + done[i] + np.arange(n)
            back += [(rows[i] + done[i] + j, row + j) for j in range(n)]
            done[i] += n
        o, keys, values = _step(q[index], k[index], v[index], keys, values, layout_of(parts, sizes))
        for at, row in back:
            seen[at] = np.asarray(o[row], np.float32)
    live = np.asarray(layout.positions) >= 0
    np.testing.assert_array_equal(seen[live], np.asarray(whole, np.float32)[live])
    np.testing.assert_array_equal(np.asarray(keys, np.float32), np.asarray(pool[0], np.float32))
    np.testing.assert_array_equal(np.asarray(values, np.float32), np.asarray(pool[1], np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("size", [8, 16, 32, 48, 96])
def test_a_query_of_a_wide_tile_has_the_bits_of_one_alone(size, dtype):
    """32 queries of 3 heads are 96 rows of a product, one is 3: widths of heads that are no whole registers tell."""
    wide, alone, page = Sizes(0, 2, 1, 2, 32, 32), Sizes(4, 0, 1, 2, 32, 32), 32
    rng = np.random.default_rng(size)
    q, k, v = (jnp.asarray(rng.normal(size=(2 * page, n, size)), dtype) for n in (6, 2, 2))
    keys = values = jnp.full((LAYERS, 2, 2, page, size), jnp.nan, dtype)
    whole, keys, values = _step(q, k, v, keys, values, layout_of([Span(np.zeros(64, np.int32), 0, -1, [0, 1])], wide))
    for last in (1, 30, 63):
        one = [jnp.broadcast_to(x[last], (4, *x.shape[1:])) for x in (q, k, v)]
        pages = [0, 1][: last // page + 1]
        o, _, _ = _step(*one, keys, values, layout_of([Span(np.zeros(1, np.int32), last, -1, pages)], alone))
        np.testing.assert_array_equal(np.asarray(o[0], np.float32), np.asarray(whole[last], np.float32))


def test_padding_writes_nothing_and_gives_zeros():
    heads = HEADS[0]
    layout = layout_of([], BOTH)
    pool = jnp.asarray(np.random.default_rng(0).normal(size=dirty_pool(heads, jnp.float32).shape), jnp.float32)
    ones = [jnp.ones((BOTH.tokens, n, heads[2])) for n in (heads[0], heads[1], heads[1])]
    o, keys, values = _step(*ones, pool, pool, layout)
    np.testing.assert_array_equal(o, np.zeros(o.shape))
    np.testing.assert_array_equal(keys, pool)
    np.testing.assert_array_equal(values, pool)


@pytest.mark.parametrize(("heads", "kv_heads", "tile"), [(6, 2, 32), (32, 4, 16), (64, 1, 2), (256, 1, 1), (4, 4, 32)])
def test_a_query_tile_keeps_within_the_rows_that_keep_their_bits(heads, kv_heads, tile):
    assert query_tile(32, heads, kv_heads) == tile
    assert tile == 1 or tile * heads // kv_heads <= MAX_ROWS


LATENT, HOW = (3, 1, 24), Latent(18, 0.3)


@jit
def _latent(q, k, keys, layout, do):
    def run(q, k):
        o, after, none = attend(q, k, None, keys, None, jnp.asarray(LAYER, jnp.int32), layout, HOW)
        assert none is None
        return o, after

    o, pull, pool = jax.vjp(run, q, k, has_aux=True)
    return o, pool, pull(do)


@jit
def _latent_oracle(q, k, positions, sequences, do):
    live = (positions >= 0)[:, None, None]
    q, k = (jnp.where(live, x.astype(jnp.float32), 0) for x in (q, k))
    attended = lambda q, k: reference(q, k, k[..., : HOW.values], positions, sequences, HOW.scale)  # noqa: E731
    o, pull = jax.vjp(attended, q, k)
    return o, pull(jnp.where(live, do.astype(jnp.float32), 0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@settings(max_examples=4)
@given(data=st.data())
def test_latent_keys_hold_their_values(dtype, data):
    spans, (q, k, _, do) = draw_whole(data, LATENT, dtype)
    do = do[..., : HOW.values]
    layout, pool = layout_of(spans, WHOLE), dirty_pool(LATENT, dtype)
    o, keys, gradients = _latent(q, k, pool, layout, do)
    want, want_gradients = _latent_oracle(q, k, layout.positions, layout.rows.of_each(), do)
    live = np.asarray(layout.positions) >= 0
    for got, wanted in zip((o, *gradients), (want, *want_gradients), strict=True):
        assert got.dtype == dtype
        # Of a token alone gradients are zero, a difference of two equal sums of other lengths.
        tolerance = (1e-5 if dtype == jnp.float32 else 2e-2) * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(np.asarray(got, np.float32)[live], np.asarray(wanted)[live], rtol=0, atol=tolerance)
        assert not np.asarray(got, np.float32)[~live].any()
    first = span_rows(spans, WHOLE)[0]
    np.testing.assert_array_equal(np.asarray(keys[LAYER, spans[0].pages[0], :, 0]), np.asarray(k[first]))


def test_values_come_with_keys_or_beside_them():
    layout, pool = layout_of([], BOTH), dirty_pool(LATENT, jnp.float32)
    q, k = jnp.ones((BOTH.tokens, 3, 24)), jnp.ones((BOTH.tokens, 1, 24))
    with pytest.raises(ValueError, match="values come with their keys"):
        attend(q, k, k, pool, pool, jnp.asarray(LAYER, jnp.int32), layout, HOW)
    with pytest.raises(ValueError, match="values come with their keys"):
        attend(q, k, None, pool, None, jnp.asarray(LAYER, jnp.int32), layout)
