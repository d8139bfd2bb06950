"""What a run measured: `metrics.jsonl` for programs, TensorBoard events for eyes, the same numbers in both.

A row is `{"step", "kind", "name", ...numbers}`: kind "train" (one micro-batch of one user), "heldout" (one user's
held-out text after `step` steps), "stopped" (a user that goes no further, after how many updates) or "rate" (tokens per
second of the run). Rows of a step appear once, resumed or not.
"""

import json
from pathlib import Path
from typing import Any, Literal

import tensorboardX

METRICS = "metrics.jsonl"
# What held-out text or held-out problems give a name: nats a token (less is better), or a mean reward.
Measure = Literal["nats_per_token", "reward"]
SHOWN: dict[Measure, str] = {"nats_per_token": "loss", "reward": "reward"}  # its name among the numbers of a run


class Journal:
    """Appends rows under `directory`. Rows after step `resumed` belong to work that was lost, and are dropped."""

    def __init__(self, directory: Path, resumed: int):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / METRICS
        self.rows = [row for row in read_rows(self.path) if row["step"] <= resumed] if resumed else []
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        partial.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)  # by line, for those who watch
        self._board = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=resumed + 1)

    def write(self, step: int, kind: str, name: str, **values: float) -> None:
        """Append one row; `values` are plain floats."""
        row: dict[str, Any] = {"step": step, "kind": kind, "name": name, **values}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}/{name}" if name else f"{kind}/{key}", value, step)

    def flush(self) -> None:
        """Make every row so far readable by others."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flush and close; the journal cannot be written afterwards."""
        self._file.close()
        self._board.close()


class NoJournal:
    """The journal of a process that writes no files."""

    rows: tuple[dict[str, Any], ...] = ()

    def write(self, step: int, kind: str, name: str, **values: float) -> None:
        """As `Journal.write`."""

    def flush(self) -> None:
        """As `Journal.flush`."""

    def close(self) -> None:
        """As `Journal.close`."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut by a kill is left out. An absent file has none."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
