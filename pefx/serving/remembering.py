"""States of an engine's sequences: what they begin with, and what is kept when they are over. Plain Python."""

import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as first_of
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.answers import refusal
from pefx.serving.jobs import Answered, Job
from pefx.serving.memory import Keep, Kept
from pefx.serving.policies import Policies, Weights
from pefx.serving.requests import Request, RequestError
from pefx.serving.scheduler import Scheduler
from pefx.serving.sequence import Adapter, Sequence

WRITERS = 4  # policies whose memories are committed at once
MOST = 256  # memories that wait to be committed, before the next one does as well


@runtime_checkable
class States(Protocol):
    """What is asked of the device: states of a shard's pages, `[L, MR, R]`."""

    def begin(self, shard: int, page: int, state: np.ndarray) -> None: ...

    def recall(self, where: tuple[int, int], spec: AdapterSpec) -> np.ndarray: ...


class Remembering:
    """`keep` commits what memories hold (None: nothing can be kept), in threads beside the caller's, so that no other
    answer waits for it; of one policy in the order of its answers. Kinds of trouble that end everything are
    `unavailable`.
    """

    def __init__(
        self,
        device: States,
        scheduler: Scheduler,
        policies: Policies | None,
        keep: Keep | None,
        unavailable: frozenset[str],
    ):
        self._device, self._scheduler, self._policies = device, scheduler, policies
        self._keep, self._unavailable = keep, unavailable
        self._writers = [ThreadPoolExecutor(1, "pefx-keep") for _ in range(0 if keep is None else WRITERS)]
        self._keeping: dict[Future[str], Answered] = {}

    @property
    def busy(self) -> bool:
        """Whether answers wait for what their memories hold to be kept."""
        return bool(self._keeping)

    def served_by(self, request: Request, revision: Adapter | None) -> tuple[Any, Any]:
        """The revision whose weights serve what was asked for, and the state that it begins with (None: there is none).

        Raises PefxError where these weights cannot be served, RequestError where nothing can be kept.
        """
        if request.remember is not None and self._keep is None:
            told = "the catalog is read only, there is none, or several processes serve"
            raise RequestError(f"field 'remember': nothing can be kept here: {told}", "read_only", request.id)
        if revision is None or revision.spec.method != "delta_state":
            return revision, None
        if self._policies is None:
            raise RuntimeError(f"nobody knows what {revision.key} is a state of")
        return self._policies.over(revision), revision  # type: ignore[arg-type]

    def begin(self, weights: Callable[[Any], Weights]) -> list[Sequence]:
        """Put states where sequences begin with them. Returns the sequences whose state could not be had."""
        over: list[Sequence] = []
        begun, self._scheduler.begun = self._scheduler.begun, []
        for sequence in begun:
            if sequence.ended or sequence.memory is None:
                continue
            try:
                held = weights(sequence.memory.state)
            except PefxError as error:
                if error.kind in self._unavailable:
                    raise
                self._scheduler.fail(sequence, error)
                over.append(sequence)
                continue
            self._device.begin(sequence.shard, sequence.pages[0], held["memory"]["state"])
        return over

    def keeps(self, job: Job, answered: Answered) -> bool:
        """Begin to keep what a memory holds, where that was asked for: then `kept` has the answer, later."""
        sequence, policy = job.choices[0], job.request.remember
        if policy is None or self._keep is None or sequence.memory is None or "error" in answered.row:
            return False
        memory, tokens = sequence.memory, sequence.tokens(0, sequence.known)
        state = self._device.recall(memory.place, memory.spec)
        kept = Kept(policy, state, sequence.revision, memory.state, tokens)
        while len(waiting := [one for one in self._keeping if not one.done()]) >= MOST:
            first_of(waiting, return_when=FIRST_COMPLETED)
        writer = self._writers[zlib.crc32(policy.encode()) % len(self._writers)]
        self._keeping[writer.submit(self._keep, kept)] = answered
        return True

    def kept(self) -> list[Answered]:
        """The answers whose memories are kept by now; or that say what went wrong."""
        return [self._told(done, self._keeping.pop(done)) for done in list(self._keeping) if done.done()]

    def _told(self, done: Future[str], answered: Answered) -> Answered:
        try:
            return replace(answered, row=answered.row | {"remembered": done.result()})
        except PefxError as error:
            if error.kind in self._unavailable:
                raise
            return replace(answered, row=refusal(answered.row["id"], error))

    def wait(self, seconds: float) -> None:
        """Until one more is kept, or so long."""
        first_of(self._keeping, seconds, FIRST_COMPLETED)

    def close(self) -> None:
        """What has begun is kept first."""
        for writer in self._writers:
            writer.shutdown()
