"""A call's pieces as server-sent events, and the end of a call whose client has gone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pefx.errors import PefxError
from pefx.http.errors import told
from pefx.http.exchange import Exchange
from pefx.http.objects import PromptDetails, Usage
from pefx.http.service import Call, Event, Service
from pefx.serving.jobs import Answered, Piece

Result = TypeVar("Result")
Follow = Callable[[Sequence[Answered]], Awaitable[None]]
DONE = b"data: [DONE]\n\n"


@runtime_checkable
class Form(Protocol):
    """How answers are written: `CompletionForm` or `ChatForm`."""

    def whole(self, answers: list[Answered], usage: Usage) -> Any: ...

    def opening(self) -> Iterable[Any]: ...

    def event(self, prompt: int, piece: Piece) -> Any: ...

    def closing(self, usage: Usage | UnsetType, remembered: str | UnsetType) -> Any: ...


def usage_of(answers: list[Answered]) -> Usage:
    """What a call has used, all its requests together."""
    prompt = sum(answered.prompt_tokens for answered in answers)
    tokens = sum(answered.tokens for answered in answers)
    cached = sum(answered.cached_tokens for answered in answers)
    return Usage(prompt, tokens, prompt + tokens, PromptDetails(cached))


async def unless_gone(receive: Receive, wanted: Awaitable[Result]) -> Result:
    """The result of `wanted`. PefxError kind "client_gone" where the client goes away first."""
    work = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise PefxError("the client has gone", "client_gone")
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def sse(value: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class Stream(Response):
    """The rest of `call` after its `first` event. The call is cancelled when the client goes, or does not read.

    `follow` is awaited with the answers before the end tells what was kept of them.
    """

    def __init__(
        self,
        service: Service,
        call: Call,
        first: Event | None,
        form: Form,
        exchange: Exchange,
        follow: Follow,
        include_usage: bool,
    ):
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"
        self._service, self._call, self._first = service, call, first
        self._form, self._exchange, self._follow, self._include_usage = form, exchange, follow, include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._send_all(send))
        ends = {work, asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._call.overrun.wait())}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                self._exchange.error = "slow_client" if self._call.overrun.is_set() else "client_gone"
        finally:
            self._service.cancel(self._call)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            for event in self._form.opening():
                await self._part(send, sse(event))
            event = self._first
            while event is not None:
                await self._show(send, event)
                event = await self._call.next()
            await self._close(send, self._exchange.answers)
        except PefxError as error:  # too late for a status
            self._exchange.error = error.kind
            await self._part(send, sse(told(error)))
        await send({"type": "http.response.body", "body": DONE})

    async def _close(self, send: Send, answers: Sequence[Answered]) -> None:
        """The last event, where there is something to tell."""
        await self._follow(answers)
        usage = usage_of(list(answers)) if self._include_usage else UNSET
        remembered = next((row["remembered"] for row in (own.row for own in answers) if "remembered" in row), UNSET)
        if (usage, remembered) != (UNSET, UNSET):
            await self._part(send, sse(self._form.closing(usage, remembered)))

    async def _show(self, send: Send, event: Event) -> None:
        if isinstance(event, Answered):
            self._exchange.note(event)
            return
        self._exchange.tokens += len(event.tokens)
        shown = self._form.event(event.handle - self._call.handles.start, event)
        if shown is not None:
            await self._part(send, sse(shown))

    @staticmethod
    async def _part(send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
