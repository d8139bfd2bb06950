"""`/admin`: how a revision comes to be served here, and goes. For keys that may; without keys, for this machine."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from pefx.errors import PefxError
from pefx.http.api import Asked, as_json
from pefx.http.objects import AliasAnswer, Standing
from pefx.http.tracks import Tracks
from pefx.store.lifecycle import rollback, set_alias
from pefx.store.records import LATEST, Policy, Revision


def tracks_of(asked: Asked) -> Tracks:
    """Where revisions stand. PefxError where there is no catalog."""
    if asked.api.tracks is None:
        raise PefxError("this server has no catalog, only a base", "unknown_policy")
    return asked.api.tracks


async def revision_of(asked: Asked, model: str) -> Revision:
    """The revision that the catalog has under `model`, if it can be served here."""
    policy, which = asked.api.resolver.split(model)
    return await asked.api.resolver.beside(lambda: asked.api.served.policies.resolve(policy, which))


def standing(tracks: Tracks, revision: Revision) -> Response:
    """Where `revision` stands now."""
    track = tracks.get(revision.policy)
    current = track is not None and track.revision.key == revision.key
    return as_json(
        Standing(
            policy=revision.policy,
            revision=revision.number,
            content_hash=revision.content_hash,
            stage=tracks.stage(revision),
            current=current,
        )
    )


def moving(action: Callable[[Tracks, Revision], Any]) -> Callable[[Asked], Any]:
    """An endpoint that does `action` to a revision, and says where it stands then."""

    async def run(asked: Asked) -> Response:
        tracks = tracks_of(asked)
        revision = await revision_of(asked, asked.body.model)
        done = action(tracks, revision)
        if done is not None:
            await done
        return standing(tracks, revision)

    return run


async def _prewarmed(tracks: Tracks, revision: Revision) -> None:
    """Wait for the weights; what becomes of them goes on if nobody waits any more."""
    await asyncio.shield(asyncio.wrap_future(tracks.readiness.prewarm(revision)))


def _expose(tracks: Tracks, revision: Revision) -> None:
    exposed = tracks.readiness.stage(revision) == "exposed"
    (tracks.select if exposed else tracks.expose)(revision)


register = moving(lambda tracks, revision: tracks.register(revision))
prewarm = moving(_prewarmed)
expose = moving(_expose)
withdraw = moving(lambda tracks, revision: tracks.withdraw(revision))


async def status(asked: Asked) -> Response:
    """`GET /admin/status?model=...`"""
    tracks = tracks_of(asked)
    model = asked.request.query_params.get("model")
    if not model:
        raise PefxError("field 'model': missing, but required", "invalid_request")
    return standing(tracks, await revision_of(asked, model))


async def alias(asked: Asked) -> Response:
    """`POST /admin/alias`: an alias of the catalog names a revision."""
    policy, which = asked.api.resolver.split(asked.body.model)
    return await _renamed(
        asked, policy, asked.body.alias, lambda catalog: set_alias(catalog, policy, asked.body.alias, which)
    )


async def roll_back(asked: Asked) -> Response:
    """`POST /admin/rollback`: an alias of the catalog names an older revision."""
    body = asked.body
    policy, which = asked.api.resolver.split(body.policy)
    if which is not None:
        raise PefxError(f"field 'policy': {body.policy!r} names a revision, and 'to' is for that", "invalid_request")
    return await _renamed(asked, policy, body.alias, lambda catalog: rollback(catalog, policy, body.alias, body.to))


async def _renamed(asked: Asked, policy: str, alias: str, change: Callable[[Any], Policy]) -> Response:
    """Change an alias; what this server serves under `latest` follows at once."""
    tracks_of(asked)
    api, catalog = asked.api, asked.api.served.catalog
    found = await api.resolver.beside(lambda: change(catalog))
    api.resolver.forget(policy, alias)
    if alias == LATEST and api.follower is not None:
        await api.resolver.beside(api.follower.look)
    return as_json(AliasAnswer(found.name, found.aliases))
