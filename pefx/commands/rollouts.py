"""`pefx rollouts`: what policies drew while they were trained, and what they got for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg, subcommand

from pefx.commands.shown import Switch, say
from pefx.errors import PefxError

RunPath = Annotated[Path, arg(metavar="PATH|RUN"), tyro.conf.Positional]


@dataclass(frozen=True)
class Ls:
    """List files of rollouts, a line for each policy and step: rewards, lengths, how answers ended."""

    path: RunPath
    """The output folder of a run, a folder in its `rollouts`, or a file there."""
    policy: str | None = None
    """Only of this policy."""
    json: Switch = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        from pefx.rl.listing import chosen, find, summary, summary_table
        from pefx.rl.records import read_rollouts

        files = chosen(find(self.path), self.policy, None)
        rows = [summary(one, read_rollouts(one.path, routes=False)) for one in files]
        say(self.json, {"files": rows}, summary_table(rows))
        return 0


@dataclass(frozen=True)
class Show:
    """Print rollouts: prompts, answers, rewards and their parts, log-probabilities, errors."""

    path: RunPath
    """The output folder of a run, a folder in its `rollouts`, or a file there."""
    policy: str | None = None
    """Only of this policy."""
    step: int | None = None
    """Only of this step of the run."""
    best: Switch = False
    """Those with the highest rewards first."""
    worst: Switch = False
    """Those with the lowest rewards first."""
    limit: int = 10
    """Rollouts that are printed."""
    json: Switch = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        from pefx.rl.listing import by_reward, chosen, find, plain, rollout_tables, summary, summary_table
        from pefx.rl.records import read_rollouts

        if self.best and self.worst:
            raise PefxError("pefx rollouts show: give --best or --worst, not both")
        if self.limit < 1:
            raise PefxError(f"pefx rollouts show: --limit is {self.limit}; it must be at least 1")
        files = chosen(find(self.path), self.policy, self.step)
        held = [(one, read_rollouts(one.path, routes=False)) for one in files]
        every = [(one, rollout) for one, rollouts in held for rollout in rollouts]
        if self.best or self.worst:
            every = by_reward(every, self.best)
        some = every[: self.limit]
        rows = [summary(one, rollouts) for one, rollouts in held]
        if self.json:
            say(True, {"files": rows, "rollouts": [plain(one, rollout) for one, rollout in some]}, "")
            return 0
        print(summary_table(rows))
        print(rollout_tables(some))
        if len(every) > len(some):
            print(f"{len(some)} of {len(every):,} rollouts; for more: --limit N, --policy P, --step N, --best, --worst")
        return 0


Action = Annotated[Ls, subcommand("ls")] | Annotated[Show, subcommand("show")]
