"""What a task is: problems by number, and what the policy's completions are answered and rewarded with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from pefx.config import TaskConfig

Split = Literal["train", "heldout"]
# Ends every prompt, completion and observation of the built-in tasks. A tokenizer keeps a line break apart from
# whatever follows, so a prompt has the same tokens before any completion.
END = "\n"


@dataclass(frozen=True)
class Problem:
    """A prompt, and in `data` what its reward needs: values that JSON can hold.

    Problems with the same `identity` (the prompt, where it is empty) are the same problem. `context` is what could be
    shown before the prompt, and is not; a loss may score answers with it.
    """

    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    context: str = ""

    @property
    def name(self) -> str:
        """What the problem is told from others by."""
        return self.identity or self.prompt


@dataclass(frozen=True)
class Turn:
    """What follows a completion: `observation` is appended to the context unless the problem is over (`done`).

    `reward` counts where `done`; `parts` are numbers that say how it came about.
    """

    done: bool
    observation: str = ""
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Judge(Protocol):
    """The part of a task that rewards."""

    def step(self, problem: Problem, texts: Sequence[str]) -> Turn:
        """The answer to the last of `texts`, the policy's completions so far (at least one); a pure function."""
        ...


@runtime_checkable
class Task(Judge, Protocol):
    """Problems and their rewards. Where it is `trusted`, `step` is quick, never fails and runs no one else's code."""

    config: TaskConfig
    trusted: bool
    turns: int  # completions after which a problem is over at the latest

    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` (from 0, without end) of a split: a pure function of the config, the split and the index.

        No problem is in both splits.
        """
        ...

    def answer(self, problem: Problem, texts: Sequence[str] = ()) -> str | None:
        """A right completion after those in `texts`, its end mark included; None where the task knows none."""
        ...
