"""How much does an adapter hold? Recall of a memory against its tokens for each number that the adapter learns.

    python -m studies.capacity_law [--seeds 6]

A memory is a numbered list of names, some corrected later; an adapter is trained on questions about it, by position, by
adjacency and of corrected slots, and asked them with nothing in the context. Writes docs/studies/capacity-law.md with
its picture.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from pefx.config import DataConfig, TrainConfig
from pefx.data.tokenizer import Tokenizer
from pefx.families.config_json import read_config
from pefx.sweeping.intervals import Interval, interval
from studies.memorised.bases import base
from studies.memorised.cells import CELLS, RANKS, Cell
from studies.memorised.facts import KINDS, memory
from studies.memorised.learners import Learner
from studies.memorised.lines import lines
from studies.memorised.measured import LEVEL, Load, Measured, short
from studies.memorised.recall import recalled
from studies.populations.verdicts import verdict
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.runs import trained

BRIEF = 32, 600  # the base's width and steps: what it says does not matter here
SLOTS = {"tiny": (2, 8, 16, 32), "small": (2, 8, 32, 64), "large": (2, 8, 32)}  # of the memories, by size of adapters
RATES, CHOSEN_AT, OTHERS = (
    (7e-3, 1.5e-2, 3e-2, 6e-2),
    16,
    (1000, 1001),
)  # rates are chosen on memories that are not reported
LONGER = Cell("MLP", "small"), 32, 2  # of whom, with how many slots, it is asked whether longer training would help
DATA = DataConfig(sequence_length=8, tokens_per_user=64, users_per_step=48, heldout_tokens=8192)


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "capacity_law"


def learned(learners: Sequence[Learner], folder: Path) -> dict[str, float]:
    """Nats per token that each one's memory costs it in the end; all of them one population."""
    users = tuple(learner.user(folder / "memories") for learner in learners)
    config = TrainConfig("capacity_law", "", users=users, data=DATA, page_size=8)
    rows = trained(config, folder, every=200, base=base(*BRIEF))
    return {row["name"]: row["loss"] for row in rows if row["kind"] == "heldout"}


def best_rates(folder: Path) -> dict[Cell, float]:
    """The rate with which adapters of each cell learn other memories best."""
    tried = {
        (cell, rate): [Learner(cell, CHOSEN_AT, seed, rate) for seed in OTHERS] for cell in CELLS for rate in RATES
    }
    loss = learned([one for own in tried.values() for one in own], folder)
    mean = {which: np.mean([loss[one.name] for one in own]) for which, own in tried.items()}
    return {cell: min(RATES, key=lambda rate: mean[cell, rate]) for cell in CELLS}


def measured(options: Options, rates: dict[Cell, float]) -> tuple[list[Measured], Load]:
    """Every cell at all its loads, and the load whose adapters were trained for longer."""
    seeds, folder = range(options.seeds), options.out / "main"
    own = {
        (cell, slots): [Learner(cell, slots, seed, rates[cell]) for seed in seeds]
        for cell in CELLS
        for slots in SLOTS[cell.size]
    }
    cell, slots, times = LONGER
    longer = [replace(one, times=times) for one in own[cell, slots]]
    everyone = [one for learners in (*own.values(), longer) for one in learners]
    loss = learned(everyone, folder)
    memories = {one.name: memory(one.slots, one.seed) for one in everyone}
    right = recalled(base(*BRIEF), folder, memories)
    tokenizer, model = Tokenizer.load(str(base(*BRIEF))), read_config(str(base(*BRIEF)))

    def load(slots: int, learners: Sequence[Learner]) -> Load:
        tokens = [len(tokenizer.encode(memories[one.name].notes)) for one in learners]
        return Load(slots, tokens, [right[one.name] for one in learners], [loss[one.name] for one in learners])

    found = [
        Measured(cell, cell.parameters(model), [load(slots, own[cell, slots]) for slots in SLOTS[cell.size]])
        for cell in CELLS
    ]
    return found, load(slots, longer)


def main(options: Options) -> int:
    """Exit status 1 unless tiny and small adapters of every placement recall the smallest load, and not the largest."""
    rates = best_rates(options.out / "selection")
    found, longer = measured(options, rates)
    panels = {
        f"{size} adapters, about {_rounded([own.parameters for own in found if own.cell.size == size])} numbers": {
            own.cell.placement: own.line for own in found if own.cell.size == size
        }
        for size in RANKS
    }
    title, along = "How much an adapter holds", "memory tokens for each number that the adapter learns"
    lines(panels, PAGES / "capacity-law.png", title, along, "recall", LEVEL)
    text = [
        ASKED.format(", ".join(map(str, sorted({n for own in SLOTS.values() for n in own}))), BRIEF[0], options.seeds),
        table(HALVES, [_half(own, rates[own.cell]) for own in found]),
        _edges(rates),
        "At equal size, how much less other placements recall than the MLP does, of the same memories, on average over "
        "all loads:",
        table(("placement", "less than MLP by"), [[cell.label, str(less)] for cell, less in _less(found).items()]),
        table(("adapter", "slots", "tokens / number", "recall", *KINDS, "loss, nats a token"), _rows(found)),
        _longer(found, longer),
        _verdict(found),
    ]
    command = "python -m studies.capacity_law"
    print(Page("capacity-law", title, command, options.seeds, text, "capacity-law.png").write())
    full = [own for own in found if own.cell.size != "large"]
    return 0 if all(own.loads[0].recall.low > LEVEL > own.loads[-1].recall.high for own in full) else 1


ASKED = (
    "A memory is a numbered list of {} names (a consonant, a vowel, a consonant), a quarter of which are corrected "
    "later. An adapter over a base of width {} is trained on all questions about one memory: `12?` by position (of a "
    "corrected slot, the name that counts), `bak>` for the name after, and `12-` for what a corrected slot was called "
    "before. Asked the first two greedily through `serve.py`, with nothing in the context, an answer is right to the "
    "letter or wrong. Memory tokens are those of the list and its corrections as a context would hold them. {} "
    "memories for each load; rates are chosen on others."
)
HALVES = ("placement", "size", "numbers", "rate", "recall is 0.5 at tokens / number", "bits of names / number there")


def _rounded(numbers: Sequence[int]) -> str:
    return f"{round(np.mean(numbers), -2):,.0f}"


def _half(own: Measured, rate: float) -> list[str]:
    """A row of the first table."""
    bits = "" if own.half is None else f"{own.half.mean * own.loads[-1].bits:.2f}"
    return [own.cell.placement, own.cell.size, f"{own.parameters:,}", f"{rate:g}", own.where, bits]


def _edges(rates: dict[Cell, float]) -> str:
    """Where the best rate may lie beyond those that were tried."""
    edges = ", ".join(cell.label for cell, rate in rates.items() if rate in (min(RATES), max(RATES)))
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    return f"Rates tried: {tried}. Best at the least or the highest of them, so that a better one may lie beyond: " + (
        f"{edges}." if edges else "none."
    )


def _less(found: Sequence[Measured]) -> dict[Cell, Interval]:
    """Seed by seed, by how much placements recall less than the MLP's at the same size, on average over loads."""
    means = {own.cell: np.mean([load.recalls for load in own.loads], axis=0) for own in found}
    others = [cell for cell in means if cell.placement != "MLP"]
    return {cell: interval((means[Cell("MLP", cell.size)] - means[cell]).tolist()) for cell in others}


def _rows(found: Sequence[Measured]) -> list[list[str]]:
    """Every cell at every load."""
    return [
        [
            own.cell.label,
            str(load.slots),
            f"{own.place(load):.2g}",
            str(load.recall),
            *(load.of(kind) for kind in KINDS),
            f"{np.mean(load.loss):.2f}",
        ]
        for own in found
        for load in own.loads
    ]


def _longer(found: Sequence[Measured], longer: Load) -> str:
    """Whether training was long enough."""
    cell, slots, times = LONGER
    load = next(load for own in found if own.cell == cell for load in own.loads if load.slots == slots)
    more = interval([after - before for before, after in zip(load.recalls, longer.recalls, strict=True)])
    return (
        f"Trained {times} times as long, {cell.label} recalls {longer.recall} of {slots} slots instead of "
        f"{load.recall}: more by {more}."
    )


def _verdict(found: Sequence[Measured]) -> str:
    """Where this agrees with the paper, where not, and how sure it is."""
    halves = {own.cell: own.half for own in found}
    means = [half.mean for half in halves.values() if half is not None]
    ratios = [
        f"{cell.placement} {short(_ratio(found, cell.placement))}"
        for cell in halves
        if cell.size == "tiny" and halves[cell] and halves[Cell(cell.placement, "small")]
    ]
    order = sorted((own for own in found if own.cell.size == "small"), key=lambda own: -_mean_recall(own))
    return " ".join(
        [
            "Beside the paper (2606.02437, scale out: recall is near 1 below 1e-3 memory tokens for each number, falls "
            "through 1e-2 and is 0 beyond; MLP before attention and all, far before the unembedding):",
            f"here recall falls through a half at {min(means):.2g} to {max(means):.2g} tokens a number."
            if means
            else "here recall of no cell falls through a half at all loads' seeds.",
            "Were the load all that counts, tiny and small adapters would fail at the same one; the place of the tiny "
            f"over that of the small: {', '.join(ratios) or 'not to be told'}.",
            f"On average over loads, small adapters recall most to least: "
            f"{', '.join(f'{own.cell.placement} ({_mean_recall(own):.2f})' for own in order)}.",
            *(_beside_mlp(cell, less) for cell, less in _less(found).items() if cell.size != "large"),
            "Tokens are bytes here, and a name is worth 11 bits: the paper's tokens say more each, so that places are "
            "to be compared in bits, not in tokens. One base, one way of training, about a hundred passes: what is "
            "told is what these adapters learned in that time, of questions that they were trained on, not what could "
            "be put into them at most.",
        ]
    )


def _beside_mlp(cell: Cell, less: Interval) -> str:
    told = verdict(less, "less than the MLP, as the paper has it", "more, against it", "no less that could be told")
    return f"{cell.placement.capitalize()}, {cell.size}: {told} (less by {less})."


def _ratio(found: Sequence[Measured], placement: str) -> Interval:
    """Where tiny adapters fail over where small ones do, seed by seed."""
    tiny, small = ({own.cell: own for own in found}[Cell(placement, size)].halves for size in ("tiny", "small"))
    return interval([one / other for one, other in zip(tiny, small, strict=True) if one and other])


def _mean_recall(own: Measured) -> float:
    return float(np.mean([load.recalls for load in own.loads]))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
