"""What all adapters of a recipe share on a base: held beside its weights once, whoever has adapters of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from pefx.adapters.directions import Directions, Part, checked, directions
from pefx.adapters.kept_directions import Wanted, kept
from pefx.adapters.matrices import matrices
from pefx.adapters.methods.method import Source
from pefx.adapters.methods.recipe import Recipe, source_of
from pefx.adapters.methods.table import METHODS, Adapter, adapted_sites, init_adapter, leaf_shapes
from pefx.adapters.sites import SITES, has_site, layer_count, width, width_axis
from pefx.config import AdapterSpec, ModelConfig
from pefx.distributed import from_owner
from pefx.errors import PefxError
from pefx.mesh import fetch, of_base, place
from pefx.model import Base

Gradients = Mapping[str, np.ndarray]  # by site: [L, (E,) out, in]


def with_shared(base: Base, specs: Iterable[AdapterSpec], digest: str = "") -> Base:
    """The base with what adapters of `specs` share beside its weights; `base` itself stays as it is. Within its mesh.

    Directions of a base with a `digest` are those that are kept of it, see `pefx.adapters.kept_directions`. Raises
    PefxError as that does, and, naming the site, where a rank is above a matrix's size, or the base has numbers that
    are none.
    """
    return _beside(base, specs, lambda site, recipe: _placed(site, recipe, base, digest))


def with_abstract_shared(base: Base, specs: Iterable[AdapterSpec]) -> Base:
    """`with_shared` of an abstract base: shapes and types, no number in memory."""
    return _beside(base, specs, lambda site, recipe: _abstract(site, recipe, base.config))


def _beside(base: Base, specs: Iterable[AdapterSpec], make: Callable[[str, Recipe], dict[str, nnx.Param]]) -> Base:
    """A copy of the base with what `make` gives for each recipe at each of its sites."""
    found = {name: dict(sites) for name, sites in base.shared.items()}
    for spec in specs:
        recipe = source_of(spec)
        if recipe is None:
            continue
        own = found.setdefault(recipe.name, {})
        for site in adapted_sites(base.config, spec):
            if site not in own:
                own[site] = make(site, recipe)
    copy = jax.tree.map(lambda x: x, base)
    copy.shared = nnx.data(found)
    return copy


def _placed(site: str, recipe: Recipe, base: Base, digest: str) -> dict[str, nnx.Param]:
    """A site's shared arrays on the mesh."""
    made = recipe.shared(_source(site, recipe, base, digest))
    return {
        name: place(of_base, _parameter(site, name, np.ascontiguousarray(x, np.float32))) for name, x in made.items()
    }


def _abstract(site: str, recipe: Recipe, config: ModelConfig) -> dict[str, nnx.Param]:
    """A site's shared arrays, as shapes."""
    at, found = SITES[site], {}
    sizes = {"one": 1, "rank": recipe.rank, "units": recipe.units, "square": recipe.rank**2}
    sizes |= {side: width(config, getattr(at, side)) for side in ("reads", "writes")}
    for name, common in recipe.shares.items():
        stack = tuple(1 if common.once else size for size in _stack(site, config))
        shape = (*stack, sizes[common.rows], sizes[common.columns])
        found[name] = _parameter(site, name, jax.ShapeDtypeStruct(shape, np.float32))
    return found


def _parameter(site: str, name: str, x: Any) -> nnx.Param:
    """An array that is divided as the factor of its name is."""
    experts = ("experts",) if SITES[site].kind == "experts" else ()
    named = ("layers", *experts, "rank", width_axis(site, "b" if name == "squares" else name))
    axes = tuple(axis if size > 1 else None for axis, size in zip(named, x.shape, strict=True))
    return nnx.Param(x, out_sharding=axes)


def _stack(site: str, config: ModelConfig) -> tuple[int, ...]:
    """Layers, and of their experts."""
    kind = SITES[site].kind
    return (layer_count(config, kind), *((config.experts,) if kind == "experts" else ()))


def _source(site: str, recipe: Recipe, base: Base, digest: str) -> Source:
    config, at = base.config, SITES[site]
    widths = [(width(config, one.reads), width(config, one.writes)) for one in SITES.values()]

    def held() -> np.ndarray:
        return np.asarray(fetch(matrices(base, site)), np.float32)

    def found(part: Part) -> Directions:
        plain = _plain(held, base, site)

        def make() -> Directions:
            return directions(site, plain, recipe.rank, part)

        return kept(Wanted(digest, config.precision, site, part), recipe.rank, make) if digest else make()

    return Source(
        stack=_stack(site, config),
        reads=width(config, at.reads),
        writes=width(config, at.writes),
        widest=(max(reads for reads, _ in widths), max(writes for _, writes in widths)),
        rank=recipe.rank,
        units=recipe.units,
        scale=recipe.scale,
        rng=np.random.default_rng([*site.encode()]),
        checked=lambda: checked(site, held, recipe.rank),
        directions=found,
        columns=lambda sites, count: _columns(base, sites, count),
    )


def _columns(base: Base, sites: tuple[str, ...], count: int) -> np.ndarray:
    """The first columns of the matrices at the first of some sites that the base has."""
    site = next(site for site in sites if has_site(base.config, site))
    held = _plain(lambda: np.asarray(fetch(matrices(base, site)[..., :count]), np.float32), base, site)
    return held()


def _plain(held: Callable[[], np.ndarray], base: Base, site: str) -> Callable[[], np.ndarray]:
    """The matrices, which must be those of the base: the last directions of rounded ones are others."""
    if base.config.weights != "plain":
        told = f"'{site}' is held in {base.config.weights}: its directions are not those of the base"
        raise PefxError(f"{told}; set base_weights to 'plain'", "wrong_base")
    return held


def fresh_adapter(
    base: Base, spec: AdapterSpec, seed: int, gradients: Callable[[Sequence[str]], Gradients] | None = None
) -> Adapter:
    """`init_adapter` on a base that has what adapters of the spec share. `gradients` of the user's first texts by the
    base's matrices at some sites, for methods that begin along them. Raises PefxError as those do.
    """
    method = METHODS[spec.method]
    if method.from_gradient is not None:
        if gradients is None:
            raise ValueError(f"method '{spec.method}' starts from a gradient, which is not given")
        found = gradients(list(leaf_shapes(base.config, spec)))
        leaves = {site: method.from_gradient(site, gradient, spec.rank) for site, gradient in sorted(found.items())}
        # The same on all processes of a job, whatever their linear algebra.
        return {site: dict(zip(own, from_owner(tuple(own.values())), strict=True)) for site, own in leaves.items()}
    if method.from_base is not None:
        return _begun(base, spec, init_adapter(base.config, spec, seed))
    source = source_of(spec)
    if spec.init == "default" or source is None:
        return init_adapter(base.config, spec, seed)
    held = base.shared[source.name]
    pairs = {site: {name: np.asarray(fetch(x[...])) for name, x in own.items()} for site, own in held.items()}
    return init_adapter(base.config, spec, seed, pairs)


def _begun(base: Base, spec: AdapterSpec, adapter: Adapter) -> Adapter:
    """The adapter with what its method begins with of the base."""
    from_base = METHODS[spec.method].from_base
    assert from_base is not None
    for site, leaves in adapter.items():
        for name, rows in from_base(_source(site, Recipe(spec.method, spec.rank), base, "")).items():
            leaves[name][..., : rows.shape[-2], :] = rows
    return adapter
