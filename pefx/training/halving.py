"""Successive halving (Jamieson and Talwalkar 2016, 1502.07943): at each rung the worse cells stop, the others go on.

A session's plan does not change by it: those that go on do the same updates, at the same rates, as without rungs. What
was decided follows from what was measured, which has the same bits in every run. Host logic: no jax.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from pefx.config import HalvingConfig
from pefx.errors import PefxError
from pefx.training.journal import Measure
from pefx.training.sessions import Session


class Halving:
    """Who of `sessions` goes on, and how far. Without a config all go on to their end."""

    def __init__(self, config: HalvingConfig | None, sessions: Sequence[Session]):
        self._config = config or HalvingConfig(rungs=(), keep=1.0, seeds=1)
        self._sessions = sessions
        self._passed = 0
        self._stopped: dict[int, int] = {}  # the updates after which each stopped, by index

    @property
    def going(self) -> list[int]:
        """Those that were not stopped, by index."""
        return [index for index in range(len(self._sessions)) if index not in self._stopped]

    @property
    def rung(self) -> int | None:
        """The updates at which the next decision falls; None when all are made."""
        rungs = self._config.rungs
        return rungs[self._passed] if self._passed < len(rungs) else None

    def updates(self, index: int) -> int:
        """The updates that a session does in the end, or before the next decision."""
        return self._stopped.get(index, self.rung or self._sessions[index].steps)

    @property
    def limits(self) -> list[int]:
        """The same in micro-batches, of all sessions."""
        return [self.updates(index) * session.accumulate for index, session in enumerate(self._sessions)]

    def decide(self, scores: Mapping[str, float], measure: Measure) -> dict[str, int]:
        """All who go on stand at the rung, and were measured: who stops, by policy, with the rung. Of equal cells the
        first goes on.

        Raises PefxError where nothing is held out of one of them.
        """
        assert self.rung is not None
        seeds, cells = self._config.seeds, {}
        for index in self.going:
            cells.setdefault(index // seeds, []).append(self._score(index, scores))
        count = math.ceil(self._config.keep * len(cells) - 1e-9)  # 0.55 of 20 are 11, whatever floats say
        ranked = sorted(cells, key=lambda cell: -worth(mean(cells[cell]), measure))
        lost = sorted(set(ranked[count:]))
        stopped = {index: self.rung for cell in lost for index in range(cell * seeds, (cell + 1) * seeds)}
        self._stopped |= stopped
        self._passed += 1
        return {self._sessions[index].policy: rung for index, rung in stopped.items()}

    def _score(self, index: int, scores: Mapping[str, float]) -> float:
        policy = self._sessions[index].policy
        if policy not in scores:
            raise PefxError(f"nothing is held out of '{policy}', so that at a rung nobody is better than another")
        return scores[policy]

    def host(self) -> dict[str, Any]:
        """What was decided, as JSON."""
        stopped = {self._sessions[index].policy: updates for index, updates in self._stopped.items()}
        return {"passed": self._passed, "stopped": stopped}

    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Take up what `host` gave."""
        index_of = {session.policy: index for index, session in enumerate(self._sessions)}
        self._passed = saved["passed"]
        self._stopped = {index_of[policy]: updates for policy, updates in saved["stopped"].items()}


def worth(value: float, measure: Measure) -> float:
    """A measure as a number of which more is better; what is no number is worth the least."""
    if math.isnan(value):
        return -math.inf
    return value if measure == "reward" else -value
