"""What a method is: the numbers that an adapter of it holds, and the factors that the kernels apply for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from pefx.adapters.directions import Directions, Part
from pefx.adapters.sites import Site

Array = Any  # of numpy or of the device: what is made of arrays here is made by their own operators
Leaves = Mapping[str, Array]  # of one site, by name: [L, N, (E,) rows, columns]
# What an array begins as: a pure function of a generator and its shape. Float32.
Start = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class Leaf(NamedTuple):
    """An array of an adapter at a site, `[L, (E,) rows, columns]`.

    Sizes by name: the site's widths `reads` and `writes`, or one of `sizes`. `side` is the width that its gradient is a
    sum over, where it has none of its own. `beyond` is what is there in a bank that has room for more.
    """

    rows: str
    columns: str
    start: Start
    side: Literal["reads", "writes"]
    beyond: float = 0.0


def sizes(rank: int, units: int, states: int = 1) -> dict[str, int]:
    """Sizes of leaves by name, apart from the widths of sites."""
    memory = states * rank
    own = {"one": 1, "rank": rank, "units": units}
    return own | {"states": states, "memory": memory, "projected": 3 * memory}


def constant(value: float) -> Start:
    """The same number everywhere."""
    return lambda rng, shape: np.full(shape, value, np.float32)


def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """In +-1/sqrt(columns), as PEFT's Kaiming start."""
    bound = shape[-1] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


ZERO, ONE = constant(0.0), constant(1.0)


class Given(NamedTuple):
    """What `derive` is given beside a slot's leaves: the base's `shared` arrays of this recipe and site, `[L, (E,)
    rows, columns]`; the site's matrices `[L, out, in]`; the slot's scale. `over_reads` is a sum over the shards of
    `reads`, `still` takes no gradient, `beside` puts rows under rows.
    """

    shared: Mapping[str, Array]
    matrices: Callable[[], Array]
    scales: Array
    over_reads: Callable[[Array], Array]
    still: Callable[[Array], Array]
    beside: Callable[[Array, Array], Array]


class Common(NamedTuple):
    """The size of an array that all adapters of a recipe share at a site, `[L, (E,) rows, columns]`: named as a leaf's,
    or `square`, of the rank. `once`: one for all layers and experts.
    """

    rows: str
    columns: str
    once: bool = False


PAIR = {"a": Common("rank", "reads"), "b": Common("rank", "writes")}


class Source(NamedTuple):
    """What `shared` is given of a site: the axes of its stacks, `(L,)` or `(L, E)`, its two widths and the widest that
    the base has; the recipe's rank, units and scale; a generator of its own; and the base's matrices there, `checked`
    to hold the rank and numbers, and as many of their directions, of either part. `columns` are the first ones, that
    many, of the matrices at another site, the first of some that the base has, `[L, out, n]`.
    """

    stack: tuple[int, ...]
    reads: int
    writes: int
    widest: tuple[int, int]
    rank: int
    units: int
    scale: float
    rng: np.random.Generator
    checked: Callable[[], np.ndarray]
    directions: Callable[[Part], Directions]
    columns: Callable[[tuple[str, ...], int], np.ndarray]


@dataclass(frozen=True)
class Method:
    """One method of adaptation.

    `leaves` are what an adapter holds at each site, all of them trained unless its rate is 0. `scale` is the factor on
    the product of a and b, of alpha and rank. `derive` makes factors `a`, `b` or `gains` of leaves, where they are not
    leaves themselves: differentiable, and each slot's of its own leaves; `shared` makes what it needs that all adapters
    of a base share, float32, of the sizes that `shares` tells by name. `rates` are multiples of the learning rate, by
    leaf. `refuses` says of a site why the method has no place there (None: it has); where not `biased`, it has none
    beside a bias either. Factors have `ranks` times an adapter's rank. `from_gradient` makes the leaves of a site,
    by its name, of the gradient of the user's loss by the base's matrices there, at a rank; `from_base` the first rows
    of some leaves, `[L, rows, columns]` by name, of other matrices of the base (None: leaves start as they say).
    """

    leaves: Mapping[str, Leaf]
    scale: Callable[[float, int], float]
    derive: Callable[[Leaves, Given], dict[str, Array]] | None = None
    shared: Callable[[Source], dict[str, np.ndarray]] = lambda source: {}
    shares: Mapping[str, Common] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    refuses: Callable[[Site], str | None] = lambda site: matrices_only(site)
    biased: bool = True
    ranks: int = 1
    from_gradient: Callable[[str, np.ndarray, int], dict[str, np.ndarray]] | None = None
    from_base: Callable[[Source], dict[str, np.ndarray]] | None = None


def by_rank(alpha: float, rank: int) -> float:
    """Hu et al. 2021 (2106.09685), section 4.1."""
    return alpha / rank


def unscaled(alpha: float, rank: int) -> float:
    """The product as it is."""
    return 1.0


def matrices_only(site: Site) -> str | None:
    """A memory is no matrix of the base."""
    return "only memories have a place there" if site.kind == "memory" else None


def memory_only(site: Site) -> str | None:
    """A memory is one for all projections of a layer."""
    return None if site.kind == "memory" else "its only target is 'memory'"


def rows_only(site: Site) -> str | None:
    """Gains are of whole rows of a projection, which routed experts and absorbed keys and values do not have."""
    if reason := matrices_only(site):
        return reason
    if site.kind == "experts":
        return "routed experts have no gains"
    return "keys and values of latent attention are never made" if site.writes == "keys_and_values" else None
