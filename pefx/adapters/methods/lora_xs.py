"""LoRA-XS (Balazy et al. 2024, 2405.17604): a small matrix between the base's own first singular directions.

`W + s U S R V^T`, of which R is trained. It starts at zero (the paper: almost), so that the start is the base.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pefx.adapters.methods.method import ZERO, Given, Leaf, Leaves, Method, Source, by_rank


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """`a = V^T`, `b = (U S R)^T`."""
    v, u = given.shared["a"][:, None], given.shared["b"][:, None]
    between = leaves["between"]
    return {
        "a": jnp.broadcast_to(v, (*between.shape[:-2], *v.shape[-2:])),
        "b": jnp.einsum("ln...ij,ln...if->ln...jf", between, jnp.broadcast_to(u, (*between.shape[:-2], *u.shape[-2:]))),
    }


def shared(source: Source) -> dict[str, np.ndarray]:
    """`a = V^T`, `b = (U S)^T` of the first directions."""
    found = source.directions()
    return {"a": found.inward, "b": found.outward * found.strengths[..., None]}


LORA_XS = Method({"between": Leaf("rank", "rank", ZERO, "writes")}, by_rank, derive, shared)
