"""DoRA (Liu et al. 2024, 2402.09353): each row of the adapted matrix has a length of its own, which is learned.

`y = m / |W + s B A| (W x + s B A x)`, the norm of each row; section 4.3: no gradient goes through it. As gains it is
`m / |W + s B A|`, of the outputs of base and adapter together. A projection's bias is one of those outputs, so there
must be none.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pefx.adapters.methods.lora import LEAVES
from pefx.adapters.methods.method import ONE, Given, Leaf, Leaves, Method, Source, by_rank, rows_only


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """The gains of each slot. `magnitude` is relative to the base's own rows: ones are the base, to the bit."""
    a, b = (jax.lax.stop_gradient(leaves[name]) for name in ("a", "b"))
    return {"gains": leaves["magnitude"] / _growth(a, b, given)}


def _growth(a: Float[Array, "L N R D"], b: Float[Array, "L N R F"], given: Given) -> Float[Array, "L N 1 F"]:
    """`|W + s B A| / |W|` of each row, from products with W of the rank's size: no matrix of a slot is made."""
    scale, w = given.scales[None, :, None, None], given.matrices().astype(jnp.float32)
    own = given.shared["squares"][:, None]
    cross = given.over_reads(jnp.einsum("lnrd,lfd->lnrf", a, w))
    inner = given.over_reads(jnp.einsum("lnrd,lnqd->lnrq", a, a))
    once = jnp.sum(b * cross, axis=2, keepdims=True)
    twice = jnp.sum(b * jnp.einsum("lnrq,lnqf->lnrf", inner, b), axis=2, keepdims=True)
    change = 2 * scale * once + scale**2 * twice
    return jnp.sqrt(jnp.maximum(1 + change / own, 0.0))


def shared(source: Source) -> dict[str, np.ndarray]:
    """`squares [L, 1, F]`: of the length of each row of the base."""
    w = source.matrices().astype(np.float64)
    return {"squares": np.sum(w * w, axis=-1, dtype=np.float64)[:, None].astype(np.float32)}


DORA = Method(LEAVES | {"magnitude": Leaf("one", "writes", ONE, "writes")}, by_rank, derive, shared, refuses=rows_only)
