"""Memories that requests keep: as which policies a key may keep them, and what those names stand for afterwards."""

import logging
from collections.abc import Sequence
from typing import Any

from pefx.errors import PefxError
from pefx.http.bodies import Generating
from pefx.http.keys import Key
from pefx.http.log import tell
from pefx.http.resolving import Resolver
from pefx.serving.jobs import Answered
from pefx.store.names import parse_reference
from pefx.store.records import LATEST


def check_keeps(body: Generating, prompts: Sequence[Any], key: Key) -> None:
    """Raise PefxError where `body` asks to keep what it may not, or what would be several memories."""
    if body.remember is None:
        return
    if len(prompts) > 1:
        message = f"field 'remember': a memory is of one prompt, there are {len(prompts)}"
        raise PefxError(message, "invalid_request")
    if not key.keeps(body.remember):
        message = f"field 'remember': key '{key.name}' may not keep a memory as '{body.remember}'"
        raise PefxError(message, "forbidden")


async def follow(resolver: Resolver, answers: Sequence[Answered]) -> None:
    """What was kept is what the next request of that policy begins with, here at once: to be awaited before an answer
    says that it was kept.
    """
    for key in (answered.row.get("remembered") for answered in answers):
        if key is not None:
            await _switch(resolver, key)


async def _switch(resolver: Resolver, key: str) -> None:
    policy, number = parse_reference(key)
    resolver.forget(policy, LATEST)
    if resolver.tracks is None or resolver.tracks.get(policy) is None:
        return  # looked up when it is asked for
    try:
        revision = await resolver.beside(lambda: resolver.served.policies.resolve(policy, number))
    except PefxError as error:  # kept it is; the next look at the catalog will find it
        tell("the one before stays for now", logging.WARNING, revision=key, why=str(error))
        return
    resolver.tracks.advance(revision)
