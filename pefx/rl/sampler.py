"""Rollouts from a serving engine: prompts in, whole trajectories out, each as it would be alone. Plain Python.

Samples of one prompt have it computed once: they wait for the first of them, and find its pages. A further turn is a
new request whose prompt is all tokens so far, which are found in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import nan

import numpy as np

from pefx.errors import PefxError
from pefx.rl.records import Rollout
from pefx.serving.engine import Engine, Tokenizer
from pefx.serving.jobs import Answered
from pefx.serving.requests import checked
from pefx.serving.sequence import BASE, Adapter

WAIT = 1.0  # seconds for weights that are on their way, of revisions that are not live
FULL = ("prompt_too_long", "too_long")  # kinds of errors: no further turn fits


@dataclass(frozen=True)
class Ask:
    """One sample that is wanted of `revision` (None: the bare base), sample `sample` of prompt `group` of `task`.

    A turn ends at the end token (unless `ignore_eos`), at a stop string, at a stop token, or after `max_tokens`. Draws
    follow from `seed` and positions alone. Log-probabilities are the model's at temperature 1, whatever `temperature`
    and `top_p` are drawn with: those of the policy that draws only where both are 1.
    """

    revision: Adapter | None
    task: str
    group: int
    sample: int
    prompt: str | tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def policy(self) -> str:
        """Whose it is; the bare base goes by the name that its pages have."""
        return BASE if self.revision is None else self.revision.policy


# After a turn, with the texts drawn in all turns so far: what the task says then, or None where it is over.
More = Callable[[Ask, tuple[str, ...]], str | None]


def single_turn(ask: Ask, texts: tuple[str, ...]) -> str | None:
    """Nothing follows the first answer."""
    return None


@dataclass(eq=False)
class Trajectory:
    """An ask on its way, by its place among all: the tokens so far, and what is known of each."""

    index: int
    ask: Ask
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)
    routes: np.ndarray | None = None
    finish_reason: str = "error"

    def say(self, text: str, tokens: Sequence[int]) -> None:
        """The task said something: the prompt, or what follows a turn."""
        self._add(tokens, [0.0] * len(tokens), sampled=False)
        self.transcript.append(text)

    def _add(self, tokens: Sequence[int], logprobs: Sequence[float], sampled: bool) -> None:
        self.tokens += tokens
        self.sampled += [sampled] * len(tokens)
        self.logprobs += logprobs

    @property
    def texts(self) -> tuple[str, ...]:
        """What was drawn in each turn."""
        return tuple(self.transcript[1::2])

    def take(self, answered: Answered) -> None:
        """One more turn is over."""
        (choice,) = answered.choices
        drawn = choice.generation
        self._add(drawn.tokens, drawn.logprobs, sampled=True)
        self.transcript.append(drawn.text)
        self.finish_reason = drawn.finish_reason or "error"
        if choice.routes is not None:
            self.routes = choice.routes.of(0, len(self.tokens))

    def rollout(self, error: str | None = None) -> Rollout:
        """What it came to."""
        ask = self.ask
        return Rollout(
            policy=ask.policy,
            task=ask.task,
            group=ask.group,
            sample=ask.sample,
            revision=0 if ask.revision is None else ask.revision.number,
            seed=ask.seed,
            tokens=np.array(self.tokens, np.int32),
            sampled=np.array(self.sampled, np.bool_),
            logprobs=np.array(self.logprobs, np.float32),
            routes=self.routes,
            reward=nan,
            parts={},
            finish_reason=self.finish_reason if error is None else "error",
            text="".join(self.texts),
            turns=len(self.texts),
            error=None if error is None else error.encode(errors="backslashreplace").decode(),
            transcript=tuple(self.transcript),
        )


class Sampler:
    """Drives `engine`, which nobody else does meanwhile. With `routes` those of every token are recorded."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, routes: bool = True):
        self._engine, self._tokenizer, self._routes = engine, tokenizer, routes
        self._handles = count()

    def sample(self, asks: Sequence[Ask], more: More = single_turn) -> list[Rollout]:
        """A rollout for each ask, in their order, without rewards. One that fails has its error; others go on.

        Raises PefxError only where the engine can serve nothing any more.
        """
        found = dict(self.stream(asks, more))
        return [found[index] for index in range(len(asks))]

    def stream(self, asks: Sequence[Ask], more: More = single_turn) -> Iterator[tuple[int, Rollout]]:
        """As `sample`, each with the index of its ask as soon as it is over. What is on its way when nobody reads on is
        given up.
        """
        running: dict[int, Trajectory] = {}
        first: dict[tuple[str, str | tuple[int, ...]], int] = {}  # by revision and prompt: who computes it
        try:
            for index, ask in enumerate(asks):
                trajectory, same = Trajectory(index, ask), (_key(ask), ask.prompt)
                try:
                    handle = self._submit(trajectory, ask.prompt, first.get(same))
                except PefxError as error:
                    yield index, trajectory.rollout(str(error))
                    continue
                first.setdefault(same, handle)
                running[handle] = trajectory
            while running or not self._engine.idle:
                for answered in self._engine.step():
                    trajectory = running.pop(answered.handle)
                    following = self._follow(trajectory, answered, more)
                    if isinstance(following, Rollout):
                        yield trajectory.index, following
                    else:
                        running[following] = trajectory
                self._engine.wait(WAIT)
        finally:
            for handle in running:
                self._engine.cancel(handle)

    def _follow(self, trajectory: Trajectory, answered: Answered, more: More) -> Rollout | int:
        """What a trajectory came to, or the handle of its next turn."""
        if "error" in answered.row:
            return trajectory.rollout(answered.row["error"]["message"])
        trajectory.take(answered)
        try:
            said = more(trajectory.ask, trajectory.texts)
            if said is not None and not isinstance(said, str):
                raise TypeError(f"neither a string nor None, but {type(said).__name__}")
        except Exception as error:  # noqa: BLE001 - a task's own trouble, of whatever kind, is that of its rollout
            return trajectory.rollout(f"what follows a turn: {type(error).__name__}: {error}")
        if said is None:
            return trajectory.rollout()
        try:
            return self._submit(trajectory, said)
        except PefxError as error:
            if error.kind not in FULL:
                return trajectory.rollout(str(error))
            trajectory.finish_reason = "length"
            return trajectory.rollout()

    def _submit(self, trajectory: Trajectory, said: str | tuple[int, ...], behind: int | None = None) -> int:
        """Ask for the turn after `said`; the handle of it. Raises PefxError, and nothing has changed."""
        ask = trajectory.ask
        tokens = list(said) if isinstance(said, tuple) else self._encode(said)
        row = {
            "id": f"{ask.policy} {ask.task} {ask.group} {ask.sample}",
            "prompt": [*trajectory.tokens, *tokens],
            "policy": None if ask.revision is None else ask.policy,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "seed": ask.seed,
            "stop": list(ask.stop),
            "stop_token_ids": list(ask.stop_token_ids),
            "ignore_eos": ask.ignore_eos,
        }
        where = f"policy '{ask.policy}', task '{ask.task}', prompt {ask.group}, sample {ask.sample}"
        handle = next(self._handles)
        request = replace(checked(row, where), routes=self._routes)
        self._engine.submit(handle, request, ask.revision, behind=behind)
        trajectory.say(self._tokenizer.decode(tokens) if isinstance(said, tuple) else said, tokens)
        return handle

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PefxError(f"what is said to a policy is no UTF-8 text: {error.reason}") from None
        return self._tokenizer.encode(text)


def _key(ask: Ask) -> str:
    return BASE if ask.revision is None else ask.revision.content_hash
