"""The application: its endpoints, as one table, and what is answered at other addresses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pefx.errors import PefxError
from pefx.http import admin, generating, models, standing
from pefx.http.api import Api, Asked, Operation, endpoint, refused
from pefx.http.bodies import AliasBody, ChatBody, CompletionBody, RevisionBody, RollbackBody
from pefx.http.errors import refusal
from pefx.http.exchange import Exchanges, exchange_of
from pefx.http.objects import (
    AliasAnswer,
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    Model,
    ModelList,
    Ready,
    Standing,
)
from pefx.http.openapi import document
from pefx.http.page import FILES, page_file

MODEL = (("model", {"type": "string", "minLength": 1, "maxLength": 256}),)


def _admin(action: str, summary: str, run: Any, body: Any = RevisionBody, answer: Any = Standing) -> Operation:
    return Operation("POST", f"/admin/{action}", summary, run, answer, body, admin=True)


OPERATIONS = (
    Operation(
        *("POST", "/v1/completions", "Go on with a text.", generating.complete, Completion, CompletionBody),
        event=Completion,
    ),
    Operation(
        *("POST", "/v1/chat/completions", "Go on with a conversation.", generating.chat, ChatCompletion, ChatBody),
        event=ChatChunk,
    ),
    Operation("GET", "/v1/models", "The base and the policies, by page.", models.models, ModelList, query=models.QUERY),
    Operation("GET", "/v1/models/{model}", "One model, or one revision of it.", models.model, Model),
    _admin("register", "Take a revision in: checked to fit, not served.", admin.register),
    _admin("prewarm", "Load its weights into host memory.", admin.prewarm),
    _admin("expose", "Serve the policy's plain name by it.", admin.expose),
    _admin("withdraw", "Serve it no more.", admin.withdraw),
    _admin("alias", "Let an alias of the catalog name it.", admin.alias, AliasBody, AliasAnswer),
    _admin("rollback", "Let an alias name an older revision.", admin.roll_back, RollbackBody, AliasAnswer),
    Operation("GET", "/admin/status", "Where a revision stands.", admin.status, Standing, query=MODEL, admin=True),
    Operation("GET", "/health", "Whether process and engine live.", standing.health, Health, keyed=False),
    Operation("GET", "/ready", "Whether requests should be sent here.", standing.ready, Ready, keyed=False),
    Operation("GET", "/metrics", "Numbers for Prometheus.", standing.metrics, media="text/plain", keyed=False),
)


async def described(asked: Asked) -> Response:
    """`GET /openapi.json`."""
    return Response(DOCUMENT, media_type="application/json")


DOCUMENT = msgspec.json.encode(document(OPERATIONS))


def build_app(api: Api, begin: Callable[[], None] = lambda: None) -> ASGIApp:
    """The application over `api`, which it starts, and ends. `begin` is called in the loop once all runs."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        api.start()
        begin()
        yield
        await api.end(0)

    async def elsewhere(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return refused(exchange_of(request.scope), error)
        if error.status_code == 405:
            told = PefxError(f"{request.method} is not for this address", "wrong_method")
            answer = refusal(told)
            answer.headers.update(error.headers or {})
            return answer
        return refusal(PefxError("there is nothing at this address", "not_found"))

    unlisted = [Operation("GET", path, "", page_file, keyed=False) for path in FILES]
    unlisted.append(Operation("GET", "/openapi.json", "", described, keyed=False))
    routes = [
        Route(route_path(operation.path), endpoint(api, operation), methods=[operation.method])
        for operation in (*OPERATIONS, *unlisted)
    ]
    handlers: Any = {HTTPException: elsewhere, Exception: elsewhere}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return Exchanges(app, api.over, own_names=api.keys.open)


def route_path(path: str) -> str:
    """A path of OpenAPI as Starlette writes it: names of models have slashes."""
    return path.replace("{model}", "{model:path}")
