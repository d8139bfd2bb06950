"""The kernels of one layer of Qwen3-30B-A3B at the shapes of a decode of 64 rows and of a prefill of 4,096 tokens."""

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from benchmarks.tpu.cases import LAYER
from benchmarks.tpu.layer import (
    EXPERT_SITES,
    EXPERTS,
    FORMS,
    HIDDEN,
    LAYERS,
    PREFILL_TILE,
    RANK,
    SITES,
    SLOTS,
    Step,
    tiles_of,
)
from kernels.expert_lora.api import expert_lora
from kernels.factors import Factors
from kernels.grouped_matmul.api import grouped_matmul
from kernels.lora_matmul.api import expand, lora_matmul, shrink
from kernels.rows import Rows

KINDS = {"decode": (64, 0), "prefill": (0, 4096)}  # single rows, rows in tiles


def array(shape: tuple[int, ...], kind=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind)


def _rows(kind: str) -> tuple[Rows, int]:
    """Rows owned by slots, and their number."""
    singles, tiled = KINDS[kind]
    owner = array((singles + tiled // PREFILL_TILE,), jnp.int32)
    return Rows(owner, singles, PREFILL_TILE), singles + tiled  # pyright: ignore[reportArgumentType]


def _factors(inner: int | None, outer: int | None) -> Factors:
    """One site's factors of all layers and slots, a missing one None."""
    a, b = (None if width is None else array((LAYERS * SLOTS, RANK, width)) for width in (inner, outer))
    return Factors(a, b, array((SLOTS,), jnp.float32), array((), jnp.int32))  # pyright: ignore[reportArgumentType]


def _lora(kind: str, site: str) -> Case:
    rows, count = _rows(kind)
    inner, outer = SITES[site]
    arguments = (array((count, outer)), array((count, inner)), _factors(inner, outer), rows)
    name = "lora_rows" if kind == "decode" else "lora_run"
    return Case(LAYER, f"{kind}/{site}", lora_matmul, arguments, (name,))


def _halves(kind: str) -> list[Case]:
    """The halves of the product at an expert site whose hidden-side factor is shared."""
    rows, count = _rows(kind)
    name = "lora_rows" if kind == "decode" else "lora_run"
    return [
        Case(
            LAYER,
            f"{kind}/shrink",
            shrink,
            (array((count, HIDDEN)), _factors(HIDDEN, None), rows),
            (f"{name}_shrink",),
        ),
        Case(
            LAYER,
            f"{kind}/expand",
            expand,
            (array((count, HIDDEN)), array((count, RANK)), _factors(None, HIDDEN), rows),
            (f"{name}_expand",),
        ),
    ]


def _experts(kind: str, site: str, form: str) -> Case:
    """An expert's projection (gate's is up's), bare or with the adapters of a form."""
    step = Step(KINDS[kind][0] or KINDS[kind][1], SLOTS, kind == "decode")
    tiles = jax.eval_shape(lambda: tiles_of(step, form != "base"))
    places, (inner, outer) = tiles.source.shape[0], EXPERT_SITES[site]
    x, w = array((places, inner)), array((EXPERTS, inner, outer))  # of one layer: of all of them no chip has room
    offset = array((), jnp.int32)
    if form == "base":
        return Case(LAYER, f"{kind}/{site} base", grouped_matmul, (x, w, tiles, offset), ("grouped_matmul",))
    shared = form == "shared_hidden"
    a = None if shared and inner == HIDDEN else array((SLOTS, EXPERTS, RANK, inner))
    b = None if shared and outer == HIDDEN else array((SLOTS, EXPERTS, RANK, outer))
    factors = Factors(a, b, array((SLOTS,), jnp.float32), offset)  # pyright: ignore[reportArgumentType]
    z = array((places, RANK)) if a is None else None
    return Case(LAYER, f"{kind}/{site} {form}", expert_lora, (x, z, w, factors, tiles, offset), ("expert_lora",))


def cases() -> list[Case]:
    """Shapes of the projections (v's are k's, gate's are up's) and of the halves, as decodes and as a prefill."""
    found = []
    for kind in KINDS:
        found += [*(_lora(kind, site) for site in ("q", "k", "o")), *_halves(kind)]
        found += [_experts(kind, site, form) for site in ("up", "down") for form in FORMS]
    return found
