"""Tasks whose problems are drawn by number, on two sides that never meet."""

import hashlib
from collections.abc import Sequence
from random import Random

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.tasks.kind import Kind, Value
from pefx.rl.tasks.protocol import Problem, Split, Turn

PLACES = 128
HELDOUT_PLACES = 16  # an eighth
ATTEMPTS = 10_000


def place_of(problem: Problem) -> int:
    """A number below `PLACES` that follows from what the problem is; those below `HELDOUT_PLACES` are held out.

    Nothing else decides: a problem is on the same side for every seed, level and user.
    """
    digest = hashlib.sha256(problem.name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % PLACES


def split_of(problem: Problem) -> Split:
    """The only split that a problem may be in."""
    return "heldout" if place_of(problem) < HELDOUT_PLACES else "train"


class Generated:
    """A built-in task, with the options of its config and the defaults of the others."""

    def __init__(self, config: TaskConfig, kind: Kind):
        self.config = config
        self.trusted = kind.trusted
        self.turns = config.turns if kind.turns(config.level) > 1 else 1
        self._kind = kind
        self._options: dict[str, Value] = {name: values[0] for name, values in kind.options.items()}
        self._options |= dict(config.options)
        self._partial = kind.partial if config.partial is None else config.partial

    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` of a split; raises PefxError where the options leave no problem for it."""
        name, level, seed = self.config.name, self.config.level, self.config.seed
        for attempt in range(ATTEMPTS):
            problem = self._kind.draw(Random(f"{name} {seed} {split} {index} {attempt}"), level, self._options)
            if split_of(problem) == split:
                return problem
        raise PefxError(f"task.options: {dict(self.config.options)} leave {name} no problem in the split {split!r}")

    def step(self, problem: Problem, texts: Sequence[str]) -> Turn:
        """The kind's turn, its closeness made a reward; parts `exact` and `close` say which was which."""
        turn = self._kind.step(problem, texts)
        if not turn.done and len(texts) < self.config.turns:
            return turn
        close = turn.reward if turn.done else 0.0
        reward = 1.0 if close == 1.0 else self._partial * close
        return Turn(True, reward=reward, parts={"exact": float(close == 1.0), "close": close, **turn.parts})

    def answer(self, problem: Problem, texts: Sequence[str] = ()) -> str:
        return self._kind.answer(problem, texts)
