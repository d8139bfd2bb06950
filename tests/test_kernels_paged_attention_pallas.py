"""The TPU's attention kernels in the interpreter: values, gradients, laws as for the portable form, and no races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreted

from kernels.implementation import INTERPRETED, implementation
from kernels.paged_attention import block_sizes
from kernels.paged_attention.api import attend
from kernels.paged_attention.reference import attention as reference
from kernels.paged_attention.xla import Latent, Layout
from kernels.rows import Rows
from pefx.batch import TokenBatch
from pefx.compiler import jit
from pefx.packing import Sizes, Span, pack, span_rows, whole_pages

PAGE, PAGES, LAYER = 8, 12, 1
# (query heads, key heads, head size): three queries to a key, and 128 numbers, as the kernels need.
HEADS = (6, 2, 128)
WHOLE = Sizes(0, 4, 3, 4, PAGE, PAGE)
BOTH = Sizes(4, 4, 6, 4, PAGE, PAGE)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two pages."""
    for name in ("KEYS", "KEYS_OF_GRADIENT"):
        monkeypatch.setattr(block_sizes, name, 2 * PAGE)


@pytest.fixture
def parts(monkeypatch, small_blocks):
    """A key head and eight queries at a time, and products of fewer rows than those have."""
    monkeypatch.setattr(block_sizes, "QUERY_BYTES", 1)
    monkeypatch.setattr(block_sizes, "ROWS", 16)


def in_the_interpreter(function, *arguments):
    """What a compiled function of interpreted kernels returns, finished before anything else is compiled; no race."""
    with implementation(INTERPRETED):
        found = jax.block_until_ready(function(*arguments))
    assert interpreted.races is None or not interpreted.races.races_found
    return found


def attention(q, k, v, layout):
    """o, and the pool, in which pages of nobody hold NaN: whoever reads them shows it."""
    pool = jnp.full((LAYER + 1, PAGES, HEADS[1], PAGE, HEADS[2]), jnp.nan, q.dtype)
    o, keys, values = attend(q, k, v, pool, pool, jnp.asarray(LAYER, jnp.int32), layout)
    return o, (keys, values)


def with_gradients(q, k, v, layout, do):
    o, pull, pool = jax.vjp(lambda q, k, v: attention(q, k, v, layout), q, k, v, has_aux=True)
    return o, pull(do), pool


@jit
def oracle(q, k, v, positions, sequences, do):
    live = (positions >= 0)[:, None, None]
    q, k, v, do = (jnp.where(live, x.astype(jnp.float32), 0) for x in (q, k, v, do))
    o, pull = jax.vjp(lambda q, k, v: reference(q, k, v, positions, sequences), q, k, v)
    return o, pull(do)


def spans_of(lengths, rng) -> list[Span]:
    pages = rng.permutation(PAGES).tolist()
    return [Span(np.zeros(n, np.int32), 0, -1, [pages.pop() for _ in range(whole_pages(n, PAGE))]) for n in lengths]


def layout_of(spans, sizes) -> Layout:
    return TokenBatch(**pack(spans, sizes)).layout()


def numbers(rng, rows: int, dtype):
    """q, k, v and the gradient of o."""
    h, g, size = HEADS
    return [jnp.asarray(rng.normal(size=(rows, heads, size)), dtype) for heads in (h, g, g, h)]


def draw_lengths(data) -> list[int]:
    """One long sequence of several blocks, or up to two short ones."""
    short = st.lists(st.integers(1, 2 * PAGE), max_size=2)
    return data.draw(st.one_of(st.tuples(st.integers(2 * PAGE + 1, 4 * PAGE)), short))


def assert_close(got, want, dtype):
    tolerance = 4e-6 if dtype == jnp.float32 else 2e-2
    want = np.asarray(want)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


whole = jit(with_gradients)  # of WHOLE in small blocks


def check_values_and_gradients(kernel, sizes, dtype):
    @settings(max_examples=2)
    @given(data=st.data())
    def run(data):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        spans = spans_of(draw_lengths(data), rng)
        layout = layout_of(spans, sizes)
        q, k, v, do = numbers(rng, sizes.tokens, dtype)
        o, gradients, pool = in_the_interpreter(kernel, q, k, v, layout, do)
        want, want_gradients = oracle(q, k, v, layout.positions, layout.rows.of_each(), do)
        live = np.asarray(layout.positions) >= 0
        for got, wanted in zip((o, *gradients), (want, *want_gradients), strict=True):
            assert got.dtype == dtype
            assert_close(got, wanted, dtype)
            assert not np.asarray(got, np.float32)[~live].any()
        for got, new in zip(pool, (k, v), strict=True):
            expected = np.full(got.shape, np.nan, np.float32)
            for span, row in zip(spans, span_rows(spans, sizes), strict=True):
                for i in range(len(span.tokens)):
                    expected[LAYER, span.pages[i // PAGE], :, i % PAGE] = new[row + i]
            np.testing.assert_array_equal(np.asarray(got, np.float32), expected)

    run()


def test_values_gradients_and_pool_of_packed_sequences(small_blocks):
    check_values_and_gradients(whole, WHOLE, jnp.float32)


def test_values_and_gradients_in_parts(parts):
    check_values_and_gradients(jit(with_gradients), Sizes(0, 2, 3, 4, PAGE, 2 * PAGE), jnp.bfloat16)


def test_chunked_prefill_then_decode_gives_the_bits_of_the_whole(small_blocks):
    rng = np.random.default_rng(0)
    spans, step = spans_of([19, 8], rng), jit(attend)
    q, k, v, _ = numbers(rng, BOTH.tokens, jnp.float32)
    empty = jnp.full((LAYER + 1, PAGES, HEADS[1], PAGE, HEADS[2]), jnp.nan, q.dtype)
    layout, rows = layout_of(spans, BOTH), span_rows(spans, BOTH)
    layer = jnp.asarray(LAYER, jnp.int32)
    o, *pool = in_the_interpreter(step, q, k, v, empty, empty, layer, layout)
    want, _ = oracle(q, k, v, layout.positions, layout.rows.of_each(), q)
    assert_close(o, want, jnp.float32)
    keys, values = empty, empty
    # Chunks that begin and end within pages, beside decodes; then a decode alone, and tiles of nobody.
    for chunks in ([(0, 0, 5), (1, 0, 7)], [(0, 5, 18), (1, 7, 8)], [(0, 18, 19)]):
        parts = [Span(np.zeros(end - start, np.int32), start, -1, spans[i].pages) for i, start, end in chunks]
        here, source = np.zeros(BOTH.tokens, bool), np.zeros(BOTH.tokens, np.int64)
        for (i, start, end), row in zip(chunks, span_rows(parts, BOTH), strict=True):
            here[row : row + end - start] = True
            source[row : row + end - start] = rows[i] + np.arange(start, end)
        arrays = (x[source] for x in (q, k, v))
        part, keys, values = in_the_interpreter(step, *arrays, keys, values, layer, layout_of(parts, BOTH))
        np.testing.assert_array_equal(np.asarray(part)[here], np.asarray(o)[source[here]])
        assert not np.asarray(part)[~here].any()
    for got, wanted in zip((keys, values), pool, strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_bits_do_not_depend_on_the_others_nor_on_the_place(small_blocks):
    rng = np.random.default_rng(1)
    mine = [jnp.asarray(x) for x in numbers(rng, 17, jnp.float32)]
    found = []
    for lengths, others in (([17], 0), ([4, 17], 1), ([17, 3], np.nan)):
        spans = spans_of(lengths, rng)
        row = span_rows(spans, WHOLE)[lengths.index(17)]
        arrays = [jnp.full((WHOLE.tokens, *x.shape[1:]), others, x.dtype).at[row : row + 17].set(x) for x in mine]
        q, k, v, do = (jnp.where((layout_of(spans, WHOLE).positions >= 0)[:, None, None], x, 0) for x in arrays)
        o, gradients, _ = in_the_interpreter(whole, q, k, v, layout_of(spans, WHOLE), do)
        found.append([np.asarray(x[row : row + 17]) for x in (o, *gradients)])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_latent_keys_hold_their_values(small_blocks):
    """Eight query heads, one at a time; a value is half a key."""
    rng, how = np.random.default_rng(2), Latent(128, 0.1)
    spans = spans_of([19, 8], rng)
    layout = layout_of(spans, WHOLE)
    q, k, do = (
        jnp.asarray(rng.normal(size=(WHOLE.tokens, *shape)), jnp.float32) for shape in ((8, 256), (1, 256), (8, 128))
    )

    @jit
    def latent(q, k, layout, do):
        pool = jnp.full((LAYER + 1, PAGES, 1, PAGE, 256), jnp.nan)
        layer = jnp.asarray(LAYER, jnp.int32)
        attended = lambda q, k: attend(q, k, None, pool, None, layer, layout, how)[:2]  # noqa: E731
        o, pull, keys = jax.vjp(attended, q, k, has_aux=True)
        return o, keys, pull(do)

    @jit
    def wanted(q, k, positions, sequences, do):
        live = (positions >= 0)[:, None, None]
        q, k, do = (jnp.where(live, x, 0) for x in (q, k, do))
        o, pull = jax.vjp(lambda q, k: reference(q, k, k[..., :128], positions, sequences, how.scale), q, k)
        return o, pull(do)

    o, keys, gradients = in_the_interpreter(latent, q, k, layout, do)
    want, others = wanted(q, k, layout.positions, layout.rows.of_each(), do)
    live = np.asarray(layout.positions) >= 0
    for got, other in zip((o, *gradients), (want, *others), strict=True):
        assert_close(got, other, jnp.float32)
        assert not np.asarray(got)[~live].any()
    first = span_rows(spans, WHOLE)[0]
    np.testing.assert_array_equal(keys[LAYER, spans[0].pages[0], 0], k[first : first + PAGE, 0])


def refused(size=128, page=8, tile=8, dtype=jnp.float32, blocks=1):
    q, k, pool = jnp.zeros((tile, 2, size), dtype), jnp.zeros((tile, 1, size), dtype), (1, 2, 1, page, size)
    owner, positions = jnp.zeros(1, jnp.int32), jnp.zeros(tile, jnp.int32)
    layout = Layout(positions, Rows(owner, 0, tile), jnp.zeros((1, blocks), jnp.int32), jnp.ones(1, jnp.int32))
    keys = jnp.zeros(pool, dtype)
    with implementation(INTERPRETED):
        return jax.eval_shape(lambda q: attend(q, k, k, keys, keys, jnp.int32(0), layout), q)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"size": 64}, "heads of 64"),
        ({"page": 4}, "pages of 4"),
        ({"tile": 4}, "tiles of 4"),
        ({"dtype": jnp.float16}, "float16"),
        ({"blocks": block_sizes.TABLE + 1}, "a padded table of"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        refused(**shape)


def test_block_sizes():
    assert block_sizes.keys_at_once(32) == 256
    assert block_sizes.keys_at_once(512) == 512
    assert block_sizes.heads_at_once(4, 256, 256, 256) == 4
    assert block_sizes.heads_at_once(128, 128, 256, 256) == 8
    assert block_sizes.queries_at_once(128, 8, 256) == 128
    assert block_sizes.queries_at_once(128, 8, 512) == 128
    assert block_sizes.queries_at_once(128, 8, 1024) == 64
