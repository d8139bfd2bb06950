"""Experts' projections at the shapes of two public bases, without adapters: decodes, a prefill and its gradient."""

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from kernels.expert_lora.block_sizes import TPU_CHUNKS, TPU_DECODE
from kernels.grouped_matmul.api import grouped_matmul
from kernels.tiles import TileMap, tile_map

# (D, F, experts, experts of a token) of a base on one chip; the second base's 256 experts are spread over eight.
BASES = {"qwen3-30b-a3b": (2048, 768, 128, 8), "deepseek-v3": (7168, 2048, 32, 1)}
LAYERS = 1
# Tokens, adapters among them, rows of a tile and of a subtile.
STEPS = {"decode 64": (64, 64, TPU_DECODE), "prefill 4096": (4096, 2, TPU_CHUNKS)}


def tiles_of(rows: int, adapters: int, experts: int, sizes: tuple[int, int]) -> TileMap:
    """Shapes of the map of `rows` rows that go to experts, as the layer makes it."""
    row = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def make(group, subgroup):
        return tile_map(group, subgroup, groups=experts, subgroups=adapters + 1, tile=sizes[0], subtile=sizes[1])

    return jax.eval_shape(make, row, row)


def cases() -> list[Case]:
    """Both projections of both bases in both steps, and the gradient of a prefill's rows."""
    found = []
    for base, (d, f, experts, copies) in BASES.items():
        for site, (inner, outer) in {"up_proj": (d, f), "down_proj": (f, d)}.items():
            for step, (rows, adapters, sizes) in STEPS.items():
                tiles = tiles_of(rows * copies, adapters, experts, sizes)
                places = tiles.source.shape[0]
                x, dy = (jax.ShapeDtypeStruct((places, n), jnp.bfloat16) for n in (inner, outer))
                w = jax.ShapeDtypeStruct((LAYERS * experts, inner, outer), jnp.bfloat16)
                arguments = (x, w, tiles, jax.ShapeDtypeStruct((), jnp.int32))
                name = f"{base} {site} {step}"
                found.append(Case("grouped_matmul", name, grouped_matmul, arguments, ("grouped_matmul",)))
                if step.startswith("prefill"):
                    kernels = ("grouped_matmul", "grouped_matmul_transposed")
                    found.append(Case("grouped_matmul", f"{name} gradient", _gradient, (*arguments, dy), kernels))
    return found


def _gradient(x, w, tiles, offset, dy):
    """The product and its gradient of x; in float32, so that none takes the place of a donated operand that is still
    to be read.
    """
    y, pull = jax.vjp(lambda x: grouped_matmul(x, w, tiles, offset), x)
    return y.astype(jnp.float32), pull(dy)[0].astype(jnp.float32)
