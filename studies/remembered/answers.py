"""Questions asked through `serve.py`, of memories that were kept and of others: the share that is right."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pefx.config import AdapterSpec, ServeConfig
from pefx.rl.tasks.protocol import END
from studies.populations.cells import Cell
from studies.programs.commands import answer
from studies.remembered.facts import Asked
from studies.rewarded.runs import BASE

ROOM = AdapterSpec("delta_mem", rank=8, alpha=16.0, targets=("memory",), states=4)
Right = dict[str, list[float]]  # by who was asked: the share of right answers of each seed


@dataclass(frozen=True)
class Exam:
    """Questions by seed, asked of the catalog in `folder`."""

    questions: Sequence[Sequence[Asked]]
    folder: Path

    def of_memories(self, name: str, cell: Cell) -> Right:
        """A case with what it was told kept in a memory, and with an empty one."""
        steps = 1 if cell.adapter.writes == "tokens" else len(self.questions[0][0].facts)
        for step in range(steps):
            self._answered(f"{name}-told-{step}", [self._told(cell, *at, step, steps) for at in self._all()])
        policies = {name: self._state, f"{name}, nothing kept": lambda cell, seed, place: cell.policy(seed)}
        return {
            who: self._shares(
                f"{name}-asked-{index}",
                lambda seed, place, policy=policy: {"policy": policy(cell, seed, place), "writes": "none"},
            )
            for index, (who, policy) in enumerate(policies.items())
        }

    def of_contexts(self) -> Right:
        """The base: with nothing before the question, with what a search finds, and with all facts."""

        def before(way: str, own: Asked) -> str:
            return {"nothing": "", "search": own.found + END, "all": ", ".join(own.facts) + END}[way]

        return {
            who: self._shares(f"context-{way}", lambda seed, place: {}, lambda own, way=way: before(way, own))
            for way, who in (("nothing", "bare base"), ("search", "search"), ("all", "full context"))
        }

    def of_adapters(self, policies: Sequence[Sequence[str]]) -> Right:
        """LoRA that learned a history: of each seed, as many as there are policies."""
        few = Exam([own[: len(names)] for own, names in zip(self.questions, policies, strict=True)], self.folder)
        return {"LoRA": few._shares("adapters", lambda seed, place: {"policy": policies[seed][place]})}

    def _all(self) -> list[tuple[int, int]]:
        return [(seed, place) for seed, own in enumerate(self.questions) for place in range(len(own))]

    def _state(self, cell: Cell, seed: int, place: int) -> str:
        return f"state-{cell.policy(seed)}/{place}"

    def _told(self, cell: Cell, seed: int, place: int, step: int, steps: int) -> dict[str, Any]:
        """A request that a memory is kept of: a history, or one message of it after those before."""
        own, state = self.questions[seed][place], self._state(cell, seed, place)
        facts = own.facts if steps == 1 else own.facts[step : step + 1]
        text = "".join(fact + END for fact in facts)
        return {"prompt": text, "policy": state if step else cell.policy(seed), "remember": state, "max_tokens": 1}

    def _shares(self, name: str, who: Any, before: Any = lambda own: "") -> list[float]:
        """Of each seed, the share of questions whose greedy answer is right."""
        requests = [
            {"prompt": before(own) + own.question, "max_tokens": 8, **who(seed, place)}
            for seed, place in self._all()
            for own in [self.questions[seed][place]]
        ]
        found: list[list[float]] = [[] for _ in self.questions]
        for (seed, place), row in zip(self._all(), self._answered(name, requests), strict=True):
            found[seed].append(float(row["text"].split(END)[0] + END == self.questions[seed][place].answer))
        return [float(np.mean(own)) for own in found]

    def _answered(self, name: str, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        rows = [{"id": str(i), "temperature": 0.0, **request} for i, request in enumerate(requests)]
        config = ServeConfig(
            name=name,
            base=str(BASE),
            catalog=str(self.folder / "catalog"),
            sequences=64,
            step_tokens=256,
            others=(ROOM,),
        )
        lines = answer(config, rows, self.folder, name).read_text(encoding="utf-8").splitlines()
        found = [json.loads(one) for one in lines]
        wrong = next((row for row in found if "error" in row), None)
        if wrong is not None:
            raise RuntimeError(f"{name}: {wrong}")
        return found
