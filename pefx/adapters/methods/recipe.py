"""Which adapters' factors are made of other numbers, and in one way: a method at sizes that the way depends on."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pefx.adapters.methods.method import PAIR, Array, Common, Given, Leaves, Method, Source
from pefx.adapters.methods.starts import BEGINNINGS, shift
from pefx.adapters.methods.table import METHODS, scale
from pefx.adapters.sites import SITES
from pefx.config import AdapterSpec
from pefx.errors import PefxError


class Recipe(NamedTuple):
    """A method or a start, at sizes that what its adapters share on a base depends on; and where the `sites` of an
    adapter share its numbers, these.
    """

    method: str
    rank: int
    units: int = 0
    tied: bool = False
    init: str = "default"
    scale: float = 0.0
    sites: tuple[str, ...] = ()

    @property
    def row(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def derive(self) -> Callable[[Leaves, Given], dict[str, Array]] | None:
        """How factors are made of leaves; None where they are leaves."""
        return shift if self.init in BEGINNINGS and BEGINNINGS[self.init].shifted else self.row.derive

    @property
    def shared(self) -> Callable[[Source], dict[str, np.ndarray]]:
        """What adapters of the recipe share, or start from."""
        return self.row.shared if self.init == "default" else BEGINNINGS[self.init].pair

    @property
    def shares(self) -> Mapping[str, Common]:
        """The sizes of these, by name."""
        return self.row.shares if self.init == "default" else PAIR

    @property
    def name(self) -> str:
        """The name of its shared arrays in a base."""
        return "-".join(str(part) for part in self[:-1] if part and part != "default")


def source_of(spec: AdapterSpec) -> Recipe | None:
    """What an adapter needs of its base beside the weights; None where it needs nothing."""
    if spec.init != "default":
        return Recipe(
            spec.method, spec.rank, init=spec.init, scale=scale(spec) if BEGINNINGS[spec.init].scaled else 0.0
        )
    method = METHODS[spec.method]
    units = spec.units if any(leaf.columns == "units" for leaf in method.leaves.values()) else 0
    sites = tuple(site for site in SITES if site in spec.targets) if spec.tied == "all" else ()
    return None if method.derive is None else Recipe(spec.method, spec.rank, units, bool(spec.tied), sites=sites)


def recipe_of(spec: AdapterSpec) -> Recipe | None:
    """How the factors of an adapter are made; None where it holds them."""
    found = source_of(spec)
    return None if found is None or found.derive is None else found


def recipes_of(specs: Sequence[AdapterSpec]) -> tuple[Recipe, ...]:
    """Those of all specs, each once, in order."""
    return tuple(sorted({recipe for recipe in map(recipe_of, specs) if recipe is not None}))


def rank_in_bank(spec: AdapterSpec) -> int:
    """The rank of an adapter's factors: twice its own where its start is taken away."""
    shifted = spec.init in BEGINNINGS and BEGINNINGS[spec.init].shifted
    return spec.rank * METHODS[spec.method].ranks * (2 if shifted else 1)


def needs_room(spec: AdapterSpec) -> bool:
    """Whether a bank of factors alone cannot hold such an adapter."""
    return recipe_of(spec) is not None or not set(METHODS[spec.method].leaves) <= {"a", "b"}


def check_no_memory(spec: AdapterSpec) -> None:
    """Raise PefxError (kind "bad_adapter") where an adapter has a memory, or is what one held: no factors hold that."""
    if any(SITES[site].kind == "memory" for site in spec.targets):
        told = f"method '{spec.method}' is no part of a base's weights: a memory cannot be merged or exported"
        raise PefxError(f"an adapter of {told}", "bad_adapter")


def check_exchangeable(spec: AdapterSpec) -> None:
    """Raise PefxError (kind "bad_adapter") where an adapter is not the two factors that a file of LoRA holds."""
    if needs_room(spec):
        told = f"an adapter of method '{spec.method}', init '{spec.init}', is no pair of factors, as LoRA has"
        raise PefxError(told, "bad_adapter")
