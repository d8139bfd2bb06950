"""One layer of Qwen3-30B-A3B as a mixed step runs it: which kernels at which shapes, and how often each turns.

Numbers of experts hit, tiles and visits come from a seeded draw of routes through the real grouping, not from averages.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from benchmarks.tpu.bound import Term, dynamic_grid, static_grid
from benchmarks.tpu.schedule import Schedule
from kernels.expert_lora.block_sizes import RUNS, TPU_CHUNKS, TPU_DECODE
from kernels.lora_matmul import block_sizes
from kernels.tiles import TileMap, tile_map

HIDDEN, HEADS, KEY_HEADS, HEAD, EXPERTS, CHOSEN, EXPERT_HIDDEN, LAYERS = 2048, 32, 4, 128, 128, 8, 768, 48
RANK, SLOTS = 16, 64
PREFILL_TILE = 64  # tokens of a sequence of a prefill, all of which lie together in one tile: the least attention
# Projections of attention: input and output width.
SITES = {
    "q": (HIDDEN, HEADS * HEAD),
    "k": (HIDDEN, KEY_HEADS * HEAD),
    "v": (HIDDEN, KEY_HEADS * HEAD),
    "o": (HEADS * HEAD, HIDDEN),
}
SEED = 0
FORMS = ("base", "per_expert", "shared_hidden")
# Projections of an expert: input and output width.
EXPERT_SITES = {"gate": (HIDDEN, EXPERT_HIDDEN), "up": (HIDDEN, EXPERT_HIDDEN), "down": (EXPERT_HIDDEN, HIDDEN)}


@dataclass(frozen=True)
class Step:
    """`tokens` rows of `adapters` distinct adapters: decodes over `context` earlier tokens, or a prefill."""

    tokens: int
    adapters: int
    decode: bool
    context: int = 0

    @property
    def name(self) -> str:
        if self.decode:
            return f"decode {self.tokens} rows, {self.adapters} adapters, context {self.context}"
        return f"prefill {self.tokens} tokens, {self.adapters} adapters"


STEPS = (
    Step(64, 64, True, 0),
    Step(64, 64, True, 4096),
    *(Step(4096, adapters, False) for adapters in (1, 2, 8, 64)),
)


def routes(step: Step) -> np.ndarray:
    """`[T, k]` distinct experts of each token, drawn evenly."""
    generator = np.random.default_rng(SEED)
    return np.argsort(generator.random((step.tokens, EXPERTS)), axis=1)[:, :CHOSEN].astype(np.int32)


def slots(step: Step) -> np.ndarray:
    """`[T]` the slot of each token: an adapter's tokens lie together."""
    return (np.arange(step.tokens) * step.adapters // step.tokens).astype(np.int32)


@functools.cache
def tiles_of(step: Step, mixed: bool) -> TileMap:
    """The step's copies of tokens grouped by expert, or by (expert, slot), as the layer groups them on a TPU."""
    tile, subtile = TPU_DECODE if step.decode else TPU_CHUNKS
    group = jnp.asarray(routes(step).reshape(-1))
    if not mixed:
        return tile_map(group, groups=EXPERTS, tile=tile)
    subgroup = jnp.asarray(np.repeat(slots(step), CHOSEN) + 1)
    return tile_map(group, subgroup, groups=EXPERTS, subgroups=SLOTS + 1, tile=tile, subtile=subtile)


@dataclass(frozen=True)
class Grouping:
    """What the grouping comes to."""

    places: int  # rows of the buffer, dead ones too
    rows: int  # in live tiles, with those that fill them
    experts: int  # that have a row
    runs: np.ndarray  # of each live tile, how many (expert, slot) have rows there


@functools.cache
def grouping(step: Step, adapters: bool) -> Grouping:
    """From the draw of routes."""
    tiles = tiles_of(step, adapters)
    live = int(tiles.live)
    slot = np.asarray(tiles.subgroup).reshape(tiles.group.shape[0], -1)[:live]
    runs = np.array([np.unique(row[row > 0]).size for row in slot])
    experts_hit = np.unique(np.asarray(tiles.group)[:live]).size
    return Grouping(tiles.source.shape[0], live * tiles.tile, experts_hit, runs)


def dense(step: Step) -> list[Term]:
    """Projections of attention and the router, as XLA computes them: weights, rows in and out; the router's float32."""
    widths = {**SITES, "router": (HIDDEN, EXPERTS)}
    return [
        Term(
            f"{name} product",
            bytes=2 * inner * outer + step.tokens * (2 * inner + (4 if name == "router" else 2) * outer),
            flops=2 * step.tokens * inner * outer,
        )
        for name, (inner, outer) in widths.items()
    ]


def blocks(width: int, most: int) -> int:
    """Blocks in which `lora_matmul` walks a factor's long axis."""
    found = block_sizes.width_of_block(width, RANK, most)
    assert found is not None
    return width // found


def lora(step: Step, name: str, widths: tuple[int, int], schedule: Schedule) -> Term:
    """`lora_matmul`, or with a width of 0 one of its halves: rows in and out, and each adapter's factors.

    Single rows fetch factors of their own; tiles fetch a factor when the slot changes, or at every tile where it takes
    several blocks.
    """
    inner, outer = widths
    a_blocks = blocks(inner, block_sizes.INNER) if inner else 0
    b_blocks = blocks(outer, block_sizes.OUTER) if outer else 0
    fetches = step.tokens // PREFILL_TILE
    changes = min(step.adapters, fetches)
    a, b = (step.tokens if step.decode else changes if n == 1 else fetches for n in (a_blocks, b_blocks))
    # x, or z instead; y read and written in place.
    rows = 2 * (inner or RANK) + 2 * RANK * bool(inner) + 4 * outer
    moved = step.tokens * rows + 2 * RANK * (a * inner + b * outer)
    steps = max(a_blocks + b_blocks - bool(inner and outer), 1)
    shares = [n / steps for n in (a_blocks, b_blocks) if n]
    return Term(name, bytes=moved, turns=static_grid(schedule, shares))


def layer_terms(step: Step, form: str, schedules: dict[str, Schedule]) -> list[Term]:
    """What one layer runs, in order. `form` is one of `FORMS`; `schedules` are by name of the case."""
    kind = "decode" if step.decode else "prefill"
    same = {"v": "k"}  # shapes
    terms = [*dense(step), attention(step)]
    if form != "base":
        terms += [
            lora(step, f"{site} LoRA", SITES[site], schedules[f"{kind}/{same.get(site, site)}"]) for site in SITES
        ]
    if form == "shared_hidden":
        shrink, expand = schedules[f"{kind}/shrink"], schedules[f"{kind}/expand"]
        terms += [lora(step, f"{site} shrink", (HIDDEN, 0), shrink) for site in ("gate", "up")]
        terms += [lora(step, "down expand", (0, HIDDEN), expand)]
    return terms + experts(step, form, schedules) + around_experts(step, form)


def attention(step: Step) -> Term:
    """Queries in, outputs out, keys and values of every earlier token of each sequence."""
    keys = step.tokens * ((step.context + 1) if step.decode else 1)
    seen = step.tokens * (step.context + 1 if step.decode else (PREFILL_TILE + 1) / 2)
    moved = step.tokens * 2 * 2 * HEADS * HEAD + keys * 2 * 2 * KEY_HEADS * HEAD
    return Term("attention", bytes=moved, flops=seen * 4 * HEADS * HEAD)


def experts(step: Step, form: str, schedules: dict[str, Schedule]) -> list[Term]:
    """The three projections of the experts: matrices of every expert hit, rows in and out, factors of every run.

    Dead tiles are steps of the grid too: they read nothing and write zeros.
    """
    found, terms = grouping(step, form != "base"), []
    kind, tile = ("decode", TPU_DECODE[0]) if step.decode else ("prefill", TPU_CHUNKS[0])
    tiles = found.places // tile
    for site, (inner, outer) in EXPERT_SITES.items():
        same = "down" if site == "down" else "up"
        a, b = form != "base", form != "base"
        if form == "shared_hidden":
            a, b = site == "down", site != "down"
        moved = 2 * (found.experts * inner * outer + found.rows * inner + found.places * outer)
        moved += 2 * RANK * int(found.runs.sum()) * (a * inner + b * outer)
        moved += 2 * RANK * (found.places if a else found.rows if b else 0)  # z, from here or given
        # For a factor a loop over a tile's groups of runs, with the first group's copies before it and the next one's
        # inside; in it a's product for one run or for several, or b's for each run. Between the two the expert's.
        live, runs = found.runs.size / tiles, found.runs.sum() / tiles
        groups = np.sum(-(-found.runs // RUNS)) / tiles
        one = np.sum(found.runs % RUNS == 1) / tiles / groups if groups else 0.0
        each = runs / groups if groups else 0.0
        shares = [one, 1 - one] * a + [live]
        trips = [0.0, groups, each, each] * a + [0.0, groups, each, each, each] * b
        turns = dynamic_grid(schedules[f"{kind}/{same} {form}"], tiles, shares, trips)
        terms.append(Term(f"experts {site}", bytes=moved, flops=0, turns=turns))
    return terms


def around_experts(step: Step, form: str) -> list[Term]:
    """Rows to their places, the gated activation, and back to the tokens, in as few bytes as can be.

    Where the hidden-side factor is shared, the shrunk rows of gate and up go along, and those of down come
    back.
    """
    found, copies = grouping(step, form != "base"), step.tokens * CHOSEN
    shrunk = RANK * (form == "shared_hidden")
    return [
        Term("dispatch", bytes=2 * (HIDDEN + 2 * shrunk) * (step.tokens + found.places)),
        Term("activation", bytes=2 * 3 * EXPERT_HIDDEN * found.places),
        Term("combine", bytes=2 * (HIDDEN + shrunk) * (copies + step.tokens)),
    ]
