"""LoRA-GA (Wang et al. 2024, 2407.05000): LoRA that starts along the first gradient of each matrix.

Of the gradient `G = U S V^T`, A0 is the first r rows of V^T, B0 the next r columns of U, each `out^1/4 / gamma^1/2`
long (section 3), the scale is alpha / sqrt(r). Gamma is 16, as in PEFT 0.21, which multiplies B0 by the gradient's
singular values besides; the paper does not. The product is taken away again: served is `s (B A - B0 A0)` of twice the
rank. A0 and B0 follow from a user's own texts, so that they are the adapter's own: leaves that are not trained.
"""

import numpy as np

from pefx.adapters.directions import directions
from pefx.adapters.methods.lora import LEAVES, RSLORA
from pefx.adapters.methods.method import ZERO, Array, Given, Leaf, Leaves, Method
from pefx.errors import PefxError

GAMMA = 16.0


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """`[A; A0]`, `[B; -B0]`."""
    return {"a": given.beside(leaves["a"], leaves["a0"]), "b": given.beside(leaves["b"], -leaves["b0"])}


def begin(site: str, gradient: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """All leaves, of the gradient of the loss by a site's matrices, `[L, (E,) out, in]`. Where it is zero, as of an
    expert that no token reached, the directions are any.

    Raises PefxError where the rank is above half of a matrix's size (kind "wrong_rank"), or the gradient has numbers
    that are none.
    """
    most = min(gradient.shape[-2:])
    if 2 * rank > most:
        told = f"rank {rank} is above half the size of '{site}', {gradient.shape[-2]} x {gradient.shape[-1]}"
        raise PefxError(f"{told}: method 'lora_ga' starts along twice as many directions, at most {most}", "wrong_rank")
    if not np.isfinite(gradient).all():
        raise PefxError(f"the first gradient at '{site}' is not finite: 'lora_ga' cannot start along it", "not_finite")
    found = directions(site, lambda: gradient, 2 * rank)
    length = np.float32(gradient.shape[-2] ** 0.25 / GAMMA**0.5)
    a, b = found.inward[..., :rank, :] * length, found.outward[..., rank:, :] * length
    return {"a": a, "b": b, "a0": a.copy(), "b0": b.copy()}


LORA_GA = Method(
    LEAVES | {"a0": Leaf("rank", "reads", ZERO, "reads"), "b0": Leaf("rank", "writes", ZERO, "writes")},
    RSLORA.scale,
    derive,
    rates={"a0": 0.0, "b0": 0.0},
    ranks=2,
    from_gradient=begin,
)
