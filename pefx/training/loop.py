"""The one training loop. Adapters and bases differ in what a step is (`Trainee`), not in how a run lives and dies.

A run writes to its output directory: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `curves.png`, `finished.json`.
Started again on the same directory with the same config it goes on from the newest checkpoint, to the same bits;
a finished run does nothing. SIGTERM (or Ctrl-C) ends the step, saves, and exits with 128 + the signal's number.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from rich.console import Console

from pefx.checkpoint import Checkpoints, check_same_config, config_dict
from pefx.config import TrainConfig
from pefx.distributed import Preemption, agree, owner, several
from pefx.errors import PefxError
from pefx.training.curves import draw_curves
from pefx.training.interrupt import Interrupt
from pefx.training.journal import SHOWN, Journal, Measure, NoJournal
from pefx.training.progress import Reporter

FINISHED = "finished.json"
AnyTrainee = TypeVar("AnyTrainee", bound="Trainee")


@dataclass(frozen=True)
class StepReport:
    """One step on the host: the mean loss (nats per token), tokens in the loss, and numbers by user name."""

    loss: float
    tokens: float
    by_name: Mapping[str, Mapping[str, float]]


@runtime_checkable
class Trainee(Protocol):
    """What the loop trains. Steps count from 0; after `advance(k)` the state is that of k + 1 steps."""

    steps: int

    def advance(self, step: int) -> Any:
        """Plan and dispatch one step; returns device metrics without waiting for them."""
        ...

    def report(self, step: int, pending: Any) -> StepReport:
        """The metrics of `step` as host numbers; blocks until the device has them."""
        ...

    def evaluate(self) -> dict[str, float]:
        """What each name is measured by, of the state as it is now; without those for whom nothing is held out."""
        ...

    def measure(self, name: str) -> Measure:
        """What `name` is measured by."""
        ...

    def decide(self, scores: Mapping[str, float]) -> Mapping[str, int]:
        """Given what `evaluate` found just now: who is stopped before its end, by name, and after how many updates.
        There may be more `steps` afterwards.
        """
        ...

    def state(self) -> Any:
        """Device state to save, a pytree."""
        ...

    def host(self) -> dict[str, Any]:
        """Host state to save, as JSON: data positions, fingerprints."""
        ...

    def restore(self, host: Mapping[str, Any], load: Callable[[Any], Any]) -> None:
        """Go on from a saved state: `load` reads what is like its argument. Raises PefxError when the data is not what
        it was.
        """
        ...

    def saved(self, step: int) -> None:
        """The state of `step` is complete on disk."""
        ...


@dataclass
class Outcome:
    """How `drive` ended: `exit_code` 0 when all steps are done, else 128 + signal.

    `evaluations` are held-out measures by step and name; `seconds` and `tokens` count all parts of a resumed run.
    """

    exit_code: int
    evaluations: dict[int, dict[str, float]]
    seconds: float
    tokens: float


def finished(config: TrainConfig) -> dict[str, Any] | None:
    """The record of a finished run in `config.output`, or None. Raises PefxError when it is of another config."""
    path = Path(config.output) / FINISHED
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        saved = record["config"]
    except (ValueError, KeyError, TypeError):
        raise PefxError(f"{path}: not a record of a finished run; delete it to check the run again") from None
    check_same_config(saved, config_dict(config), Path(config.output))
    return record


def mark_finished(config: TrainConfig, result: Mapping[str, Any]) -> None:
    """Record that nothing is left to do, with what came out."""
    if not owner():
        return
    path = Path(config.output) / FINISHED
    partial = path.with_suffix(".partial")
    text = json.dumps({"config": config_dict(config), "result": dict(result)}, indent=2)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def drive(trainee_of: Callable[[], AnyTrainee], config: TrainConfig) -> tuple[AnyTrainee, Outcome]:
    """Run a trainee to its last step, or to a signal. `trainee_of` builds it and checks its input; before it has
    returned, nothing is written.
    """
    directory = Path(config.output)
    place = directory / "checkpoints"
    if agree("there" if place.is_dir() else ""):
        with Checkpoints(place) as checkpoints:
            if checkpoints.latest is not None:
                check_same_config(checkpoints.meta(checkpoints.latest)["config"], config_dict(config), directory)
    trainee = trainee_of()
    with Checkpoints(place, config.checkpoint.keep) as checkpoints:
        resumed = checkpoints.latest
        run = _Run(trainee, config, checkpoints, resumed or 0)
        if resumed is not None:
            meta = checkpoints.meta(resumed)
            trainee.restore(meta["host"], partial(checkpoints.load, resumed))
            run.evaluations = {int(step): scores for step, scores in meta["evaluations"].items()}
            run.seconds, run.tokens = meta["seconds"], meta["tokens"]
        with run.open(), Preemption() if several() else Interrupt() as interrupt:
            run.steps(interrupt)
        return trainee, Outcome(interrupt.exit_code if run.unfinished else 0, run.evaluations, run.seconds, run.tokens)


class _Run:
    """The moving parts of one `drive`: where it is, what it measured, what it has yet to report."""

    def __init__(self, trainee: Trainee, config: TrainConfig, checkpoints: Checkpoints, done: int):
        self.trainee, self.config, self.checkpoints, self.done = trainee, config, checkpoints, done
        self.started, self.saved = done, checkpoints.latest
        self.evaluations: dict[int, dict[str, float]] = {}
        self.seconds, self.tokens = 0.0, 0.0
        self._pending: tuple[int, Any] | None = None
        self._saving: int | None = None
        self._since = time.perf_counter()

    @property
    def unfinished(self) -> bool:
        return self.done < self.trainee.steps

    def open(self) -> "_Run":
        self.journal = Journal(Path(self.config.output), self.started) if owner() else NoJournal()
        console = None if owner() else Console(quiet=True)
        self.reporter = Reporter(self.config.name, self.trainee.steps, self.started, console)
        return self

    def __enter__(self) -> "_Run":
        self.reporter.__enter__()
        if self.started:
            self.reporter.say(f"resumed at step {self.started}/{self.trainee.steps}")
        return self

    def __exit__(self, *exc: object) -> None:
        self.reporter.__exit__(*exc)
        self.journal.close()

    def steps(self, interrupt: Interrupt | Preemption) -> None:
        """All steps that are left; a signal is obeyed between two of them."""
        self._evaluate_if_due()
        while self.unfinished and not interrupt.by(self.done):
            pending = self.trainee.advance(self.done)
            self._report()
            self._pending = (self.done, pending)
            self.done += 1
            self._evaluate_if_due()
            every = self.config.checkpoint.every
            if not self.unfinished or (every and self.done % every == 0):
                self._save()
        if self.unfinished:
            self._save()
            signal = interrupt.signal.name if interrupt.signal else "a signal"
            self.reporter.say(
                f"stopped by {signal} after step {self.done}/{self.trainee.steps}, state saved; "
                "the same command goes on from here"
            )
        self._settle()
        if owner():
            draw_curves(self.journal.rows, Path(self.config.output) / "curves.png", self.config.name)

    def _report(self) -> None:
        """Read the metrics of the step before this one: the device is already busy with the next."""
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        report = self.trainee.report(step, pending)
        self.tokens += report.tokens
        for name, values in report.by_name.items():
            self.journal.write(step + 1, "train", name, **values)
        self.reporter.step(step + 1, report.loss, report.tokens)
        self.journal.write(step + 1, "rate", "", tokens_per_second=self.reporter.rate.tokens_per_second)

    def _evaluate_if_due(self) -> None:
        every = self.config.evaluate_every
        due = self.done in (0, self.trainee.steps) or (every > 0 and self.done % every == 0)
        if not due or self.done in self.evaluations:
            return
        self._report()
        scores = self.trainee.evaluate()
        self.evaluations[self.done] = scores
        by_measure: dict[Measure, list[float]] = {}
        for name, value in scores.items():
            measure = self.trainee.measure(name)
            by_measure.setdefault(measure, []).append(value)
            self.journal.write(self.done, "heldout", name, **{SHOWN[measure]: value})
        if scores:
            means = (f"{sum(own) / len(own):.4f} {measure.replace('_', ' ')}" for measure, own in by_measure.items())
            self.reporter.say(f"held-out after step {self.done}: {', '.join(means)}")
        stopped = self.trainee.decide(scores)
        for name, updates in stopped.items():
            self.journal.write(self.done, "stopped", name, updates=float(updates))
        if stopped:
            self.reporter.say(f"after step {self.done}: {len(stopped)} stop, {len(scores) - len(stopped)} go on")
        self.reporter.total = self.trainee.steps

    def _save(self) -> None:
        self._report()
        self.journal.flush()
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        meta = {
            "config": config_dict(self.config),
            "host": self.trainee.host(),
            "evaluations": {str(step): scores for step, scores in self.evaluations.items()},
            "seconds": self.seconds,
            "tokens": self.tokens,
        }
        if self.saved != self.done:
            self._settle()
            self.checkpoints.save(self.done, self.trainee.state(), meta)
            self.saved = self._saving = self.done

    def _settle(self) -> None:
        """Wait for the save in flight, and tell the trainee."""
        if self._saving is not None:
            self.checkpoints.wait()
            self.trainee.saved(self._saving)
            self._saving = None
