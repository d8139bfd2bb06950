"""One answer on its way, and what a step computes of it. Plain data: the scheduler changes it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.packing import Span
from pefx.serving.generation import Generation
from pefx.serving.memory import Memory
from pefx.serving.pages import Node
from pefx.serving.routes import RouteRecord
from pefx.serving.shaping import Shaper

SAMPLE = -1  # the target of a row whose next token is to be drawn
BASE = "base"  # the root of pages and the tenant of who asks for no adapter


@runtime_checkable
class Adapter(Protocol):
    """What the engine needs to know of a revision: its name, the name of its weights, and what shape they have."""

    @property
    def key(self) -> str: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def policy(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def spec(self) -> AdapterSpec: ...


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; `seed` in [0, 2^32). Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    seed: int


@dataclass(eq=False)
class Sequence:
    """One answer: `handle` and `choice` are the caller's name for it, `revision` None the bare base.

    `done` tokens are in the pool, in `pages`. It waits for `leader`, of the same prompt, to have brought that there.
    `top` likeliest tokens are told of each that is drawn, and `routes` of all that are fed.
    `arrival` is its place in the order of submission; this and
    what follows is set by the scheduler. `cached` tokens of it were in the pool already when it `entered` first.
    Once it has `ended` nobody knows of it any more.
    """

    handle: int
    prompt: list[int]
    revision: Any  # an Adapter, or None
    sampling: Sampling
    generation: Generation
    max_tokens: int
    score_prompt: bool = False
    choice: int = 0
    top: int = 0
    priority: int = 0
    shaper: Shaper | None = None
    leader: "Sequence | None" = None
    routes: RouteRecord | None = None
    memory: Memory | None = None
    prompt_logprobs: list[float | None] = field(default_factory=lambda: [None])
    error: PefxError | None = None
    arrival: int = -1
    shard: int = -1
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    node: Node = BASE
    published: int = 0
    done: int = 0
    cached: int = 0
    entered: bool = False
    ended: bool = False
    passed: int = 0

    @property
    def root(self) -> Node:
        """What names the weights that its keys and values come from, and the memory that it begins with."""
        if self.revision is None:
            return BASE
        return self.revision.content_hash if self.memory is None else (self.revision.content_hash, self.memory.root)

    @property
    def asked(self) -> Any:
        """The revision that was asked for: a state, or what it is served by."""
        return self.revision if self.memory is None or self.memory.state is None else self.memory.state

    @property
    def needs(self) -> list[Any]:
        """Revisions whose weights it cannot begin without."""
        state = None if self.memory is None else self.memory.state
        return [revision for revision in (self.revision, state) if revision is not None]

    def shared(self, tokens: int) -> int:
        """How many of so many leading tokens lie on pages that others may use."""
        return tokens if self.memory is None else self.memory.shared(tokens)

    @property
    def tenant(self) -> str:
        return BASE if self.revision is None else self.asked.policy

    @property
    def length(self) -> int:
        """The most tokens that will ever be in the pool: the last drawn token is never fed."""
        return len(self.prompt) + max(self.max_tokens - 1, 0)

    @property
    def known(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.prompt) + len(self.generation.tokens)

    @property
    def left(self) -> int:
        """Tokens that are known and not in the pool: one where it decodes."""
        return self.known - self.done

    @property
    def over(self) -> bool:
        finished = self.done >= len(self.prompt) and self.generation.finish_reason is not None
        return finished or self.error is not None

    def tokens(self, start: int, end: int) -> list[int]:
        """Those of positions [start, end)."""
        prompt, drawn = self.prompt, self.generation.tokens
        if start >= len(prompt):
            return drawn[start - len(prompt) : end - len(prompt)]
        return prompt[start:end] if end <= len(prompt) else prompt[start:] + drawn[: end - len(prompt)]


@dataclass(frozen=True)
class Load:
    """Weights of `revision` must be in `slot` of shard `shard` before the next step."""

    shard: int
    slot: int
    revision: Any


class Wanted(NamedTuple):
    """The distribution after token `offset` of span `span`: score `target`, or draw a token (`SAMPLE`)."""

    span: int
    offset: int
    target: int


@dataclass(frozen=True)
class StepPlan:
    """One step: span i belongs to sequence i, which names its shard."""

    sequences: tuple[Sequence, ...]
    spans: tuple[Span, ...]
    wanted: tuple[Wanted, ...]
