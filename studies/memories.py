"""Does a memory of a few numbers carry what was read into a sequence that does not see it?

    python -m studies.memories [--seeds 6]

delta-mem in three forms learns from histories of one and of three facts, each form with the rate that is best for it on
a selection part. Then `serve.py` reads new histories, keeps the memories as policies, and answers questions that begin
with them; beside it LoRA that learned the history, a search, and the full context. Writes docs/studies/memories.md.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import tyro

from pefx.adapters.methods.counting import parameters, stored_bytes
from pefx.config import AdapterSpec, ModelConfig, TrainConfig, UserConfig
from pefx.families.config_json import read_config
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.populations.cells import Population, grid, matched, shown
from studies.programs.commands import ROOT
from studies.remembered.answers import Exam
from studies.remembered.facts import Asked, asked, subjects
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.runs import BASE, trained

FACTS, RATES = (1, 3), (3e-3, 1.5e-2)
QUESTIONS, LEARNED = 32, 8  # of a seed; of these, histories that LoRA learns
READING = (
    "One fact is remembered: a state that was kept, loaded and read where the history is out of sight answers as "
    "a search does; with an empty memory the same adapter knows as much as the bare base. Written as one message "
    "a fact, it holds less. Of three facts a state brings something, four states more, all of them far less than "
    "a search or LoRA; the full context is no bound there, since this base reads three facts badly. The paper "
    "finds that a memory steers more than it stores and that recall from the state alone is small: so it is here "
    "with three facts, not with one. How sure: one tiny base, one kind of fact, six seeds; every best rate is the "
    "higher of the two that were tried, and these steps may be too few for three facts."
)


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "memories"


def forms(spec: AdapterSpec) -> dict[str, AdapterSpec]:
    """Written token by token, message by message, and four states."""
    return {"tokens": spec, "messages": replace(spec, writes="messages"), "four states": replace(spec, states=4)}


def learned(options: Options, count: int, questions: list[list[Asked]], folder: Path) -> list[list[str]]:
    """Policies of LoRA that learn a history each, asked for in all other wordings; into the catalog in `folder`."""
    texts, users, names = read_file("configs/population_told.py", TrainConfig), [], []
    for seed, own in enumerate(questions):
        names.append([f"lora/{seed}-{place}" for place in range(LEARNED)])
        for name, one in zip(names[-1], own, strict=False):
            path = folder / f"{name.replace('/', '-')}.jsonl"
            path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in one.others))
            users.append(UserConfig(name, train=str(path), seed=seed))
    adapter = replace(texts.adapter, rank=4, targets=("q_proj", "v_proj"))
    trained(replace(texts, name="lora", users=tuple(users), adapter=adapter), folder)
    return names


def examined(options: Options, count: int) -> tuple[dict[str, Interval], dict[str, Interval], list[str]]:
    """Who knows how much of histories of so many facts; what kept memories gain over empty ones; chosen rates."""
    config, folder = read_file("configs/memories.py", TrainConfig), options.out / f"{count}"
    population = Population(config, subjects(folder / "texts", count), options.seeds, folder)
    cells = grid({form.replace(" ", "-"): spec for form, spec in forms(config.adapter).items()}, RATES)
    selection = population.selection(cells)
    best = matched(selection, more=False)
    questions = [list(islice(asked("report", seed, count), QUESTIONS)) for seed in range(options.seeds)]
    exam, right, gains = Exam(questions, folder), {}, {}
    for name, cell in best.items():
        own = exam.of_memories(name, cell)
        right |= own
        gains[name] = interval([kept - empty for kept, empty in zip(*own.values(), strict=True)])
    beside = folder / "lora"
    beside.mkdir(exist_ok=True)
    names = learned(options, count, questions, beside)
    right |= Exam(questions, beside).of_adapters(names) | exam.of_contexts()
    rates = [f"{name}: {shown(cell, selection)}" for name, cell in best.items()]
    return {who: interval(shares) for who, shares in right.items()}, gains, rates


def main(options: Options) -> int:
    """Exit status 1 unless a memory of one fact is worth more than none, in the best of its forms."""
    config, model = read_file("configs/memories.py", TrainConfig), read_config(str(BASE))
    found = {count: examined(options, count) for count in FACTS}
    panels: dict[str, dict[str, dict[str, Interval]]] = {
        f"{count} fact{'s' if count > 1 else ''}: right answers": {who: {"": share} for who, share in right.items()}
        for count, (right, _, _) in found.items()
    }
    bars(panels, PAGES / "memories.png", "What is known of a history that is out of sight")
    text = [
        "A history tells facts (`amy cup red`). Then, in a sequence that does not see it, one of them is asked for "
        f"(`cup of amy?`). delta-mem, {parameters(model, config.adapter):,} numbers on `assets/base_tasks`, learns "
        f"from {config.steps} steps of such histories, other facts every time; then new ones are read by `serve.py`, "
        "the memory is kept as a policy, and a later request begins with it. Measured is the share of greedy answers "
        f"that are right, of {QUESTIONS} questions a seed; a colour drawn blindly is right in 0.11.",
        table(("who answers", *(f"{count} fact{'s' if count > 1 else ''}" for count in FACTS)), rows(found)),
        table(("kept memory over empty one", *map(str, FACTS)), gained(found)),
        f"Rates, of {', '.join(f'{rate:g}' for rate in RATES)}: "
        + "; ".join(f"{count} facts: {', '.join(rates)}" for count, (_, _, rates) in found.items()),
        carried(model, config.adapter),
        "## What it says",
        READING,
    ]
    command, title = "python -m studies.memories", "Memories"
    print(Page("memories", title, command, options.seeds, text, "memories.png").write())
    return 0 if max(gain.low for gain in found[1][1].values()) > 0 else 1


Found = Mapping[int, tuple[dict[str, Interval], dict[str, Interval], list[str]]]


def rows(found: Found) -> list[list[str]]:
    """Who knows how much."""
    return [[who, *(str(found[count][0][who]) for count in FACTS)] for who in found[FACTS[0]][0]]


def gained(found: Found) -> list[list[str]]:
    """By how much a kept memory is better."""
    return [[name, *(str(found[count][1][name]) for count in FACTS)] for name in found[FACTS[0]][1]]


def carried(model: ModelConfig, spec: AdapterSpec) -> str:
    """What a user costs, by way."""
    state = replace(spec, method="delta_state", over="x@1")
    one, four = (stored_bytes(model, replace(state, states=states), width=4) for states in (1, 4))
    lora = stored_bytes(model, AdapterSpec(rank=4, targets=("q_proj", "v_proj")), width=4)
    return (
        f"A user's own bytes: {one:,} of one state, {four:,} of four, {lora:,} of LoRA (rank 4 on q and v, which it "
        "takes 30 steps to learn). Search and full context store the text and read it again with every question."
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
