"""Requests in, answers out, a step at a time: ties the scheduler to the device and to the catalog."""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.answers import answer
from pefx.serving.generation import Generation
from pefx.serving.policies import UNAVAILABLE, Policies, Weights
from pefx.serving.requests import Request, prompt_tokens, seed_of
from pefx.serving.scheduler import Sampling, Scheduler, Sequence, StepPlan
from pefx.store.records import Revision


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
class Answered:
    """`row` answers the request submitted as `handle`; counts are tokens of its prompt and of its answer."""

    handle: int
    row: dict[str, Any]
    prompt_tokens: int
    tokens: int


class Engine:
    """Serves mixed requests. `seed` is the run's part of every request's default seed."""

    def __init__(self, *, device: Device, scheduler: Scheduler, policies: Policies, tokenizer: Tokenizer, seed: int):
        self._device, self._scheduler, self._policies = device, scheduler, policies
        self._tokenizer, self._seed = tokenizer, seed
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

    def step(self) -> list[Answered]:
        """Run one step and return the requests it finished. Idle, it does nothing.

        Raises PefxError only where nothing can be served any more; a request's own trouble is its answer.
        """
        over: list[Sequence] = []
        for load in self._scheduler.admit():
            try:
                self._device.load(load.shard, load.slot, self._policies.load(load.revision), load.revision.spec)
            except PefxError as error:
                if error.kind in UNAVAILABLE:
                    raise
                over += self._scheduler.refuse(load, error)
        plan = self._scheduler.plan()
        if plan is not None:
            over += self._scheduler.commit(plan, *self._device.run(plan))
        if self.idle:
            self._scheduler.check_empty()
        return [self._answered(sequence) for sequence in over]

    def _answered(self, sequence: Sequence) -> Answered:
        request = self._requests.pop(sequence.handle)
        row = answer(request.id, sequence, request.logprobs)
        return Answered(sequence.handle, row, len(sequence.prompt), len(sequence.generation.tokens))
