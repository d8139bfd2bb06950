"""What is in a context goes into the weights: do policies answer from it when it is gone, and what do they forget?

    python -m studies.context_learning [--seeds 6]

A policy for each person (a person a seed) learns the facts that its contexts show: by scoring its own answers with the
context (`context`), or by saying what it says when it sees the context (supervised distillation). Both get as many
problems and answers. Writes docs/studies/context-learning.md with its picture.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from pefx.config import (
    DataConfig,
    OptimizerConfig,
    PolicyLossConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.programs.commands import ROOT
from studies.rewarded.exam import rewards
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.runs import BASE, gain, heldout, of, trained

ROLLOUT = RolloutConfig(prompts=8, group=8, max_tokens=8, heldout=64)
DATA = DataConfig(sequence_length=96, tokens_per_user=6144, users_per_step=12)  # a lesson has the context before it
WAYS = {
    "context": (ROLLOUT, PolicyLossConfig("context")),
    "distillation": (replace(ROLLOUT, context=True), PolicyLossConfig("cross_entropy")),
}


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    steps: int = 100
    learning_rate: float = 1e-3
    out: Path = ROOT / "runs" / "studies" / "context_learning"


def users(options: Options) -> tuple[UserConfig, ...]:
    """A policy for each way and person."""
    return tuple(
        UserConfig(f"{way}/{seed}", task=facts(seed), rollout=rollout, policy_loss=loss, seed=seed)
        for way, (rollout, loss) in WAYS.items()
        for seed in range(options.seeds)
    )


def facts(person: int) -> TaskConfig:
    """Questions about what this person knows."""
    return TaskConfig("facts", options=(("user", person),))


def main(options: Options) -> int:
    """Exit status 1 unless answers from the query alone get better, and other tasks lose at most a point."""
    every = read_file("configs/rl_tasks.py", TrainConfig)
    optimizer = OptimizerConfig(learning_rate=options.learning_rate, warmup_steps=3)
    config = replace(every, users=users(options), steps=options.steps, optimizer=optimizer, data=DATA, rollout=ROLLOUT)
    rows = trained(replace(config, evaluate_every=0), options.out)
    seeds = range(options.seeds)
    gains = {way: interval([gain(rows, f"{way}/{seed}") for seed in seeds]) for way in WAYS}
    ends = {
        way: [interval([heldout(rows, f"{way}/{seed}")[place][1] for seed in seeds]) for place in (0, -1)]
        for way in WAYS
    }
    tokens = {way: sum(sum(of(rows, f"{way}/{seed}", "tokens")) for seed in seeds) for way in WAYS}
    lost = forgotten(replace(config, base=str(BASE), output=str(options.out / "exam")), every, options)
    panels: dict[str, dict[str, dict[str, Interval]]] = {
        "reward on held-out queries, without context": {
            way: {"before": before, "after": after} for way, (before, after) in ends.items()
        },
        "points lost on other tasks": {way: {"lost": lost[way]} for way in WAYS},
    }
    bars(panels, PAGES / "context-learning.png", "From the context into the weights")
    lines = [[way, *map(str, ends[way]), str(gains[way]), _points(lost[way]), f"{tokens[way]:,.0f}"] for way in WAYS]
    text = [
        "People know different facts, a person a seed. A policy for each is asked about them, in wordings some of "
        "which "
        "are held out; the contexts that would answer are shown to nobody who is evaluated. `context`: the policy "
        "answers from the query, and is moved towards what it says with the context. `distillation`: it learns the "
        "answers that it gives with the context, as answers to the query alone. Both for "
        f"{options.steps} updates of {ROLLOUT.prompts} problems with {ROLLOUT.group} answers each.",
        table(("way", "before", "after", "gain", "points lost on seven other tasks", "tokens in the loss"), lines),
    ]
    command, title = "python -m studies.context_learning", "Context learning"
    print(Page("context-learning", title, command, options.seeds, text, "context-learning.png").write())
    return 0 if gains["context"].above_zero and lost["context"].mean <= 1 else 1


def forgotten(config: TrainConfig, every: TrainConfig, options: Options) -> dict[str, Interval]:
    """Points (hundredths of a reward) that policies lost, on average over the tasks of `every`."""
    names = [user.name for user in config.users]
    shorter = replace(config, rollout=every.rollout)
    losses = []
    for user in every.users:
        assert user.task is not None
        *found, base = rewards(shorter, options.out / "catalog", [*names, "base"], user.task)
        losses.append(100 * (base - np.asarray(found)))
    mean = dict(zip(names, np.mean(losses, axis=0), strict=True))
    return {way: interval([float(mean[f"{way}/{seed}"]) for seed in range(options.seeds)]) for way in WAYS}


def _points(found: Interval) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
