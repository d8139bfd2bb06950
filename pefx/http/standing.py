"""How the server is: `/health`, `/ready`, `/metrics`."""

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from pefx.http.api import Asked, as_json
from pefx.http.objects import Health, Ready


async def health(asked: Asked) -> Response:
    """`GET /health`: 200 while process and engine live."""
    alive = asked.api.service.alive
    return as_json(Health("ok" if alive else "the engine is not running"), 200 if alive else 503)


async def ready(asked: Asked) -> Response:
    """`GET /ready`: 200 while requests should be sent here."""
    api, status = asked.api, "ok"
    if not api.service.alive:
        status = "the engine is not running"
    elif api.service.draining:
        status = "draining"
    catalog = "none"
    if api.follower is not None:
        catalog = "reachable" if api.follower.reachable else "unreachable"
    return as_json(Ready(status, api.served.digest, catalog), 200 if status == "ok" else 503)


async def metrics(asked: Asked) -> Response:
    """`GET /metrics`."""
    return Response(asked.api.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})
