"""One request and its answer, from the first byte to the last: what is logged and counted of it, and its headers."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pefx.errors import PefxError
from pefx.http.errors import refusal
from pefx.http.keys import EVERYONE, Key
from pefx.http.log import tell
from pefx.serving.jobs import Answered
from pefx.web.app import OWN_NAMES, host_name

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
GONE = 499  # nothing was answered: nobody was there any more


@dataclass
class Exchange:
    """What is known of a request so far. `leave` is closed when it is over; `waited` are seconds to the first token."""

    endpoint: str = "other"
    key: Key = EVERYONE
    model: str | None = None
    status: int = GONE
    error: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    waited: float | None = None
    answers: list[Answered] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    leave: ExitStack = field(default_factory=ExitStack)

    def note(self, answered: Answered) -> None:
        """One of its requests is over. (Tokens of a stream were counted as they came.)"""
        self.answers.append(answered)
        self.cached_tokens += answered.cached_tokens
        self.waited = max(self.waited or 0.0, answered.waited)

    def log(self) -> None:
        """One line: numbers and names."""
        tell(
            "request",
            key=self.key.name,
            endpoint=self.endpoint,
            model=self.model,
            status=self.status,
            error=self.error,
            stream=self.stream,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            tokens=self.tokens,
            ttft=None if self.waited is None else round(self.waited, 4),
            seconds=round(time.monotonic() - self.began, 4),
        )


def exchange_of(scope: Scope) -> Exchange:
    return scope["pefx.exchange"]


class Exchanges:
    """The outermost layer: each request gets its `Exchange`, which `over` hears of at the end.

    `own_names`: only requests to this machine's own names are answered. A foreign site could else give its name this
    machine's address, and use a server without keys through a visitor's browser.
    """

    def __init__(self, app: ASGIApp, over: Callable[[Exchange], None], own_names: bool):
        self.app, self.over, self.own_names = app, over, own_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope["pefx.exchange"] = Exchange()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if self.own_names and host_name(Headers(scope=scope).get("host", "")) not in OWN_NAMES:
                told = "without keys this server is for its own machine: ask for it as localhost or 127.0.0.1"
                await refusal(PefxError(told, "wrong_host"))(scope, receive, send_on)
            else:
                await self.app(scope, receive, send_on)
        finally:
            exchange.leave.close()
            self.over(exchange)
            exchange.log()
