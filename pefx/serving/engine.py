"""Requests in, answers out, a step at a time: ties the scheduler to the device and to the tiers of adapters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from time import monotonic, perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.generation import Generation, Outcome
from pefx.serving.jobs import Answered, Job, Listen
from pefx.serving.loading import Loading, Source
from pefx.serving.memory import Keep, memory_of
from pefx.serving.policies import UNAVAILABLE, Policies, Weights
from pefx.serving.remembering import Remembering
from pefx.serving.requests import Request, check_tokens, prompt_tokens, seed_of
from pefx.serving.routes import RouteRecord
from pefx.serving.scheduler import Scheduler
from pefx.serving.self_check import SelfCheck
from pefx.serving.sequence import Adapter, Load, Sampling, Sequence, StepPlan
from pefx.serving.shaping import Constraint, Shaper, needs_shaping
from pefx.store.tiers import TierCounts


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; `eos` is the id that ends a text."""

    @property
    def eos(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@runtime_checkable
class Grammars(Protocol):
    """What answers must match: `pefx.serving.grammar.Grammars`."""

    def start(self, request: Request) -> Constraint | None: ...


@runtime_checkable
class Device(Protocol):
    """What is asked of the device: `pefx.serving.runner.Runner`, or a stand-in. `seconds` and `rows`: of all steps.

    `run` gives the outcome of each wanted row, and where some sequence records them the routes of each span's tokens.
    """

    vocab_size: int
    context: int
    seconds: float
    rows: int

    def load(self, shard: int, slot: int, adapter: Weights, spec: AdapterSpec) -> None: ...

    def begin(self, shard: int, page: int, state: np.ndarray) -> None: ...

    def recall(self, where: tuple[int, int], spec: AdapterSpec) -> np.ndarray: ...

    def run(self, plan: StepPlan) -> tuple[list[Outcome], list[np.ndarray | None]]: ...

    def warm(self) -> None: ...


@dataclass(frozen=True)
class Way:
    """How an engine goes about it. `seed` is the run's part of every request's default seed.

    `lockstep`: several processes decide alike, so nothing depends on when weights arrive. `unavailable` are the kinds
    of trouble with the catalog that end everything, not just the requests they meet. One in `check_every` answers is
    computed again, as a prompt, and compared in bits (0: none). One that waits for pages or a slot is passed by at most
    `patience` later ones.
    """

    seed: int = 0
    lockstep: bool = False
    unavailable: frozenset[str] = UNAVAILABLE
    check_every: int = 0
    patience: int = 64
    clock: Callable[[], float] = monotonic


@dataclass
class EngineState:
    """Numbers of an engine: sequences, pages, and what was done so far.

    `step_seconds` went by in steps of the device, `host_seconds` around them. `batch_tokens` of `batch_rows` rows of
    steps were in use. Of `audited` answers that were computed again, `mismatches` had other bits.
    """

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
    """Serves mixed requests, for one thread.

    Weights come from `source` while requests wait and others run; `policies` None: what they are is agreed on with
    nobody. `grammars` None: no answer is held to a form. `keep` commits what memories hold (None: nothing can be kept).
    """

    def __init__(
        self,
        *,
        device: Device,
        scheduler: Scheduler,
        source: Source,
        tokenizer: Tokenizer,
        policies: Policies | None = None,
        grammars: Grammars | None = None,
        keep: Keep | None = None,
        way: Way,
    ):
        self._device, self._scheduler, self._policies, self._way = device, scheduler, policies, way
        self._source, self._tokenizer, self._grammars = source, tokenizer, grammars
        self._remembering = Remembering(device, scheduler, policies, keep, way.unavailable)
        self._loading = Loading(source, scheduler)
        self._checks = SelfCheck(scheduler, way.check_every)
        self._jobs: dict[int, Job] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._stalled = False  # the last step did nothing, because weights are on their way or memories are being kept
        self._done = EngineState(seats=scheduler.seats, pages=sum(shard.pages.total for shard in scheduler.shards))

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place."""
        return len(self._scheduler.waiting)

    @property
    def idle(self) -> bool:
        return self._scheduler.idle and not self._remembering.busy

    def submit(
        self,
        handle: int,
        request: Request,
        revision: Adapter | None,
        *,
        deadline: float | None = None,
        listen: Listen | None = None,
        behind: int | None = None,
    ) -> int:
        """Queue `request` for `revision` (None exactly when it asks for the bare base). Returns its prompt's tokens.

        At `deadline`, by the engine's clock, it is over with kind "timeout". `listen` is told of what it gets as it
        comes. It waits for the request `behind`, of the same prompt, to have that computed. Raises PefxError where the
        request cannot be served; nothing is queued then.
        """
        asked, given = request.policy, None if revision is None else revision.policy
        if asked != given:
            raise RuntimeError(f"request {request.id!r} asks for policy {asked!r} and was given {given!r}")
        if handle in self._jobs:
            raise RuntimeError(f"handle {handle} is in use")
        before = None if behind is None else self._jobs.get(behind)
        served, state = self._remembering.served_by(request, revision)
        choices = self._choices(handle, request, (served, state), None if before is None else before.choices[0])
        self._scheduler.check(choices[0])
        where = "base" if served is None else self._source.state(served)
        for sequence in choices:
            self._scheduler.submit(sequence)
        self._jobs[handle] = Job(handle, request, choices, self._way.clock(), where, listen)
        if deadline is not None:
            heappush(self._deadlines, (deadline, handle))
        for one in choices[0].needs:
            self._source.prefetch(one)
        return len(choices[0].prompt)

    def _choices(
        self, handle: int, request: Request, asked: tuple[Adapter | None, Adapter | None], leader: Sequence | None
    ) -> list[Sequence]:
        """The sequences that answer `request`, of a revision and a state. Raises PefxError where it cannot be
        served."""
        revision, state = asked
        device, context = self._device, self._device.context
        prompt = prompt_tokens(request, self._tokenizer.encode, device.vocab_size, context)
        check_tokens(request, device.vocab_size)
        if request.constrained and self._grammars is None:
            raise PefxError("this server holds no answer to a regex or a json_schema", "invalid_request")
        ends = frozenset(request.stop_token_ids + (() if request.ignore_eos else (self._tokenizer.eos,)))
        max_tokens = min(request.max_tokens, context - len(prompt))
        choices: list[Sequence] = []
        for choice in range(request.choices):
            constraint = None if self._grammars is None else self._grammars.start(request)
            seed = seed_of(request, self._way.seed, choice)
            choices.append(
                Sequence(
                    handle=handle,
                    prompt=prompt,
                    revision=revision,
                    sampling=Sampling(request.temperature, request.top_p, request.min_p, request.top_k, seed),
                    generation=Generation(self._tokenizer.decode, max_tokens, request.stop, ends),
                    max_tokens=max_tokens,
                    score_prompt=request.prompt_logprobs and choice == 0,
                    choice=choice,
                    top=request.top_logprobs,
                    priority=request.priority,
                    shaper=Shaper(request, prompt, constraint) if needs_shaping(request) else None,
                    leader=choices[0] if choices else leader,
                    routes=RouteRecord() if request.routes else None,
                    memory=memory_of(request, revision, state, len(prompt)),
                )
            )
        return choices

    def cancel(self, handle: int) -> None:
        """The request is gone at once, its pages are free, no answer follows. None of that handle: nothing happens."""
        job = self._jobs.pop(handle, None)
        if job is not None:
            self._drop(job.choices)
            self._loading.let_go()

    def _drop(self, choices: Iterable[Sequence]) -> None:
        """Choices that are not over leave."""
        for sequence in choices:
            self._scheduler.cancel(sequence)

    def step(self) -> list[Answered]:
        """Run one step and return the requests it finished. It may do nothing: idle, or where all wait for weights.

        Raises PefxError only where nothing can be served any more; a request's own trouble is its answer.
        """
        begun, before = perf_counter(), self._device.seconds
        over = self._expire()
        self._loading.ask_ahead()
        ready = (lambda revision: True) if self._way.lockstep else self._loading.ready
        loads = self._scheduler.admit(ready)
        over += self._load(loads)
        over += self._remembering.begin(self._weights)
        self._loading.let_go(load.revision for load in loads)
        plan = self._scheduler.plan()
        if plan is not None:
            over += self._scheduler.commit(plan, *self._device.run(plan))
            self._count(plan)
        if self._scheduler.idle:
            self._scheduler.check_empty()
        self._stalled = not self.idle and plan is None and not over
        answered = self._answered(plan, over) + self._remembering.kept()
        self._done.host_seconds += perf_counter() - begun - (self._device.seconds - before)
        return answered

    def warm(self) -> None:
        """Compile what most steps need, before there are any."""
        self._device.warm()

    def wait(self, seconds: float) -> None:
        """Where nothing can be done but wait, for weights or for a memory to be kept: until some have arrived, or one
        is; or so long. Else not at all."""
        if self._stalled:
            (self._remembering if self._scheduler.idle else self._loading).wait(seconds)

    def state(self) -> EngineState:
        """The numbers of now."""
        shards = self._scheduler.shards
        return replace(
            self._done,
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            pages_cached=sum(shard.pages.kept for shard in shards),
            pages_used=self._done.pages - sum(shard.pages.free for shard in shards),
            step_seconds=self._device.seconds,
            batch_rows=self._device.rows,
            preemptions=self._scheduler.preemptions,
            audited=self._checks.checked,
            mismatches=self._checks.mismatches,
        )

    def adapters(self) -> TierCounts:
        """What became of the adapters that requests needed, so far."""
        return self._source.counts()

    def in_use(self) -> set[str]:
        """Keys of the revisions that sequences, waiting or running, are of."""
        running = (sequence.revision for sequence in self._scheduler.running)
        return {revision.key for revision in running if revision is not None} | self._scheduler.wanted.keys()

    def close(self) -> None:
        """End what goes on in the background. Nothing can be served afterwards."""
        self._remembering.close()
        self._source.close()

    def _expire(self) -> list[Sequence]:
        """Sequences whose time is over, each with an error."""
        over: list[Sequence] = []
        while self._deadlines and self._deadlines[0][0] <= self._way.clock():
            _, handle = heappop(self._deadlines)
            job = self._jobs.get(handle)
            if job is None:
                continue
            live = [sequence for sequence in job.choices if not sequence.ended]
            self._drop(live)
            for sequence in live:
                sequence.error = PefxError("the time that this request had is over", "timeout")
            over += live
        return over

    def _load(self, loads: list[Load]) -> list[Sequence]:
        """Put the weights of `loads` into their slots. Returns the sequences whose load failed."""
        over: list[Sequence] = []
        for load in loads:
            try:
                self._into_slot(load)
            except PefxError as error:
                if error.kind in self._way.unavailable:
                    raise
                over += self._scheduler.refuse(load, error)
        return over

    def _into_slot(self, load: Load) -> None:
        """Put the weights of `load` into its slot. Raises PefxError if there are none, or none fit."""
        self._device.load(load.shard, load.slot, self._weights(load.revision), load.revision.spec)

    def _weights(self, revision: Any) -> Weights:
        """The weights of a revision, as all processes find them. Raises PefxError if there are none."""
        weights, error = None, None
        try:
            weights = self._loading.take(revision)
        except PefxError as failed:
            if failed.kind in self._way.unavailable:
                raise
            error = failed
        if self._policies is not None:
            error = self._policies.agree_on_load(revision, error)
        if error is not None:
            raise error
        assert weights is not None
        return weights

    def _count(self, plan: StepPlan) -> None:
        self._done.steps += 1
        self._done.batch_tokens += sum(len(span.tokens) for span in plan.spans)

    def _answered(self, plan: StepPlan | None, over: list[Sequence]) -> list[Answered]:
        """Tell who listens of what is new, and answer the requests of which all choices are over."""
        now = self._way.clock()
        for sequence in () if plan is None else plan.sequences:
            job = self._jobs.get(sequence.handle)
            if job is not None and sequence.generation.tokens:
                job.first = now if job.first is None else job.first
                if job.listen is not None:
                    job.tell(sequence)
        answered: list[Answered] = []
        for sequence in over:
            if sequence.handle < 0:
                self._checks.compare(sequence)
                continue
            job = self._jobs.get(sequence.handle)
            if job is None:  # another choice of it failed
                continue
            job.left -= 1
            if sequence.error is not None:
                self._drop(job.choices)
                job.left = 0
            if not job.left:
                del self._jobs[job.handle]
                answered += self._finished(job, now)
        return answered

    def _finished(self, job: Job, now: float) -> list[Answered]:
        """Its answer; none yet, where what its memory holds is to be kept first."""
        answered = job.answered(now)
        self._done.prompt_tokens += answered.prompt_tokens
        self._done.tokens += answered.tokens
        self._done.cached_tokens += answered.cached_tokens
        if "error" not in answered.row:
            self._checks.consider(job.choices[0])
        return [] if self._remembering.keeps(job, answered) else [answered]
