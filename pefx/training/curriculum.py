"""What the sessions of a run learn from: text here, rewarded answers in `pefx.rl`. One loop and one step for both."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pefx.config import TrainConfig
from pefx.data.formats import Example
from pefx.data.pipeline import UserStream, heldout_set, train_stream
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.losses.rows import NUMBER
from pefx.training.journal import Measure
from pefx.training.planner import Lesson
from pefx.training.remembering import remembered
from pefx.training.sessions import Session

Numbers = Mapping[str, float]  # fields of a `PolicyNumbers`, of one session


@runtime_checkable
class Curriculum(Protocol):
    """Lessons of all sessions of a run, by their index. What a session learns depends on no other's."""

    terms: bool  # whether lessons carry what losses of the table read
    routes: tuple[int, int] | None  # layers with experts and experts of a token, where lessons carry routes

    def fingerprint(self, index: int) -> str:
        """Names all that a session will learn from."""
        ...

    def measure(self, index: int) -> Measure:
        """What a session is measured by on what is held out."""
        ...

    def prepare(self, active: Sequence[int], training: Any) -> None:
        """These sessions take lessons next, of a run that stands as `training` (an `AdapterTraining`) does."""
        ...

    def take(self, index: int, position: int, row: int) -> tuple[list[Lesson], int]:
        """The next micro-batch from a position on, for active row `row` of its shard's step; the position after it."""
        ...

    def numbers(self, index: int, lessons: Sequence[Lesson]) -> Numbers:
        """The loss of a session, and what its sums over these lessons are divided by."""
        ...

    def report(self, index: int, lessons: Sequence[Lesson], seen: Sequence[tuple[np.ndarray, np.ndarray]]) -> Numbers:
        """What there is to say of a micro-batch, given log-probabilities and entropies of each lesson's targets."""
        ...

    def heldout(self, index: int) -> tuple[Lesson, ...]:
        """Texts whose nats per token are its measure; none where it has another, or none."""
        ...

    def evaluate(self, indices: Sequence[int], training: Any) -> dict[str, float]:
        """Other measures of these sessions, by policy."""
        ...

    def host(self, index: int) -> Any:
        """What a session has yet to learn from, as JSON, beyond what its position says."""
        ...

    def restore(self, index: int, saved: Any) -> None:
        """What `host` gave; None: nothing is left."""
        ...


class Texts:
    """Lessons from the users' files of text."""

    terms = False
    routes: tuple[int, int] | None = None

    def __init__(self, config: TrainConfig, sessions: Sequence[Session], tokenizer: Tokenizer):
        self._config = config
        self._users, self._specs = [session.user for session in sessions], [session.spec for session in sessions]
        self._streams = [self._open(index, tokenizer) for index in range(len(sessions))]
        self._heldout = [self._examined(index, tokenizer) for index in range(len(sessions))]

    def _open(self, index: int, tokenizer: Tokenizer) -> UserStream | None:
        user = self._users[index]
        if user.train is None:
            return None
        stream = train_stream(user, self._config.data, tokenizer)
        self._check(index, user.train, bool(stream.source.history))
        return stream

    def _check(self, index: int, path: str | None, history: bool) -> None:
        """Raise PefxError where a file of a user has a history that nothing of its adapter reads."""
        if history and self._specs[index].method != "delta_mem":
            told = "has lines with a history, which only an adapter of method 'delta_mem' reads"
            raise PefxError(f"{path}: {told}, not that of '{self._users[index].name}'", "bad_adapter")

    def _examined(self, index: int, tokenizer: Tokenizer) -> tuple[Lesson, ...]:
        user = self._users[index]
        examples = heldout_set(user, self._config.data, tokenizer)
        self._check(index, user.heldout, any(example.history for example in examples))
        return tuple(self._lesson(index, example, -1) for example in examples)

    def _stream(self, index: int) -> UserStream:
        stream = self._streams[index]
        if stream is None:
            raise RuntimeError(f"user '{self._users[index].name}' has no text")
        return stream

    def fingerprint(self, index: int) -> str:
        return self._stream(index).fingerprint

    def measure(self, index: int) -> Measure:
        return "nats_per_token"

    def prepare(self, active: Sequence[int], training: Any) -> None:
        """Text is there."""

    def take(self, index: int, position: int, row: int) -> tuple[list[Lesson], int]:
        share, page = self._config.data.tokens_per_user, self._config.page_size
        examples, position = self._stream(index).take(position, share, page)
        return [self._lesson(index, example, row) for example in examples], position

    def _lesson(self, index: int, example: Example, slot: int) -> Lesson:
        return remembered(example, self._specs[index], self._config.data.sequence_length, slot)

    def numbers(self, index: int, lessons: Sequence[Lesson]) -> Numbers:
        weight = sum(float(np.sum(item.weights, dtype=np.float64)) for item in lessons)
        return {"loss": float(NUMBER["cross_entropy"]), "denominator": weight}

    def report(self, index: int, lessons: Sequence[Lesson], seen: Sequence[tuple[np.ndarray, np.ndarray]]) -> Numbers:
        return {}

    def heldout(self, index: int) -> tuple[Lesson, ...]:
        return self._heldout[index]

    def evaluate(self, indices: Sequence[int], training: Any) -> dict[str, float]:
        return {}

    def host(self, index: int) -> Any:
        return None

    def restore(self, index: int, saved: Any) -> None:
        """Its position says it all."""
