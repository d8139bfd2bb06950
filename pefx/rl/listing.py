"""What `pefx rollouts` prints of the files that `pefx.rl.records` writes: a line for each file, and whole rollouts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pefx.errors import PefxError
from pefx.printed import text_of
from pefx.rl.records import ENDING, Rollout, read_rollouts

WIDTH = 120
FOLDER = "rollouts"


@dataclass(frozen=True)
class Found:
    """A file of rollouts: whose, and of which update."""

    policy: str
    update: int
    path: Path


def find(path: Path) -> list[Found]:
    """The files of a run (or of its `rollouts`, or of a policy there), or the one file, by policy and update.

    Raises PefxError where there is none.
    """
    if path.is_file():
        return [_alone(path)]
    if not path.is_dir():
        raise PefxError(f"{path}: no such run, folder or file of rollouts")
    top = path / FOLDER if (path / FOLDER).is_dir() else path
    root = _root(top.resolve())
    found = [
        Found(file.resolve().parent.relative_to(root).as_posix(), int(file.stem), file)
        for file in top.rglob(f"*{ENDING}")
        if file.stem.isdecimal()
    ]
    if not found:
        raise PefxError(f"{path}: holds no rollouts; those of a run are OUTPUT/{FOLDER}/POLICY/000000{ENDING}")
    return sorted(found, key=lambda one: (one.policy, one.update))


def _root(folder: Path) -> Path:
    """The folder below which a policy's name is that of its folder."""
    return next((one for one in (folder, *folder.parents) if one.name == FOLDER), folder)


def _alone(path: Path) -> Found:
    """What a file says of itself: it may have been moved."""
    rollouts = read_rollouts(path, routes=False)
    if not rollouts:
        return Found("-", 0, path)
    return Found(rollouts[0].policy, int(path.stem) if path.stem.isdecimal() else rollouts[0].revision, path)


def chosen(found: Sequence[Found], policy: str | None, update: int | None) -> list[Found]:
    """Those of a policy and of an update, where they are named. Raises PefxError where there is none."""
    names = sorted({one.policy for one in found})
    if policy is not None and policy not in names:
        raise PefxError(f"--policy: there are no rollouts of '{policy}'; there are of {', '.join(names)}")
    own = [one for one in found if policy in (None, one.policy)]
    updates = sorted({one.update for one in own})
    if update is not None and update not in updates:
        there = f"{updates[0]} to {updates[-1]}" if len(updates) > 1 else str(updates[0])
        raise PefxError(f"--step: there are no rollouts of step {update}; there are of {there}")
    return [one for one in own if update in (None, one.update)]


def by_reward(rollouts: list[tuple[Found, Rollout]], best: bool) -> list[tuple[Found, Rollout]]:
    """Those that have a reward, the best (or the worst) first."""
    judged = [one for one in rollouts if not np.isnan(one[1].reward)]
    return sorted(judged, key=lambda one: one[1].reward, reverse=best)


def summary(one: Found, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Figures of a file: means over what has a reward, or was drawn."""
    whole = [rollout for rollout in rollouts if rollout.error is None]
    judged = [rollout for rollout in rollouts if not np.isnan(rollout.reward)]
    parts = {name: None for rollout in judged for name in rollout.parts}
    return {
        "policy": one.policy,
        "step": one.update,
        "rollouts": len(rollouts),
        "errors": len(rollouts) - len(whole),
        "reward": _mean([rollout.reward for rollout in judged]),
        "best": max((rollout.reward for rollout in judged), default=None),
        "parts": {name: _mean([r.parts[name] for r in judged if name in r.parts]) for name in parts},
        "tokens": _mean([rollout.drawn for rollout in whole]),
        "mean_logprob": _mean([rollout.mean_logprob for rollout in whole]),
        "finish_reasons": dict(sorted(Counter(rollout.finish_reason for rollout in rollouts).items())),
    }


def _mean(values: Sequence[float] | Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each file."""
    title = "1 file of rollouts" if len(rows) == 1 else f"{len(rows):,} files of rollouts"
    table = Table(title=title, title_justify="left")
    right = ("step", "rollouts", "errors", "reward", "best", "tokens", "logprob")
    for name in ("policy", *right, "parts", "finished"):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        counts = ", ".join(f"{name} {count}" for name, count in row["finish_reasons"].items())
        figures = [_number(row[name]) for name in ("reward", "best", "tokens", "mean_logprob")]
        plain = [str(row[name]) for name in ("policy", "step", "rollouts", "errors")]
        table.add_row(*plain, *figures, _parts(row["parts"]), counts)
    return text_of(table, width=WIDTH)


def rollout_tables(rollouts: Sequence[tuple[Found, Rollout]]) -> str:
    """Whole rollouts: what was said, what was drawn, what came of it."""
    return "\n\n".join(text_of(_rollout_table(one, rollout), width=WIDTH) for one, rollout in rollouts)


def _rollout_table(one: Found, rollout: Rollout) -> Table:
    title = f"{rollout.policy}, step {one.update}, task {rollout.task}, prompt {rollout.group}, sample {rollout.sample}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("reward", f"{_number(rollout.reward)}  {_parts(rollout.parts)}".rstrip())
    facts = [
        f"{rollout.drawn} of {len(rollout.tokens)} tokens drawn",
        f"mean logprob {_number(rollout.mean_logprob)}",
        rollout.finish_reason,
        f"{rollout.turns} turns" if rollout.turns != 1 else "1 turn",
        f"seed {rollout.seed}",
        f"after {rollout.revision} updates",
    ]
    table.add_row("answer", ", ".join(facts))
    if rollout.error is not None:
        table.add_row("error", _visible(rollout.error))
    for place, text in enumerate(rollout.transcript):
        table.add_row("prompt" if not place else "drawn" if place % 2 else "said", _visible(text))
    return table


def plain(one: Found, rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON, without its arrays."""
    names = ("policy", "task", "group", "sample", "revision", "seed", "finish_reason", "turns", "error", "transcript")
    return {
        "step": one.update,
        **{name: getattr(rollout, name) for name in names},
        "reward": None if np.isnan(rollout.reward) else rollout.reward,
        "parts": dict(rollout.parts),
        "tokens": len(rollout.tokens),
        "drawn": rollout.drawn,
        "mean_logprob": rollout.mean_logprob,
    }


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4g}"


def _parts(parts: Any) -> str:
    return ", ".join(f"{_visible(name)} {_number(value)}" for name, value in parts.items())


def _visible(text: str) -> str:
    """`text` with what would change a terminal, such as escapes, spelled out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
