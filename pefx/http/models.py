"""`/v1/models`: the base and the policies that a key may see."""

from collections.abc import Mapping
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any

from starlette.responses import Response

from pefx.errors import PefxError
from pefx.http.api import Api, Asked, as_json
from pefx.http.keys import Key
from pefx.http.objects import Model, ModelList
from pefx.http.resolving import hidden
from pefx.store.catalog import Catalog
from pefx.store.names import NAME_LENGTH
from pefx.store.records import LATEST, Policy

LONGEST_PAGE = 1000
PAGE = 100
ASCII = "^[ -~]*$"
QUERY: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "after",
        {
            "type": "string",
            "pattern": ASCII,
            "maxLength": NAME_LENGTH,
            "default": "",
            "description": "the last name of the page before",
        },
    ),
    (
        "prefix",
        {
            "type": "string",
            "pattern": ASCII,
            "maxLength": NAME_LENGTH,
            "default": "",
            "description": "what names begin with",
        },
    ),
    ("limit", {"type": "integer", "minimum": 1, "maximum": LONGEST_PAGE, "default": PAGE}),
)


async def models(asked: Asked) -> Response:
    """`GET /v1/models`: the base first, then policies by name, a page at a time."""
    api, key, query = asked.api, asked.exchange.key, asked.request.query_params
    after, prefix, limit = page_of(query)
    found: list[Model] = []
    if key.base and not after and api.served.name.startswith(prefix):
        found.append(base_model(api))
    catalog = api.served.catalog
    if catalog is not None:
        behind = None if not after or after == api.served.name else after
        policies = await api.resolver.beside(lambda: visible(catalog, key, prefix, behind, limit + 1))
        found += [policy_model(api, policy) for policy in policies]
    page = found[:limit]
    return as_json(ModelList(data=page, has_more=len(found) > limit, last_id=page[-1].id if page else None))


def page_of(query: Mapping[str, str]) -> tuple[str, str, int]:
    """`after`, `prefix` and `limit` of an address. PefxError for what is none."""
    for name in ("after", "prefix"):
        text = query.get(name, "")
        if len(text) > NAME_LENGTH or not text.isascii():
            raise PefxError(f"field '{name}': must be at most {NAME_LENGTH} ASCII characters", "invalid_request")
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= LONGEST_PAGE):
        raise PefxError(f"field 'limit': must be 1 to {LONGEST_PAGE}, got {limit[:20]!r}", "invalid_request")
    return query.get("after", ""), query.get("prefix", ""), int(limit)


def visible(catalog: Catalog, key: Key, prefix: str, behind: str | None, limit: int) -> list[Policy]:
    """The first policies by name, behind `behind`, that begin with `prefix` and that `key` may see."""
    sources = []
    for pattern in key.patterns:
        start = pattern.removesuffix("*")
        if pattern.endswith("*") and (start.startswith(prefix) or prefix.startswith(start)):
            sources.append(catalog.search(max(start, prefix, key=len), behind=behind, limit=limit))
        elif not pattern.endswith("*") and pattern.startswith(prefix) and pattern > (behind or ""):
            sources.append([policy for policy in catalog.search(pattern, limit=1) if policy.name == pattern])
    sources += [catalog.search(prefix, owner=owner, behind=behind, limit=limit) for owner in key.owners]
    # An exact name comes in a list of its own, so all lists are in order and so is what they make together.
    found: dict[str, Policy] = {}
    for policy in merge(*sources, key=lambda policy: policy.name):
        if policy.state == "active":
            found.setdefault(policy.name, policy)
        if len(found) == limit:
            break
    return list(islice(found.values(), limit))


async def model(asked: Asked) -> Response:
    """`GET /v1/models/{model}`: one of them, or one revision of a policy."""
    api, name = asked.api, asked.request.path_params["model"]
    if name == api.served.name:
        await api.resolver.resolve(name, asked.exchange.key)
        return as_json(base_model(api))
    policy, which = api.resolver.split(name)
    await api.resolver.check_seen(policy, asked.exchange.key, name)
    record, catalog = await api.resolver.policy(policy, name), api.served.catalog
    if catalog is None or record.head == 0:
        raise hidden(name)
    if which is None:
        return as_json(policy_model(api, record))
    revision = await api.resolver.beside(lambda: catalog.get(policy, which), name)
    stage = None if api.tracks is None else api.tracks.stage(revision)
    return as_json(
        Model(
            id=revision.key,
            created=seconds(revision.created),
            owned_by=record.owner or "pefx",
            base=revision.base,
            revision=revision.number,
            rank=revision.spec.rank,
            stage=stage,
        )
    )


def base_model(api: Api) -> Model:
    return Model(id=api.served.name, created=0, owned_by="pefx", base=api.served.digest)


def policy_model(api: Api, policy: Policy) -> Model:
    """A policy with the revision that is served here, or would be at its first request."""
    track = None if api.tracks is None else api.tracks.get(policy.name)
    return Model(
        id=policy.name,
        created=seconds(policy.created),
        owned_by=policy.owner or "pefx",
        base=policy.base,
        revision=policy.aliases.get(LATEST) if track is None else track.revision.number,
        rank=policy.spec.rank,
        stage="committed" if track is None else "exposed",
    )


def seconds(time: str) -> int:
    """A record's time as seconds since 1970; 0 for what is none."""
    try:
        return max(0, int(datetime.fromisoformat(time).timestamp()))
    except (ValueError, OverflowError):
        return 0
