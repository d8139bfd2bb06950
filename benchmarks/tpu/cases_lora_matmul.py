"""Mixed LoRA products at the shapes of real projections: two public bases, as served and as trained.

Served: 64 single rows and 4,096 rows in tiles of 128. Trained (`gradient`): the tiles alone.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from kernels.factors import Factors
from kernels.lora_matmul.api import expand, lora_matmul, shrink
from kernels.lora_matmul.block_sizes import SUMS
from kernels.rows import Rows

# (in, out) of a base's projections.
PROJECTIONS = {
    "qwen3-30b-a3b q_proj": (2048, 4096),
    "qwen3-30b-a3b k_proj": (2048, 512),
    "qwen3-30b-a3b o_proj": (4096, 2048),
    "deepseek-v3 q_a_proj": (7168, 1536),
    "deepseek-v3 q_b_proj": (1536, 24576),
    "deepseek-v3 kv_a_proj": (7168, 576),
    "deepseek-v3 kv_b_proj": (512, 32768),
    "deepseek-v3 o_proj": (16384, 7168),
}
# What an expert layer with a shared hidden-side factor runs for all its experts at once.
SHARED = {"qwen3-30b-a3b experts": (2048, 768)}
RANKS, SLOTS, LAYERS = (1, 16, 64), (1, 64, 256), 2
SINGLES, TILES, TILE = 64, 32, 128
BANKS = {"": jnp.bfloat16, " float32 bank": jnp.float32}


def cases() -> list[Case]:
    """Every projection at rank 16 and 64 slots, and each other rank and number of slots at both bank dtypes."""
    found = []
    for name, size in PROJECTIONS.items():
        for rank in RANKS:
            for slots in SLOTS:
                for bank, dtype in BANKS.items():
                    found += _whole(f"{name} rank {rank} {slots} slots{bank}", size, rank, slots, dtype)
    for name, size in SHARED.items():
        found += _halves(f"{name} rank 16 64 slots", size, 16, 64, jnp.bfloat16)
    return found


def _whole(name, size, rank, slots, dtype) -> list[Case]:
    """A projection served and trained."""
    found = []
    for gradient in (False, True):
        rows, owner = _rows(0 if gradient else SINGLES)
        y, x, a, b, scales, offset = _arrays(size, rank, slots, dtype, rows)

        def whole(y, x, a, b, scales, offset, owner, rows=rows):
            return lora_matmul(y, x, Factors(a, b, scales, offset), Rows(owner, rows[0], TILE))

        arguments = (y, x, a, b, scales, offset, owner)
        if not gradient:
            kernels = ("lora_rows", "lora_run")
            found.append(Case("lora_matmul", f"{name} decode 64 prefill 4096", whole, arguments, kernels))
            continue
        padded = -(-rank // 8) * 8
        fused = padded * sum(size) <= SUMS
        backward = ("lora_run_backward",) if fused else ("lora_run_expand_backward", "lora_run_shrink_backward")
        function = partial(_with_gradient, whole, 4)
        found.append(Case("lora_matmul", f"{name} gradient", function, (*arguments, y), ("lora_run", *backward)))
    return found


def _halves(name, size, rank, slots, dtype) -> list[Case]:
    """The two halves of a product, served and trained."""
    found = []
    for gradient in (False, True):
        rows, owner = _rows(0 if gradient else SINGLES)
        y, x, a, b, scales, offset = _arrays(size, rank, slots, dtype, rows)
        z = jax.ShapeDtypeStruct((y.shape[0], rank), x.dtype)

        def first(x, a, scales, offset, owner, rows=rows):
            return shrink(x, Factors(a, None, scales, offset), Rows(owner, rows[0], TILE))

        def second(y, z, b, scales, offset, owner, rows=rows):
            return expand(y, z, Factors(None, b, scales, offset), Rows(owner, rows[0], TILE))

        for half, function, arrays, result in (("shrink", first, (x, a), z), ("expand", second, (y, z, b), y)):
            arguments = (*arrays, scales, offset, owner)
            if gradient:
                kernels = (f"lora_run_{half}", f"lora_run_{half}_backward")
                function, arguments = partial(_with_gradient, function, len(arrays)), (*arguments, result)
            else:
                kernels = (f"lora_rows_{half}", f"lora_run_{half}")
            ending = "gradient" if gradient else "decode 64 prefill 4096"
            found.append(Case("lora_matmul", f"{name} {half} {ending}", function, arguments, kernels))
    return found


def _with_gradient(function, differentiable: int, *arguments):
    """The function's value and its gradients of its first arguments; the last argument is the value's gradient."""
    *given, cotangent = arguments
    head, rest = given[:differentiable], given[differentiable:]
    value, pull = jax.vjp(lambda *head: function(*head, *rest), *head)
    return value, pull(cotangent)


def _rows(singles: int):
    return (singles, TILES), jax.ShapeDtypeStruct((singles + TILES,), jnp.int32)


def _arrays(size, rank, slots, dtype, rows):
    """(y, x, a, b, scales, offset) as shapes; y and x are bfloat16."""
    inner, outer = size
    count = rows[0] + rows[1] * TILE
    shape = jax.ShapeDtypeStruct
    return (
        shape((count, outer), jnp.bfloat16),
        shape((count, inner), jnp.bfloat16),
        shape((LAYERS * slots, rank, inner), dtype),
        shape((LAYERS * slots, rank, outer), dtype),
        shape((slots,), jnp.float32),
        shape((), jnp.int32),
    )
