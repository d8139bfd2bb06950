"""What adapters of a method come to on a small base, as matrices: for tests of each method against its own formula."""

import numpy as np

from pefx.adapters.applied import applied
from pefx.adapters.matrices import matrices
from pefx.adapters.methods.recipe import recipe_of
from pefx.adapters.methods.table import METHODS, Adapter, init_adapter, scale
from pefx.adapters.shared import with_shared
from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from pefx.model import Base
from tests.model_small import MODEL, make_base

BASE = make_base(MODEL)
DENSE = ("q_proj", "o_proj", "up_proj")
WITH_EXPERTS = (*DENSE, "experts.gate_proj", "experts.down_proj")


def changed(spec: AdapterSpec, seed: int = 0) -> Adapter:
    """An adapter none of whose leaves is as it began."""
    rng, fresh = np.random.default_rng(seed), init_adapter(MODEL, spec, seed)

    def moved(x: np.ndarray) -> np.ndarray:
        return x + 0.3 * rng.normal(size=x.shape).astype(np.float32)

    return {site: {leaf: moved(x) for leaf, x in leaves.items()} for site, leaves in fresh.items()}


def weights(site: str, base: Base = BASE) -> np.ndarray:
    """A site's matrices, `[L, (E,) out, in]`."""
    return np.asarray(matrices(base, site), np.float64)


def adapted(adapter: Adapter, spec: AdapterSpec) -> dict[str, np.ndarray]:
    """Matrices that take the place of the base's, by site."""
    found = {}
    for site, factors in applied(BASE, adapter, spec).items():
        a, b = (factors[name].astype(np.float64) for name in ("a", "b"))
        w = weights(site) + scale(spec) * np.swapaxes(b, -1, -2) @ a
        found[site] = w * np.swapaxes(factors["gains"], -1, -2) if "gains" in factors else w
    return found


def shared(spec: AdapterSpec) -> dict[str, dict[str, np.ndarray]]:
    """What adapters of this spec share, by site and name."""
    recipe = recipe_of(spec)
    assert recipe is not None
    held = with_shared(BASE, [spec]).shared[recipe.name]
    return {site: {name: np.asarray(x[...], np.float64) for name, x in own.items()} for site, own in held.items()}


def spec_of(method: str, **fields) -> AdapterSpec:
    """A spec of that method at all its sites among `WITH_EXPERTS`."""
    sites = tuple(site for site in WITH_EXPERTS if METHODS[method].refuses(SITES[site]) is None)
    return AdapterSpec(method=method, **{"rank": 3, "alpha": 6.0, "targets": sites, **fields})  # type: ignore[arg-type]
