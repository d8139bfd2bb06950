"""Answers are asked for, rewarded, and come back in order, whatever goes wrong on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pefx.config import RolloutConfig, TaskConfig
from pefx.rl.drawing import Wish, draw, failed, fitting
from pefx.rl.records import Rollout
from pefx.rl.rewards import Rewards
from pefx.rl.sampler import Ask, More
from pefx.rl.tasks.table import make_task
from pefx.serving.live import LiveRevision
from tests.rl_examples import rollout
from tests.serving_fakes import SPEC

HOW = RolloutConfig(prompts=2, group=3, max_tokens=5, temperature=0.7, top_p=0.9)


class Answering:
    """A sampler that knows the answers; of every third sample it says something else. Answers come last first."""

    def __init__(self, task: Any):
        self.task, self.asked = task, []

    def stream(self, asks: Sequence[Ask], more: More) -> Iterator[tuple[int, Rollout]]:
        self.asked += asks
        for index, ask in reversed(list(enumerate(asks))):
            problem = next(
                found
                for split in ("train", "heldout")
                if (found := self.task.problem(ask.group, split)).prompt == ask.prompt
            )
            texts: list[str] = []
            transcript = [str(ask.prompt)]
            said: str | None = ""
            while said is not None:
                texts.append("?\n" if ask.sample % 3 == 2 else self.task.answer(problem, texts))
                said = more(ask, tuple(texts))
                transcript += [texts[-1]] if said is None else [texts[-1], said]
            yield index, rollout(ask.group, ask.sample, np.nan, transcript=tuple(transcript), turns=len(texts))


def wish(name: str, start: int, split: Any = "train", **fields: Any) -> Wish:
    revision = LiveRevision("ann", 0, "run", SPEC)
    return Wish(revision, make_task(TaskConfig(name, **fields)), split, start, 2, 3, 5, HOW)


def test_asks_follow_from_seed_problem_and_sample() -> None:
    asks = wish("sorting", 4).asks()
    assert [(ask.group, ask.sample) for ask in asks] == [(g, s) for g in (4, 5) for s in range(3)]
    assert len({ask.seed for ask in asks}) == 6
    assert asks[3:] == wish("sorting", 5).asks()[:3]
    assert {(ask.temperature, ask.top_p, ask.max_tokens, ask.stop) for ask in asks} == {(0.7, 0.9, 5, ("\n",))}
    assert {(ask.temperature, ask.top_p) for ask in wish("sorting", 0, "heldout").asks()} == {(0.0, 1.0)}


def test_answers_of_every_kind_of_task_are_rewarded_in_order() -> None:
    for name in ("sorting", "lookup", "programs"):  # at once; over several turns; by other processes
        wishes = [wish(name, 0), wish(name, 2, "heldout")]
        with Rewards() as rewards:
            drawn = draw(Answering(wishes[0].task), rewards, wishes)
        for own, found in zip(wishes, drawn, strict=True):
            assert [(one.group, one.sample) for one in found] == [(a.group, a.sample) for a in own.asks()]
            assert [one.reward for one in found] == [1.0, 1.0, 0.0] * 2
            assert all(one.error is None for one in found)


def test_what_is_too_long_or_failed_cannot_be_learned_from() -> None:
    one = rollout(0, 0, 1.0)  # seven tokens: six are read
    assert fitting(one, 6) is one
    long = fitting(one, 5)
    assert long.error == "too long: 6 tokens; data.sequence_length is 5"
    assert failed([one, long, replace(one, error="not drawn")]) == 2
