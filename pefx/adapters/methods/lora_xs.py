"""LoRA-XS (Balazy et al. 2024, 2405.17604): a small matrix between the base's own first singular directions.

`W + s U S R V^T`, of which R is trained. It starts at zero (the paper: almost), so that the start is the base.
"""

import numpy as np

from pefx.adapters.methods.method import PAIR, ZERO, Array, Given, Leaf, Leaves, Method, Source, by_rank


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """`a = V^T`, `b = (U S R)^T`."""
    return {"a": given.shared["a"][:, None], "b": leaves["between"].swapaxes(-1, -2) @ given.shared["b"][:, None]}


def shared(source: Source) -> dict[str, np.ndarray]:
    """`a = V^T`, `b = (U S)^T` of the first directions."""
    found = source.directions("first")
    return {"a": found.inward, "b": found.outward * found.strengths[..., None]}


LORA_XS = Method({"between": Leaf("rank", "rank", ZERO, "writes")}, by_rank, derive, shared, PAIR)
