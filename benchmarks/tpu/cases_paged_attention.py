"""Paged attention at the shapes of public bases: a prompt, decodes at a long context, and training.

Prompts are 4,096 tokens, decodes 64 rows whose sequences have up to 4,096 tokens, in pages of 32. How they fall into
sequences is data. The second base's keys and values are those of plain heads, as its prompts may compute them; latent,
it is as pefx computes all of it.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from kernels.paged_attention.api import attend
from kernels.paged_attention.xla import Latent, Layout
from kernels.rows import Rows

# (query heads, key heads, head size)
HEADS = {"qwen3-30b-a3b": (32, 4, 128), "deepseek-v3": (128, 128, 128)}
# A latent and a rotated part, 512 + 64 numbers, as the pool holds them.
LATENT = {"deepseek-v3 latent": ((128, 1, 640), Latent(512, 192**-0.5))}
LAYERS, PAGE, CONTEXT, TOKENS, SINGLES = 2, 32, 4096, 4096, 64
TILES = (32, 128)
POOL = 2 << 30  # bytes of the largest pool of keys: a compiler refuses what no chip holds


def cases() -> list[Case]:
    """Both bases served and trained, in bfloat16; the first one in float32 too."""
    found = []
    for name, heads in HEADS.items():
        found.append(_served(f"{name} decode {SINGLES} x {CONTEXT}", heads, jnp.bfloat16, SINGLES, 0, 32))
        for tile in TILES:
            found.append(_served(f"{name} prefill {TOKENS} tiles of {tile}", heads, jnp.bfloat16, 0, TOKENS, tile))
            found.append(_trained(f"{name} gradient {TOKENS} tiles of {tile}", heads, jnp.bfloat16, tile))
    for name, (heads, latent) in LATENT.items():
        found.append(_served(f"{name} decode {SINGLES} x {CONTEXT}", heads, jnp.bfloat16, SINGLES, 0, 32, latent))
        found.append(_served(f"{name} prefill {TOKENS} tiles of 32", heads, jnp.bfloat16, 0, TOKENS, 32, latent))
        found.append(_trained(f"{name} gradient {TOKENS} tiles of 32", heads, jnp.bfloat16, 32, latent))
    name, heads = next(iter(HEADS.items()))
    found.append(_served(f"{name} float32 decode {SINGLES} prefill {TOKENS}", heads, jnp.float32, SINGLES, TOKENS, 32))
    found.append(_trained(f"{name} float32 gradient {TOKENS}", heads, jnp.float32, 32))
    return found


def _served(name, heads, dtype, singles: int, tokens: int, tile: int, latent: Latent | None = None) -> Case:
    kernels = (
        *(("paged_attention_rows",) if singles else ()),
        *(("paged_attention_write", "paged_attention") if tokens else ()),
    )
    function = partial(_attend, (singles, tile), latent)
    return Case("paged_attention", name, function, _arguments(heads, dtype, (singles, tokens, tile), latent), kernels)


def _trained(name, heads, dtype, tile: int, latent: Latent | None = None) -> Case:
    q, new, _, layer, layout = _arguments(heads, dtype, (0, TOKENS, tile), latent)
    o = q if latent is None else jax.ShapeDtypeStruct((*q.shape[:2], latent.values), dtype)
    kernels = ("paged_attention_write", "paged_attention", "paged_attention_dq", "paged_attention_dkv")
    return Case("paged_attention", name, partial(_with_gradient, tile, latent), (q, new, layer, layout, o), kernels)


def _attend(sizes, latent, q, new, pools, layer, layout):
    positions, owner, pages, lengths = layout
    (k, v), (keys, values) = ((new[0], None), (pools[0], None)) if latent is not None else (new, pools)
    return attend(q, k, v, keys, values, layer, Layout(positions, Rows(owner, *sizes), pages, lengths), latent)


def _with_gradient(tile: int, latent, q, new, layer, layout, do):
    """What training computes: the pool is fresh, and nobody's afterwards."""
    k = new[0]
    pool = jnp.zeros((1, TOKENS // PAGE, k.shape[1], PAGE, k.shape[2]), k.dtype)
    pools = (pool,) * len(new)
    o, pull = jax.vjp(lambda q, new: _attend((0, tile), latent, q, new, pools, layer, layout)[0], q, new)
    return o, pull(do)


def _arguments(heads, dtype, sizes, latent):
    """q, (k, v), (keys, values), layer, (positions, owner, pages, lengths) as shapes; k and keys alone if latent."""
    queries, groups, size = heads
    singles, tokens, tile = sizes
    rows, sequences, arrays = singles + tokens, max(singles, 16), 1 if latent is not None else 2
    page_bytes = LAYERS * groups * PAGE * size * jnp.dtype(dtype).itemsize
    pages = min(SINGLES * CONTEXT // PAGE, POOL // page_bytes)
    pool = jax.ShapeDtypeStruct((LAYERS, pages, groups, PAGE, size), dtype)
    q, k = (jax.ShapeDtypeStruct((rows, heads, size), dtype) for heads in (queries, groups))
    shapes = (rows,), (singles + tokens // tile,), (sequences, CONTEXT // PAGE), (sequences,)
    layout = tuple(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)
    return q, (k,) * arrays, (pool,) * arrays, jax.ShapeDtypeStruct((), jnp.int32), layout
