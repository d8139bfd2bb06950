"""DoRA (Liu et al. 2024, 2402.09353): each row of the adapted matrix has a length of its own, which is learned.

`y = m / |W + s B A| (W x + s B A x)`, the norm of each row; section 4.3: no gradient goes through it. As gains it is
`m / |W + s B A|`, of the outputs of base and adapter together. A projection's bias is one of those outputs, so there
must be none.
"""

import numpy as np

from pefx.adapters.methods.lora import LEAVES
from pefx.adapters.methods.method import ONE, Array, Common, Given, Leaf, Leaves, Method, Source, by_rank, rows_only


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """The gains of each slot. `magnitude` is relative to the base's own rows: ones are the base, to the bit."""
    return {"gains": leaves["magnitude"] / _growth(given.still(leaves["a"]), given.still(leaves["b"]), given)}


def _growth(a: Array, b: Array, given: Given) -> Array:
    """`|W + s B A| / |W|` of each row, `[L, N, 1, F]`, of a `[L, N, R, D]` and b `[L, N, R, F]`: from products of the
    rank's size, no matrix of a slot is made.
    """
    scale, squares = given.scales[None, :, None, None], given.shared["squares"][:, None]
    cross = given.over_reads(a @ given.matrices().astype("float32").swapaxes(-1, -2)[:, None])
    inner = given.over_reads(a @ a.swapaxes(-1, -2))
    change = 2 * scale * (b * cross).sum(axis=-2, keepdims=True)
    change = change + scale**2 * (b * (inner @ b)).sum(axis=-2, keepdims=True)
    return (1 + change / squares).clip(0) ** 0.5


def shared(source: Source) -> dict[str, np.ndarray]:
    """`squares [L, 1, F]`: of the length of each row of the base."""
    w = source.checked().astype(np.float64)
    return {"squares": np.sum(w * w, axis=-1, keepdims=True).swapaxes(-1, -2).astype(np.float32)}


DORA = Method(
    LEAVES | {"magnitude": Leaf("one", "writes", ONE, "writes")},
    by_rank,
    derive,
    shared,
    {"squares": Common("one", "writes")},
    refuses=rows_only,
    biased=False,
)
