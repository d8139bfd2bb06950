"""A sampler that is not the trainer: what does it cost, and what do corrections and replayed routes give back?

    python -m studies.mismatch [--seeds 6]

Policies answer with the base in 8 bits, or as they were some drawings ago, and learn with no correction, TIS, IcePop,
routes replayed (R3), or R3 with IcePop. One population for each mismatch, a policy for each case and seed.
Writes docs/studies/mismatch.md with its picture.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from pefx.config import (
    DataConfig,
    PolicyLossConfig,
    RolloutConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.settings import read_file
from pefx.sweeping.intervals import Interval, interval
from studies.programs.commands import ROOT
from studies.rewarded.page import PAGES, Page, table
from studies.rewarded.pictures import bars
from studies.rewarded.replayed import COUNT, LENGTH, divergences
from studies.rewarded.runs import BASE, gain, of, seeded, trained

SAMPLERS = {"int8 base": SamplerConfig(weights="int8"), "2 drawings old": SamplerConfig(stale=2)}
CASES = {
    "none": PolicyLossConfig("grpo"),
    "TIS": PolicyLossConfig("grpo", correction="tis"),
    "IcePop": PolicyLossConfig("grpo", correction="icepop"),
    "R3": PolicyLossConfig("grpo", replay="sampler"),
    "R3+IcePop": PolicyLossConfig("grpo", replay="sampler", correction="icepop"),
}
# What is measured of a policy: its name, and how it is read from the rows.
MEASURES: Mapping[str, Callable[[Sequence[dict[str, Any]], str], float]] = {
    "KL (k3), nats": lambda rows, name: float(np.mean(of(rows, name, "kl_k3"))),
    "mean gap, nats": lambda rows, name: float(np.mean(of(rows, name, "gap_mean"))),
    "out of route": lambda rows, name: float(np.nanmean(of(rows, name, "out_of_route"))),
    "masked": lambda rows, name: float(np.mean(of(rows, name, "masked"))),
    "gain in reward": gain,
}


@dataclass(frozen=True)
class Options:
    """How much."""

    seeds: int = 6
    steps: int = 40
    task: str = "sorting"
    out: Path = ROOT / "runs" / "studies" / "mismatch"


def measured(options: Options, sampler: SamplerConfig, folder: Path) -> dict[str, dict[str, Interval]]:
    """Each measure of each case, over seeds."""
    users = [UserConfig(case, task=TaskConfig(options.task), policy_loss=loss) for case, loss in _named().items()]
    config = read_file("configs/rl_tasks.py", TrainConfig)
    # All draw at once, else one that waits for its turn would be less behind.
    users = seeded(users, options.seeds)
    data = DataConfig(sequence_length=32, tokens_per_user=1024, users_per_step=len(users))
    rollout = RolloutConfig(prompts=4, group=8, max_tokens=14, heldout=64, heldout_temperature=1.0)
    config = replace(config, users=users, sampler=sampler, steps=options.steps, data=data, rollout=rollout)
    rows = trained(replace(config, evaluate_every=0, remat="full"), folder)
    return {
        case: {
            measure: interval([read(rows, f"{key}/{seed}") for seed in range(options.seeds)])
            for measure, read in MEASURES.items()
        }
        for case, key in zip(CASES, _named(), strict=True)
    }


def _named() -> dict[str, PolicyLossConfig]:
    """Cases by a name that a policy can have."""
    return {case.replace("+", "-"): loss for case, loss in CASES.items()}


def main(options: Options) -> int:
    """Exit status 1 unless replayed routes halve the divergence of the 8-bit base."""
    place = options.out
    found = {name: measured(options, sampler, place / name.replace(" ", "_")) for name, sampler in SAMPLERS.items()}
    panels = {
        measure: {case: {name: found[name][case][measure] for name in SAMPLERS} for case in CASES}
        for measure in ("KL (k3), nats", "gain in reward")
    }
    bars(panels, PAGES / "mismatch.png", "A sampler that is not the trainer")
    text = [
        f"Policies of rank 8 learn `{options.task}` with GRPO over `assets/base_tasks`, whose first layer is dense, "
        f"for {options.steps} updates. Their answers come from a sampler that is not the trainer. Measured are, "
        "over all "
        "updates, the divergence of trainer and sampler on drawn tokens (k3, Schulman 2020), the mean difference of "
        "log-probabilities, the share of tokens whose experts the trainer would choose otherwise, the share of tokens "
        "that a correction leaves out, and the gain in reward on held-out problems, which the policy itself answers.",
    ]
    for name, cases in found.items():
        lines = [[case, *(_short(own[measure]) for measure in MEASURES)] for case, own in cases.items()]
        text += [f"## {name}", table(("correction", *MEASURES), lines)]
    drawn = 1 - found["int8 base"]["R3"]["KL (k3), nats"].mean / found["int8 base"]["none"]["KL (k3), nats"].mean
    text.append(
        f"On the 8-bit base, replayed routes cut the divergence on the policies' own answers by {100 * drawn:.0f} %: "
        "these are tokens that they are nearly sure of, and few of their routes differ. Every recorded route was "
        "replayed: no token was routed otherwise, none fell back."
    )
    forms = divergences(BASE, options.seeds)
    lines = [[name, *map(_short, own.values())] for name, own in forms.items()]
    text += ["## The bare base, over text of the tasks", table(("form", *next(iter(forms.values()))), lines)]
    text.append(
        f"Over text of the tasks with right and wrong answers ({COUNT} sequences of {LENGTH} tokens a seed), routes of "
        "another form of the base, replayed in float32, cut the divergence by the share in the third column."
    )
    command, title = "python -m studies.mismatch", "When the sampler is not the trainer"
    path = Page("mismatch", title, command, options.seeds, text, "mismatch.png")
    print(path.write())
    return 0 if forms["int8"]["cut"].low >= 0.5 else 1


def _short(found: Interval) -> str:
    return f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
