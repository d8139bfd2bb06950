"""Scores: what evaluations found about revisions, each a record of its own that is never changed."""

import hashlib
from collections.abc import Mapping
from typing import Literal

from pefx.store.catalog import Catalog
from pefx.store.encoding import sealed, storable
from pefx.store.keyspace import ABSENT, Write
from pefx.store.lifecycle import persist
from pefx.store.lookup import checked, checked_at, now
from pefx.store.names import after, revision_key, score_key
from pefx.store.records import Revision, Score


def record_score(
    catalog: Catalog,
    revision: Revision,
    *,
    renderer: str,
    scorer: str,
    path: Literal["isolated", "shared"],
    metrics: Mapping[str, float | int],
    samples: int,
    data_fingerprint: str,
) -> Score:
    """Store what `scorer` found about `revision`. The same finding again is the one that is there.

    PefxError for metrics that are no finite numbers, and kind "unknown_revision" where the revision is gone.
    """
    where = f"score of {revision.key}"
    score = Score(
        policy=revision.policy,
        number=revision.number,
        content_hash=revision.content_hash,
        base=revision.base,
        renderer=renderer,
        scorer=scorer,
        path=path,
        metrics=storable(metrics, where),
        samples=samples,
        data_fingerprint=data_fingerprint,
        created=now(),
    )
    score, stored = sealed(score, where)
    said = storable([renderer, scorer, path, score.metrics, samples, data_fingerprint], where)
    key = score_key(revision.policy, revision.number, hashlib.sha256(repr(said).encode()).hexdigest()[:16])

    def attempt() -> Score:
        catalog.get(revision.policy, revision.number)
        named = revision_key(revision.policy, revision.number)
        there, found = catalog.space.read_many([named, key])
        if found.value is not None:
            return checked(catalog.space, Score, found.value, revision.key)
        catalog.space.transact([Write(named, there.value, there.generation), Write(key, stored, ABSENT)])
        return score

    return persist(attempt)


def scores(catalog: Catalog, policy: str, number: int | None = None) -> list[Score]:
    """All scores of a policy's revisions, or of one, by revision and then by time."""
    name = catalog.policy(policy).name
    prefix = f"score/{name}@" if number is None else score_key(name, number, "")
    keys = catalog.space.keys(prefix, after(prefix))
    found = []
    for key, entry in zip(keys, catalog.space.read_many(keys), strict=True):
        if entry.value is not None:
            found.append(checked_at(catalog.space, Score, entry.value, key))
    return sorted(found, key=lambda score: (score.number, score.created))
