"""How the factors of LoRA and its kin start, by name: at random, or from the base's own matrices.

Where both factors start from the base, their product is not zero: it is taken away again. The served delta is
`s (B A - B0 A0)`, of twice the rank, B0 and A0 the same for all adapters of that start on a base, which stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pefx.adapters.directions import Part
from pefx.adapters.methods.method import Array, Given, Leaves, Source

Pair = dict[str, np.ndarray]  # "a" [L, (E,) R, in], "b" [L, (E,) R, out]


@dataclass(frozen=True)
class Beginning:
    """`pair` makes A0 and B0 of a site. `given` are the factors that start as theirs, the others as the method's do, or
    with `zero` at zero. `shifted`: both are given. `frozen` stays as it starts. `scaled`: they follow the scale.
    """

    pair: Callable[[Source], Pair]
    given: tuple[str, ...]
    zero: tuple[str, ...] = ()
    frozen: Literal["none", "a", "b"] = "none"
    scaled: bool = False

    @property
    def shifted(self) -> bool:
        """Whether the start is taken away from the product."""
        return self.given == ("a", "b")


def _directions(part: Part) -> Callable[[Source], Pair]:
    """`A0 = V^T`, `B0 = U` of some directions, without strengths; or `A0 = R`, `B0 = Q^T` of W = Q R."""

    def pair(source: Source) -> Pair:
        found = source.directions(part)
        return {"a": found.inward, "b": found.outward}

    return pair


def _weighed(part: Part) -> Callable[[Source], Pair]:
    """`A0 = (S / s)^1/2 V^T`, `B0 = U (S / s)^1/2`: their product with the scale is that part of the matrix."""

    def pair(source: Source) -> Pair:
        found = source.directions(part)
        half = np.sqrt(found.strengths / np.float32(source.scale))[..., None]
        return {"a": found.inward * half, "b": found.outward * half}

    return pair


BEGINNINGS: dict[str, Beginning] = {
    # The r smallest directions; B zero, so that the start is the base and the rank stays r.
    "minor": Beginning(_directions("last"), given=("a",)),
    # MiCA (2604.01694): only A is learned, out to the smallest directions.
    "mica": Beginning(_directions("last"), given=("b",), zero=("a",), frozen="b"),
    # OLoRA-tail ("On the Scaling of PEFT", 2606.02437).
    "olora_tail": Beginning(_directions("last"), given=("a", "b")),
    "olora": Beginning(_directions("orthogonal"), given=("a", "b")),  # Buyukakyuz 2024 (2406.01775)
    "pissa": Beginning(_weighed("first"), given=("a", "b"), scaled=True),  # Meng et al. 2024 (2404.02948)
    "milora": Beginning(_weighed("last"), given=("a", "b"), scaled=True),  # Wang et al. 2024 (2406.09044)
}


def shift(leaves: Leaves, given: Given) -> dict[str, Array]:
    """Factors of twice the rank: `[A; A0]`, `[B; -B0]`."""
    signs = (("a", 1), ("b", -1))
    return {name: given.beside(leaves[name], sign * given.shared[name][:, None]) for name, sign in signs}
