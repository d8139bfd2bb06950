"""The pages as an application: addresses, errors, and the headers of every answer. It reads, and nothing else."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.listing import as_json
from pefx.web.contents import (
    Count,
    PolicyPage,
    PopulationPage,
    Query,
    RevisionPage,
    policy_page,
    population_page,
    revision_page,
)
from pefx.web.curve_chart import panels
from pefx.web.lineage_graph import draw_lineage
from pefx.web.pages import HEADERS, render

AT_ONCE = 8  # pages that are read at once; each may hold two revisions' weights
LONGEST_HISTORY = 200  # revisions of a page
STATUS = {"bad_name": 400, "invalid_input": 400, "unknown_policy": 404, "unknown_revision": 404}  # others: 500
OWN_NAMES = {"localhost", "127.0.0.1", "::1"}


class Site:
    """What is answered: each page as HTML, and as JSON where `/api` is before its address."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.count = Count(catalog)
        self.limiter = CapacityLimiter(AT_ONCE)

    def routes(self) -> list[Route]:
        found = []
        for path, read, show in (
            ("/", self.read_population, self.show_population),
            ("/policy/{name:path}", self.read_policy, self.show_policy),
            ("/revision/{reference:path}", self.read_revision, self.show_revision),
        ):
            found.append(Route(path, self.answer(read, show, "text/html"), methods=["GET"]))
            found.append(Route(f"/api{path}", self.answer(read, as_data, "application/json"), methods=["GET"]))
        return found

    def answer(self, read: Callable[[Request], Any], show: Callable[[Any, Request], str], kind: str):
        """An endpoint that reads and shows in a thread, so that a slow read holds nobody else up."""

        async def endpoint(request: Request) -> Response:
            text = await to_thread.run_sync(lambda: show(read(request), request), limiter=self.limiter)
            return Response(text, media_type=kind)

        return endpoint

    def read_population(self, request: Request) -> PopulationPage:
        return population_page(self.catalog, Query.read(request.query_params), self.count)

    def read_policy(self, request: Request) -> PolicyPage:
        return policy_page(self.catalog, request.path_params["name"])

    def read_revision(self, request: Request) -> RevisionPage:
        return revision_page(self.catalog, request.path_params["reference"])

    def show_population(self, page: PopulationPage, request: Request) -> str:
        return self.render("population.html", request, page=page)

    def show_policy(self, page: PolicyPage, request: Request) -> str:
        whole = bool(request.query_params.get("whole"))
        graph = draw_lineage(page.lineage, whole)
        charts, uncharted = panels(page.curves, page.policy.name)
        history = page.history[::-1] if whole else page.history[: -LONGEST_HISTORY - 1 : -1]
        values = {"graph": graph, "charts": charts, "uncharted": uncharted, "history": history, "whole": whole}
        return self.render("policy.html", request, page=page, **values)

    def show_revision(self, page: RevisionPage, request: Request) -> str:
        return self.render("revision.html", request, page=page)

    def render(self, template: str, request: Request, **values: Any) -> str:
        query = f"?{request.url.query}" if request.url.query else ""
        data = f"/api{request.scope['raw_path'].decode('ascii', 'replace')}{query}"
        return render(template, location=self.catalog.location, data=data, **values)

    def refusal(self, request: Request, error: Exception) -> Response:
        """An error as a page or as data: one line of what was wrong, never how the program got there."""
        headers = None
        if isinstance(error, PefxError):
            status, kind, told = STATUS.get(error.kind, 500), error.kind, str(error)
        elif isinstance(error, HTTPException):
            status, kind, headers = error.status_code, "http", error.headers
            told = error.detail
            if status == 404:
                told = f"there is no page at {request.url.path}"
            if status == 405:
                headers = {"allow": "GET, HEAD"}
                told = f"{request.method} is not answered: these pages only show, with GET and HEAD"
        else:
            status, kind, told = 500, "internal", "this page could not be made; the terminal of the server says why"
        if request.url.path.startswith("/api/"):
            data = as_json({"error": told, "kind": kind})
            return Response(data, status, headers, media_type="application/json")
        title = {"damaged": "Damaged record", "schema": "Unknown record"}.get(kind, HTTPStatus(status).phrase)
        page = render("error.html", location=self.catalog.location, data=None, status=status, title=title, told=told)
        return HTMLResponse(page, status, headers)


def as_data(page: PopulationPage | PolicyPage | RevisionPage, request: Request) -> str:
    return as_json(page.plain())


def build_app(catalog: Catalog) -> ASGIApp:
    """The application over `catalog`, which is best opened read-only."""
    site = Site(catalog)
    handlers: Any = {PefxError: site.refusal, HTTPException: site.refusal, Exception: site.refusal}
    return Guard(Starlette(routes=site.routes(), exception_handlers=handlers))


class Guard:
    """Every answer gets `HEADERS`; only requests to this machine's own name are answered.

    A foreign site could else give its name this machine's address, and read the catalog with a visitor's browser.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http" and host_name(Headers(scope=scope).get("host", "")) not in OWN_NAMES:
            told = "these pages are for this machine: ask for them as localhost or 127.0.0.1\n"
            await Response(told, 421, media_type="text/plain")(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host[1:].split("]")[0] if host.startswith("[") else host.split(":")[0]
    return name.lower().removesuffix(".")
