"""Requests in, answers out, a step at a time: ties the scheduler to the device and to the tiers of adapters."""

from collections import deque
from collections.abc import Generator
from collections.abc import Sequence as Ordered
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.answers import answer
from pefx.serving.generation import Generation
from pefx.serving.policies import UNAVAILABLE, Policies, Weights
from pefx.serving.requests import Request, prompt_tokens, seed_of
from pefx.serving.scheduler import Load, Sampling, Scheduler, Sequence, StepPlan
from pefx.store.records import Revision
from pefx.store.tickets import Ticket
from pefx.store.tiers import TierCounts, Tiers


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; `eos` is the id that ends a text."""

    @property
    def eos(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@runtime_checkable
class Device(Protocol):
    """What is asked of the device: `pefx.serving.runner.Runner`, or a stand-in."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int: ...

    def load(self, shard: int, slot: int, adapter: Weights, spec: AdapterSpec) -> None: ...

    def run(self, plan: StepPlan) -> tuple[Ordered[int], Ordered[float]]: ...


@dataclass(frozen=True)
class Piece:
    """What a streamed request has got in one step, of one choice."""

    handle: int
    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Answered:
    """`row` answers the request submitted as `handle`; counts are tokens of its prompt and of its answer."""

    handle: int
    row: dict[str, Any]
    prompt_tokens: int
    tokens: int
    cached_tokens: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    where: str = "base"


@dataclass(frozen=True)
class EngineState:
    """Numbers of an engine, for metrics."""

    waiting: int = 0
    running: int = 0
    seats: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    pages: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    host_seconds: float = 0.0
    batch_tokens: int = 0
    batch_rows: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    preemptions: int = 0
    mismatches: int = 0
    audited: int = 0


class Engine:
    """Serves mixed requests. `seed` is the run's part of every request's default seed.

    Weights come from the store to `tiers` while requests wait; what the scheduler decides does not depend on when.
    """

    def __init__(
        self,
        *,
        device: Device,
        scheduler: Scheduler,
        policies: Policies,
        tiers: Tiers,
        tokenizer: Tokenizer,
        seed: int,
    ):
        self._device, self._scheduler, self._policies = device, scheduler, policies
        self._tiers, self._tokenizer, self._seed = tiers, tokenizer, seed
        self._ends = frozenset([tokenizer.eos])
        self._requests: dict[int, Request] = {}

    @property
    def room(self) -> bool:
        """Whether more requests would help: enough wait for the next places otherwise."""
        return len(self._scheduler.waiting) < 2 * self._scheduler.sequences * len(self._scheduler.shards)

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def submit(self, handle: int, request: Request, revision: Revision | None) -> None:
        """Queue `request` for `revision` (None exactly when it asks for the bare base).

        Raises PefxError where the request cannot be served; nothing is queued then.
        """
        asked, given = request.policy, None if revision is None else revision.policy
        if asked != given:
            raise RuntimeError(f"request {request.id!r} asks for policy {asked!r} and was given {given!r}")
        context = self._device.context
        prompt = prompt_tokens(request, self._tokenizer.encode, self._device.vocab_size, context)
        max_tokens = min(request.max_tokens, context - len(prompt))
        sampling = Sampling(request.temperature, request.top_p, request.top_k, seed_of(request, self._seed))
        generation = Generation(self._tokenizer.decode, max_tokens, request.stop, self._ends)
        sequence = Sequence(handle, prompt, revision, sampling, generation, max_tokens, request.prompt_logprobs)
        self._scheduler.submit(sequence)
        self._requests[handle] = request
        if revision is not None:
            self._tiers.prefetch(revision)

    def step(self) -> list[Answered]:
        """Run one step and return the requests it finished. Idle, it does nothing.

        Raises PefxError only where nothing can be served any more; a request's own trouble is its answer.
        """
        over = self._load(self._scheduler.admit())
        plan = self._scheduler.plan()
        if plan is not None:
            over += self._scheduler.commit(plan, *self._device.run(plan))
        if self.idle:
            self._scheduler.check_empty()
        return [self._answered(sequence) for sequence in over]

    def adapters(self) -> TierCounts:
        """What became of the adapters that requests needed, so far."""
        return self._tiers.counts()

    def close(self) -> None:
        """End what goes on in the background. Nothing can be served afterwards."""
        self._tiers.close()

    def _load(self, loads: list[Load]) -> list[Sequence]:
        """Put the weights of `loads` into their slots. Returns the sequences whose load failed."""
        over: list[Sequence] = []
        with closing(self._tickets(loads)) as tickets:
            for load, ticket in tickets:
                try:
                    self._into_slot(load, ticket)
                except PefxError as error:
                    if error.kind in UNAVAILABLE:
                        raise
                    over += self._scheduler.refuse(load, error)
        return over

    def _into_slot(self, load: Load, ticket: Ticket[Any]) -> None:
        """Put the weights that `ticket` waits for into their slot. Raises PefxError if there are none, or none fit."""
        error = None
        try:
            ticket.result()
        except PefxError as failed:
            if failed.kind in UNAVAILABLE:
                raise
            error = failed
        error = self._policies.agree_on_load(load.revision, error)
        if error is not None:
            raise error
        self._device.load(load.shard, load.slot, ticket.result(), load.revision.spec)

    def _tickets(self, loads: list[Load]) -> Generator[tuple[Load, Ticket[Any]], None, None]:
        """The loads in order, each with a ticket that is released after it; as many are asked for ahead as may be.

        Where the queue is full, the oldest is waited for, and then the next is asked for.
        """
        asked: deque[Ticket[Any]] = deque()
        ahead = iter(loads)
        following = next(ahead, None)
        try:
            for load in loads:
                while following is not None:
                    try:
                        asked.append(self._tiers.request(following.revision))
                    except PefxError as error:
                        if not error.retryable:
                            raise
                        if asked:
                            break
                        self._tiers.wait_for_room()  # others fill the queue
                    else:
                        following = next(ahead, None)
                yield load, asked[0]
                asked.popleft().release()
        finally:
            for ticket in asked:
                ticket.release()

    def _answered(self, sequence: Sequence) -> Answered:
        request = self._requests.pop(sequence.handle)
        row = answer(request.id, sequence, request.logprobs)
        return Answered(sequence.handle, row, len(sequence.prompt), len(sequence.generation.tokens))
