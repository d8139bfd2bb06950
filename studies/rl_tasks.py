"""Eight policies, a task each, trained together with GRPO: does every one get better at what is held out?

    python -m studies.rl_tasks [--seeds 6]

Runs `configs/rl_tasks.py` once for each seed, all policies of all seeds as one population: nobody's bits depend on who
is trained beside it. Writes docs/studies/rl-tasks.md with its picture.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pefx.config import TrainConfig
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.runs import gain, heldout, of, seeded, trained


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    out: Path = ROOT / "runs" / "studies" / "rl_tasks"


def main(options: Options) -> int:
    """Exit status 1 unless every task's reward rises, and the sampler is the trainer to the bit."""
    config = read_file("configs/rl_tasks.py", TrainConfig)
    rows = trained(replace(config, users=seeded(config.users, options.seeds)), options.out)
    seeds, tasks = range(options.seeds), [user.name for user in config.users]
    gains = {task: interval([gain(rows, f"{task}/{seed}") for seed in seeds]) for task in tasks}
    ends = {task: [heldout(rows, f"{task}/{seed}") for seed in seeds] for task in tasks}
    before, after = (
        {task: interval([found[place][1] for found in own]) for task, own in ends.items()} for place in (0, -1)
    )
    gap = max(max(of(rows, f"{task}/{seed}", "gap_max")) for task in tasks for seed in seeds)
    shown: dict[str, dict[str, Interval]] = {task: {"before": before[task], "after": after[task]} for task in tasks}
    bars({"reward on held-out problems": shown}, PAGES / "rl-tasks.png", "Eight policies trained together")
    lines = [[task, str(before[task]), str(after[task]), str(gains[task]), _verdict(gains[task])] for task in tasks]
    rose = [task for task in tasks if gains[task].above_zero]
    text = [
        "Eight policies of rank 8, each rewarded for a task of its own, are trained together with GRPO over "
        f"`assets/base_tasks`: {config.steps} updates of {config.rollout.prompts} problems with "
        f"{config.rollout.group} answers each. The measure is the mean reward on {config.rollout.heldout} held-out "
        "problems, answered at the temperature of training, 1.",
        table(("task", "before", "after", "gain", "interval excludes 0"), lines),
        f"The reward of {len(rose)} of {len(tasks)} tasks rises by a margin whose interval lies above 0. Over all "
        f"updates the largest difference between the log-probabilities of sampler and trainer is {gap:g} nats.",
    ]
    command, title = "python -m studies.rl_tasks", "GRPO on eight tasks at once"
    path = Page("rl-tasks", title, command, len(seeds), text, "rl-tasks.png")
    print(path.write())
    return 0 if len(rose) == len(tasks) and gap == 0 else 1


def _verdict(gain: Interval) -> str:
    return "yes" if gain.above_zero else "no"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
