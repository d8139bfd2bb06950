"""The engine in a thread of its own, and asyncio beside it.

Calls go in through one queue, which the thread empties before each step; what a step gives comes back with one wake-up
of the loop. Whether there is room is decided on the loop's side, so a refusal waits for nothing. All methods but those
of the thread are the event loop's.
"""

import asyncio
import itertools
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from pefx.errors import PefxError
from pefx.http.errors import Later
from pefx.serving.engine import EngineState
from pefx.serving.jobs import Answered, Piece
from pefx.serving.requests import Request
from pefx.store.records import Revision
from pefx.store.tiers import TierCounts

Work = Sequence[tuple[Request, Revision | None]]
Event = Piece | Answered
WAIT = 0.005  # seconds that the thread waits for weights before it looks for calls again
WATCH = 0.2  # seconds between looks at the engine's numbers


class Call:
    """Requests of one caller that go to the engine together. The first that fails ends them all.

    `overrun` is set where the caller has left too much unread.
    """

    def __init__(self, handles: range):
        self.handles = handles
        self.open = len(handles)
        self.error: PefxError | None = None
        self.events: deque[Event] = deque()
        self.overrun = asyncio.Event()
        self._wake = asyncio.Event()

    async def next(self) -> Event | None:
        """What came next, of any of the requests; None after the last. Raises PefxError where the call has failed."""
        while not self.events:
            if self.error is not None:
                raise self.error
            if not self.open:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self.events.popleft()

    async def answers(self) -> list[Answered]:
        """What became of the requests, in their order."""
        found: dict[int, Answered] = {}
        while (event := await self.next()) is not None:
            if isinstance(event, Answered):
                found[event.handle] = event
        return [found[handle] for handle in self.handles]

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.open -= isinstance(event, Answered)
        self._wake.set()

    def fail(self, error: PefxError) -> None:
        """What was not read by then is dropped: after an error nothing follows."""
        self.error = error
        self.events.clear()
        self._wake.set()


class Service:
    """`queue`: most answers that are in flight, each of `n` or `best_of` counted. `buffer`: most unread pieces."""

    def __init__(
        self,
        engine: Any,
        *,
        queue: int,
        buffer: int = 4096,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.engine, self.queue, self.buffer, self._within = engine, queue, buffer, within
        self.draining = False
        self.failure: BaseException | None = None
        self.state = EngineState()
        self.adapters: TierCounts | None = None
        self.in_flight = 0  # answers
        self._calls: dict[int, tuple[Call, int]] = {}  # by handle, with the answers it is to get
        self._handles = itertools.count()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._outbox: list[tuple[int, Event | PefxError]] = []  # of the thread
        self._stopped = False
        self._watched = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._run, name="pefx-engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check(self, answers: int = 1) -> None:
        """Raise PefxError where so many more answers would be refused: "engine_down", "draining" or "busy"."""
        if not self.alive:
            raise PefxError("the engine is not running", "engine_down")
        if self.draining:
            raise PefxError("this server is about to end and takes no new requests", "draining")
        if answers > self.queue:
            message = f"field 'n': {answers} answers are asked for at once, at most {self.queue} may be"
            raise PefxError(message, "invalid_request")
        if self.in_flight + answers > self.queue:
            raise Later(f"{self.in_flight} answers are in flight, at most {self.queue} may be", "busy", 1.0)

    def submit(self, work: Work, deadline: float | None, stream: bool) -> Call:
        """Hand requests over, all or none. `deadline` is a time of `time.monotonic`. Raises PefxError as `check`."""
        self.check(sum(request.choices for request, _ in work))
        first = next(self._handles)
        for _ in work[1:]:
            next(self._handles)
        call = Call(range(first, first + len(work)))
        for handle, (request, revision) in zip(call.handles, work, strict=True):
            self._calls[handle] = call, request.choices
            self.in_flight += request.choices
            self._inbox.put(partial(self._submit, handle, request, revision, deadline, stream))
        return call

    def cancel(self, call: Call) -> None:
        """Nobody wants the answers any more. Of a call that is over: nothing."""
        for handle in call.handles:
            if self._close(handle):
                self._inbox.put(partial(self.engine.cancel, handle))

    async def drain(self, seconds: float) -> None:
        """Take nothing new, finish what is in flight if that takes no longer than `seconds`, end the engine."""
        self.draining = True
        end = time.monotonic() + seconds
        while self._calls and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for call in self._open():
            self._fail(call, PefxError("this server has ended before the answer was complete", "draining"))
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    def _open(self) -> set[Call]:
        return {call for call, _ in self._calls.values()}

    def _close(self, handle: int) -> bool:
        """The request is not in flight any more; whether it was."""
        _, answers = self._calls.pop(handle, (None, 0))
        self.in_flight -= answers
        return answers > 0

    def _fail(self, call: Call, error: PefxError) -> None:
        self.cancel(call)
        call.fail(error)

    def _take(self, events: list[tuple[int, Event | PefxError]]) -> None:
        """What the thread sent. Of calls that were cancelled meanwhile: nothing."""
        for handle, event in events:
            call, _ = self._calls.get(handle, (None, 0))
            if call is None:
                continue
            if isinstance(event, Answered):
                self._close(handle)
                error = event.row.get("error")
                event = event if error is None else PefxError(error["message"], error["type"])
            if isinstance(event, PefxError):
                self._fail(call, event)
                continue
            call.add(event)
            if len(call.events) > self.buffer:
                message = f"the client has left {self.buffer} pieces unread; it must read faster"
                self._fail(call, PefxError(message, "slow_client"))
                call.overrun.set()

    def _died(self, error: BaseException) -> None:
        self.failure = error
        for call in self._open():
            call.fail(PefxError(f"the engine failed: {error}", "engine_failed"))
        for handle in list(self._calls):
            self._close(handle)

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            with self._within():
                self._serve()
        except BaseException as error:  # noqa: BLE001 (whoever waits must hear of any end)
            traceback.print_exc(file=sys.stderr)
            self._wake(partial(self._died, error))
        finally:
            self.engine.close()

    def _serve(self) -> None:
        while not self._stopped:
            self._empty_inbox()
            if not self.engine.idle:
                for answered in self.engine.step():
                    self._outbox.append((answered.handle, answered))
                if not self._outbox:
                    self.engine.wait(WAIT)
            self._watch()
            self._send()

    def _empty_inbox(self) -> None:
        """Do all that was asked; with nothing else to do, wait for it."""
        try:
            block = self.engine.idle and not self._outbox
            while not self._stopped:
                self._inbox.get(block)()
                block = False
        except Empty:
            pass

    def _submit(
        self, handle: int, request: Request, revision: Revision | None, deadline: float | None, stream: bool
    ) -> None:
        try:
            self.engine.submit(handle, request, revision, deadline=deadline, listen=self._hear if stream else None)
        except PefxError as error:
            self._outbox.append((handle, error))

    def _hear(self, piece: Piece) -> None:
        self._outbox.append((piece.handle, piece))

    def _stop(self) -> None:
        self._stopped = True

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._watched > WATCH or self.engine.idle:
            self._watched, self.state, self.adapters = now, self.engine.state(), self.engine.adapters()

    def _send(self) -> None:
        if self._outbox:
            events, self._outbox = self._outbox, []
            self._wake(partial(self._take, events))

    def _wake(self, then: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(then)
        except RuntimeError:  # the loop has ended: nobody is left to tell
            self._stopped = True
