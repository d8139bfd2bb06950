"""Which adapters' factors are made of other numbers, and in one way: a method at sizes that the way depends on."""

from collections.abc import Sequence
from typing import NamedTuple

from pefx.adapters.methods.method import Method
from pefx.adapters.methods.table import METHODS
from pefx.config import AdapterSpec
from pefx.errors import PefxError


class Recipe(NamedTuple):
    """A method at sizes that what its adapters share on a base depends on."""

    method: str
    rank: int
    units: int

    @property
    def row(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def name(self) -> str:
        """The name of its shared arrays in a base."""
        return f"{self.method}_{self.rank}_{self.units}"


def recipe_of(spec: AdapterSpec) -> Recipe | None:
    """How the factors of an adapter are made; None where it holds them."""
    return None if METHODS[spec.method].derive is None else Recipe(spec.method, spec.rank, spec.units)


def recipes_of(specs: Sequence[AdapterSpec]) -> tuple[Recipe, ...]:
    """Those of all specs, each once, in order."""
    return tuple(sorted({recipe for recipe in map(recipe_of, specs) if recipe is not None}))


def needs_room(spec: AdapterSpec) -> bool:
    """Whether a bank of factors alone cannot hold such an adapter."""
    return not set(METHODS[spec.method].leaves) <= {"a", "b"}


def check_exchangeable(spec: AdapterSpec) -> None:
    """Raise PefxError (kind "bad_adapter") where an adapter is not the two factors that a file of LoRA holds."""
    if needs_room(spec):
        raise PefxError(f"an adapter of method '{spec.method}' is no pair of factors, as LoRA has", "bad_adapter")
