"""How a run lives and dies, with a trainee so small that only the loop is tested."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.config import CheckpointConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.training.journal import METRICS, Measure, read_rows
from pefx.training.loop import StepReport, drive, finished, mark_finished

chaotic = jax.jit(lambda x, y: (3.9 * x * (1 - x) + 1e-3 * y) % 1.0, donate_argnums=0)


class Killed(Exception):
    pass


class Logistic:
    """A state whose every bit depends on every step before, and on a data position kept on the host."""

    steps = 9

    def __init__(self, stop_at: int | None = None, signal_at: int | None = None, more: int = 0):
        self.x, self.position = jnp.full(5, 0.3), 0
        self.stop_at, self.signal_at = stop_at, signal_at
        self.evaluations = self.done = 0
        self.more = more
        self.last_saved = -1

    def advance(self, step: int) -> Any:
        if step == self.stop_at:
            raise Killed
        if step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.position += step + 1
        self.done = step + 1
        self.x = chaotic(self.x, jnp.float32(self.position))
        return jnp.mean(self.x)

    def report(self, step: int, pending: Any) -> StepReport:
        loss = float(pending)
        return StepReport(loss, 5.0, {"ann": {"loss": loss}})

    def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        return {"ann": float(self.x[0])}

    def measure(self, name: str) -> Measure:
        return "nats_per_token"

    def decide(self, scores: Mapping[str, float]) -> Mapping[str, int]:
        if not self.more or self.done != self.steps:
            return {}
        self.steps, self.more = self.steps + self.more, 0
        return {"bob": 3}

    def state(self) -> Any:
        return {"x": self.x}

    def host(self) -> dict[str, Any]:
        return {"position": self.position, "done": self.done, "steps": self.steps, "more": self.more}

    def restore(self, host: Mapping[str, Any], load: Callable[[Any], Any]) -> None:
        self.x, self.position = load(self.state())["x"], host["position"]
        self.done, self.steps, self.more = host["done"], host["steps"], host["more"]

    def saved(self, step: int) -> None:
        self.last_saved = step

    def bits(self) -> tuple[bytes, int]:
        return np.asarray(self.x).tobytes(), self.position


def config(directory: Path, **fields: Any) -> TrainConfig:
    users = (UserConfig("ann", "ann.jsonl"),)
    checkpoint = CheckpointConfig(every=2)
    return replace(TrainConfig(name="run", output=str(directory), users=users, checkpoint=checkpoint), **fields)


def metrics(directory: Path) -> list[tuple[int, str, float]]:
    rows = read_rows(directory / METRICS)
    return [(row["step"], row["kind"], row.get("loss", 0.0)) for row in rows if row["kind"] != "rate"]


@pytest.fixture(name="whole")
def whole_run(tmp_path: Path) -> tuple[tuple[bytes, int], list[tuple[int, str, float]], dict[int, dict[str, float]]]:
    trainee, outcome = drive(Logistic, config(tmp_path / "whole", evaluate_every=3))
    assert outcome.exit_code == 0
    assert outcome.tokens == 45
    assert sorted(outcome.evaluations) == [0, 3, 6, 9]
    assert trainee.last_saved == 9
    assert (tmp_path / "whole" / "curves.png").exists()
    return trainee.bits(), metrics(tmp_path / "whole"), outcome.evaluations


@pytest.mark.parametrize("stop", [1, 4, 5, 8])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, whole: Any, stop: int) -> None:
    here = config(tmp_path / "killed", evaluate_every=3)
    with pytest.raises(Killed):
        drive(lambda: Logistic(stop_at=stop), here)
    trainee, outcome = drive(Logistic, here)
    assert (trainee.bits(), outcome.evaluations) == (whole[0], whole[2])
    assert metrics(tmp_path / "killed") == whole[1]
    assert outcome.tokens == 45


@pytest.mark.parametrize("stop", [8, 9, 10])
def test_a_run_that_is_longer_after_a_decision(tmp_path: Path, stop: int) -> None:
    here = config(tmp_path / "killed", checkpoint=CheckpointConfig(every=3))
    with pytest.raises(Killed):
        drive(lambda: Logistic(stop_at=stop, more=3), here)
    _, outcome = drive(lambda: Logistic(more=3), here)
    assert sorted(outcome.evaluations) == [0, 9, 12]
    assert [one[:2] for one in metrics(tmp_path / "killed") if one[1] != "train"] == [
        (0, "heldout"), (9, "heldout"), (9, "stopped"), (12, "heldout"),
    ]  # fmt: skip


def test_sigterm_saves_at_once_and_says_so(tmp_path: Path, whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here = config(tmp_path / "term", evaluate_every=3, checkpoint=CheckpointConfig(every=0))
    trainee, outcome = drive(lambda: Logistic(signal_at=4), here)
    assert outcome.exit_code == 143
    assert "stopped by SIGTERM after step 5/9, state saved" in capsys.readouterr().out
    trainee, outcome = drive(Logistic, here)
    assert "resumed at step 5/9" in capsys.readouterr().out
    assert outcome.exit_code == 0
    assert trainee.bits() == whole[0]
    assert metrics(tmp_path / "term") == whole[1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_complete_run_is_not_run_again(tmp_path: Path, whole: Any) -> None:
    trainee, outcome = drive(lambda: Logistic(stop_at=0), config(tmp_path / "whole", evaluate_every=3))
    assert trainee.bits() == whole[0]
    assert trainee.evaluations == 0
    assert outcome.evaluations == whole[2]


def test_another_config_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        drive(lambda: Logistic(stop_at=4), config(tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(PefxError, match="config field 'seed' was 0, now it is 5"):
        drive(lambda: Logistic(stop_at=0), config(tmp_path, seed=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse() -> Logistic:
        raise PefxError("ann.jsonl: line 3: broken")

    with pytest.raises(PefxError, match="line 3"):
        drive(refuse, config(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_finished_mark(tmp_path: Path) -> None:
    here = config(tmp_path)
    assert finished(here) is None
    mark_finished(here, {"revisions": {}})
    record = finished(here)
    assert record is not None
    assert record["result"] == {"revisions": {}}
    with pytest.raises(PefxError, match="'steps' was 40, now it is 41"):
        finished(replace(here, steps=41))
    (tmp_path / "finished.json").write_text(json.dumps([1])[:-1])
    with pytest.raises(PefxError, match="not a record of a finished run"):
        finished(here)
