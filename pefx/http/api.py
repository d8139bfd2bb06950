"""What all endpoints share, and how one is run: who asks, may they, what do they ask, and what went wrong."""

import logging
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pefx.config import HttpConfig
from pefx.errors import PefxError
from pefx.http.bodies import decode
from pefx.http.errors import STATUS, TOLD, refusal
from pefx.http.exchange import Exchange, exchange_of
from pefx.http.follow import Follower
from pefx.http.jobs import Jobs
from pefx.http.keys import Keys
from pefx.http.limits import Limits
from pefx.http.log import tell
from pefx.http.metrics import Metrics
from pefx.http.resolving import Resolver
from pefx.http.served import Served
from pefx.http.service import Service
from pefx.http.spelling import Spelling
from pefx.http.tracks import Tracks


class Api:
    """The parts of one server."""

    def __init__(self, served: Served, settings: HttpConfig):
        self.served, self.settings = served, settings
        self.keys, self.limits = Keys(None if settings.keys is None else Path(settings.keys)), Limits()
        self.service = Service(served.engine, queue=settings.queue, buffer=settings.buffer, within=served.within)
        self.tracks = None if served.readiness is None else Tracks(served.readiness, settings.tracked)
        self.resolver = Resolver(served, self.tracks, timeout=settings.catalog_timeout, fresh=settings.poll)
        self.follower = None
        if self.tracks is not None and served.catalog is not None:
            self.follower = Follower(self.tracks, served.catalog, served.policies, settings.poll)
        self.jobs, self.spelling = Jobs(served, settings, self.resolver), Spelling(served.tokenizer)
        self.metrics = Metrics(self.service)

    def start(self) -> None:
        """Begin, in the running event loop."""
        self.service.start()
        if self.follower is not None:
            self.follower.start()

    async def end(self, seconds: float) -> None:
        """Finish what is in flight, for at most `seconds`, and end."""
        if self.follower is not None:
            self.follower.stop()
        await self.service.drain(seconds)
        self.resolver.close()

    def over(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        self.limits.charge(exchange.key, exchange.prompt_tokens + exchange.tokens)
        self.metrics.count(exchange)


@dataclass(frozen=True)
class Asked:
    """One request to an endpoint: its key is the exchange's, `body` is decoded."""

    api: Api
    request: Request
    exchange: Exchange
    body: Any


@dataclass(frozen=True)
class Operation:
    """An endpoint. `body` and `answer` are structs; `event` is that of a stream, `media` the type of another answer.

    `query` are the parameters of the address with their JSON schemas. `keyed`: a key is needed, where there are any.
    """

    method: str
    path: str
    summary: str
    run: Callable[[Asked], Awaitable[Response]]
    answer: Any = None
    body: Any = None
    event: Any = None
    media: str = "application/json"
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    keyed: bool = True
    admin: bool = False


def as_json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def endpoint(api: Api, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    """`operation` as Starlette calls it."""

    async def answer(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        exchange.endpoint = operation.path
        try:
            if operation.keyed:
                exchange.key = api.keys.find(bearer(request))
                if operation.admin and not exchange.key.admin:
                    raise PefxError(f"key '{exchange.key.name}' may not change what is served here", "forbidden")
                exchange.leave.enter_context(api.limits.running(exchange.key))
            body = None
            if operation.body is not None:
                body = decode(operation.body, await read_body(request, api.settings.body_bytes))
            return await operation.run(Asked(api, request, exchange, body))
        except ClientDisconnect:
            return refused(exchange, PefxError("the client has gone", "client_gone"))
        except Exception as error:  # noqa: BLE001 (whatever it is, the client gets an answer and the log its story)
            return refused(exchange, error)

    return answer


def refused(exchange: Exchange, error: Exception) -> Response:
    """The answer where an endpoint raised `error`; what the client is not told is logged."""
    if isinstance(error, PefxError):
        exchange.error = error.kind
        if error.kind in TOLD or error.kind not in STATUS:
            tell("refused", logging.ERROR, endpoint=exchange.endpoint, why=str(error))
    else:
        exchange.error = "internal"
        traceback.print_exception(error, file=sys.stderr)
    return refusal(error)


def bearer(request: Request) -> str | None:
    """The key in the Authorization header."""
    scheme, _, plain = request.headers.get("authorization", "").partition(" ")
    return plain.strip() if scheme.lower() == "bearer" else None


async def read_body(request: Request, limit: int) -> bytes:
    """The body, which must say that it is JSON: a page of another site cannot send that unasked."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise PefxError("send the header 'Content-Type: application/json'", "wrong_media_type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise PefxError(f"the body is longer than {limit} bytes", "body_too_long")
    return bytes(body)
