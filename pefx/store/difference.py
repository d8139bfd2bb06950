"""How two revisions differ: fields of their records, and their weights by site."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pefx.adapters.methods.recipe import needs_room
from pefx.adapters.methods.table import scale
from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.encoding import to_plain
from pefx.store.names import parse_reference
from pefx.store.records import Revision

OWN = {"policy", "number", "blob", "created"}  # fields that name a revision, and so always differ


@dataclass(frozen=True)
class SiteChange:
    """Of one site: the norms (Frobenius, over layers and experts) of both products, and of their difference."""

    site: str
    before: float
    after: float
    change: float


@dataclass(frozen=True)
class Difference:
    """`fields` by dotted path: values before and after (None: absent); weights by site, in the order of the first."""

    before: str
    after: str
    same_content: bool
    fields: dict[str, tuple[Any, Any]]
    sites: tuple[SiteChange, ...]


def difference(catalog: Catalog, before: str, after: str) -> Difference:
    """What changed from revision `before` to `after`, each `policy`, `policy@number` or `policy@alias`.

    PefxError kind "wrong_base" where they belong to different bases, or to one but with other sizes: their weights do
    not compare.
    """
    old, new = (catalog.get(*parse_reference(reference)) for reference in (before, after))
    if old.base != new.base:
        raise PefxError(f"revision {old.key} belongs to base {old.base}, {new.key} to {new.base}", "wrong_base")
    left, right = _flat(to_plain(old)), _flat(to_plain(new))
    fields = {
        name: (left.get(name), right.get(name))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name) and name not in OWN
    }
    weights = catalog.load(old), catalog.load(new)
    sites = tuple(_site(site, old, new, weights) for site in dict.fromkeys([*weights[0], *weights[1]]))
    return Difference(old.key, new.key, old.content_hash == new.content_hash, fields, sites)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    found = [_flat(item, f"{prefix}{name}.") for name, item in value.items()]
    return {name: item for part in found for name, item in part.items()}


def _site(site: str, old: Revision, new: Revision, weights: tuple[dict[str, Any], dict[str, Any]]) -> SiteChange:
    specs = (old.spec, new.spec)
    if any(map(needs_room, specs)):
        return _leaves(site, old, new, weights)
    pairs = [(w.get(site), scale(spec)) for w, spec in zip(weights, specs, strict=True)]
    first, second = (None if pair is None else _scaled(pair, factor) for pair, factor in pairs)
    own = [0.0 if pair is None else _inner(pair, pair) for pair in (first, second)]
    try:
        cross = 0.0 if first is None or second is None else _inner(first, second)
    except ValueError as error:  # from a zip or a product of two shapes
        told = f"site '{site}' has other sizes in {old.key} than in {new.key}: they do not compare"
        raise PefxError(told, "wrong_base") from error
    # From three sums of products, so never below zero but for rounding.
    change = max(own[0] + own[1] - 2 * cross, 0.0)
    return SiteChange(site, own[0] ** 0.5, own[1] ** 0.5, change**0.5)


def _leaves(site: str, old: Revision, new: Revision, weights: tuple[dict[str, Any], dict[str, Any]]) -> SiteChange:
    """Of methods whose leaves are no pair of factors: norms of the leaves themselves."""
    left, right = ({name: x.astype(np.float64).ravel() for name, x in own.get(site, {}).items()} for own in weights)
    if left and right and {n: x.size for n, x in left.items()} != {n: x.size for n, x in right.items()}:
        told = f"site '{site}' has other leaves in {old.key} than in {new.key}: they do not compare"
        raise PefxError(told, "wrong_base")
    change = {name: right.get(name, 0.0) - left.get(name, 0.0) for name in left | right}
    before, after, between = (sum(float(np.sum(x * x)) for x in own.values()) ** 0.5 for own in (left, right, change))
    return SiteChange(site, before, after, between)


def _scaled(pair: dict[str, np.ndarray], factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors in float64, the scale in the first; with an expert axis in both where one has it."""
    a, b = pair["a"].astype(np.float64) * factor, pair["b"].astype(np.float64)
    if a.ndim != b.ndim:
        a, b = (x[:, None] if x.ndim == 3 else x for x in (a, b))
    return a, b


def _inner(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> float:
    """The inner product of two products A'B, from R x R matrices: the large ones are never made."""
    return float(sum((_gram(a, c) * _gram(b, d)).sum() for a, b, c, d in zip(*left, *right, strict=True)))


def _gram(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[(E,) R, R']` from `[(E,) R, n]` and `[(E,) R', n]`."""
    return x @ np.swapaxes(y, -1, -2)
