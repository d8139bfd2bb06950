"""TinyLoRA: LoRA-XS whose small matrix is a sum of fixed random ones, `R = sum_i v_i P_i`; only v is trained.

Singular values go half to each side, as in PEFT.
"""

import numpy as np

from pefx.adapters.methods import lora_xs
from pefx.adapters.methods.method import PAIR, ZERO, Array, Common, Given, Leaf, Leaves, Method, Source, unscaled


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """As LoRA-XS, with R of v."""
    projections = given.shared["projections"]  # [L, (E,) units, R * R]
    rank = given.shared["a"].shape[-2]
    flat = (leaves["vector"].swapaxes(-1, -2) * projections[:, None]).sum(axis=-2)
    return lora_xs.derive({"between": flat.reshape(*flat.shape[:-1], rank, rank)}, given)


def shared(source: Source) -> dict[str, np.ndarray]:
    """`a = (V S^1/2)^T`, `b = (U S^1/2)^T`, and `projections [L, (E,) units, R R]`, normal of variance 1 / R."""
    found, rank = source.directions("first"), source.rank
    half = np.sqrt(found.strengths)[..., None]
    drawn = source.rng.normal(0, rank**-0.5, (*source.stack, source.units, rank * rank))
    return {"a": found.inward * half, "b": found.outward * half, "projections": drawn.astype(np.float32)}


SHARES = PAIR | {"projections": Common("units", "square")}
TINY_LORA = Method({"vector": Leaf("one", "units", ZERO, "writes")}, unscaled, derive, shared, SHARES)
