"""Answers to problems, drawn and rewarded: many policies' at once, each as it would be alone. Plain Python."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Protocol, runtime_checkable

from pefx.config import RolloutConfig
from pefx.rl.records import Rollout
from pefx.rl.rewards import Outcome, RewardError, Rewards
from pefx.rl.sampler import Ask, More
from pefx.rl.tasks.protocol import END, Problem, Split, Task, Turn
from pefx.rl.tasks.table import JSONL
from pefx.serving.sequence import Adapter


@dataclass(frozen=True)
class Wish:
    """Answers that are wanted of `revision`: `samples` to each of problems [start, start + count) of a split.

    `seed` is the policy's own: draws follow from it, the problem and the sample alone. Held-out problems are answered
    at a temperature of their own.
    """

    revision: Adapter
    task: Task
    split: Split
    start: int
    count: int
    samples: int
    seed: int
    rollout: RolloutConfig

    def prompt(self, index: int) -> str:
        """What is said to the policy."""
        problem = self.task.problem(index, self.split)
        return (problem.context if self.rollout.context and self.split == "train" else "") + problem.prompt

    def asks(self) -> list[Ask]:
        """An ask for each sample, problem by problem."""
        how, trained = self.rollout, self.split == "train"
        return [
            Ask(
                revision=self.revision,
                task=self.task.config.name,
                group=index,
                sample=sample,
                prompt=self.prompt(index),
                seed=_seed(self.seed, self.split, index, sample),
                max_tokens=how.max_tokens,
                temperature=how.temperature if trained else how.heldout_temperature,
                top_p=how.top_p if trained else 1.0,
                stop=() if self.task.config.name == JSONL else (END,),
            )
            for index in range(self.start, self.start + self.count)
            for sample in range(self.samples)
        ]


@runtime_checkable
class Draws(Protocol):
    """What is asked of a sampler: `pefx.rl.sampler.Sampler`."""

    def stream(self, asks: Sequence[Ask], more: More) -> Iterator[tuple[int, Rollout]]: ...


def draw(sampler: Draws, rewards: Rewards, wishes: Sequence[Wish]) -> list[list[Rollout]]:
    """The rewarded answers to each wish, in the order of its asks.

    Rewards are evaluated while others are drawn. An answer whose reward failed has none, and says why.
    """
    asks = [(place, ask) for place, wish in enumerate(wishes) for ask in wish.asks()]
    owner = {id(ask): wishes[place] for place, ask in asks}
    turns: dict[int, Turn] = {}  # the last of each ask, of trusted tasks

    def problem(ask: Ask) -> tuple[Task, Problem]:
        wish = owner[id(ask)]
        return wish.task, wish.task.problem(ask.group, wish.split)

    def more(ask: Ask, texts: tuple[str, ...]) -> str | None:
        task, given = problem(ask)
        if not task.trusted:  # one turn; its reward may take its time
            return None
        turn = turns[id(ask)] = task.step(given, texts)
        return None if turn.done else turn.observation

    found: dict[int, Rollout] = {}
    for index, rollout in sampler.stream([ask for _, ask in asks], more):
        ask = asks[index][1]
        turn = turns.pop(id(ask), None)
        found[index] = rollout
        if rollout.error is None and turn is not None:
            found[index] = rewarded(rollout, turn if turn.done else Turn(True))
        elif rollout.error is None:
            rewards.submit(index, *problem(ask), rollout.transcript[1::2])
    while outcomes := rewards.collect(wait=True):
        for key, outcome in outcomes:
            assert isinstance(key, int)
            found[key] = rewarded(found[key], outcome)
    drawn: list[list[Rollout]] = [[] for _ in wishes]
    for index, (place, _) in enumerate(asks):
        drawn[place].append(found[index])
    return drawn


def rewarded(rollout: Rollout, outcome: Outcome) -> Rollout:
    """The rollout with what it was rewarded with, or why it was not."""
    if isinstance(outcome, RewardError):
        return replace(rollout, reward=nan, error=f"reward: {outcome.kind}: {outcome.message}")
    return replace(rollout, reward=outcome.reward, parts=dict(outcome.parts))


def fitting(rollout: Rollout, length: int, context: int = 0) -> Rollout:
    """The rollout; with an error where it has more than the `length` tokens that a lesson may have, or would have with
    `context` tokens before it.
    """
    tokens = len(rollout.tokens) + context - 1
    if rollout.error is not None or tokens <= length:
        return rollout
    told = f"{tokens} tokens{f', {context} of them context' if context else ''}"
    return replace(rollout, error=f"too long: {told}; data.sequence_length is {length}")


def failed(rollouts: Sequence[Rollout]) -> int:
    """How many cannot be learned from: not drawn, too long, or without a reward."""
    return sum(rollout.error is not None for rollout in rollouts)


def _seed(*names: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:4], "big")
