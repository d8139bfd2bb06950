"""A check at start-up that this compiler and processor keep a row's bits whatever rows stand beside it.

Laws 2 and 3 rest on it (docs/decisions/0002). It takes about a second and runs once a process.
"""

import functools
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels.paged_attention.xla import BLOCK_KEYS, LANES
from pefx.compiler import jit
from pefx.errors import PefxError

# Values of attention are padded to a multiple of `LANES` columns: fewer may take other bits, which is why.
WIDE, NARROW, KEYS = 192, LANES, BLOCK_KEYS
# What is computed of `x [M, D]`, and the numbers of rows that the steps use it with.
FORMS = {
    "dense projection": (WIDE, (2, 8, 64, 256)),
    "expert projection": (WIDE, (2, 8, 32)),
    "attention over a block of keys": (KEYS, (2, 24, 96, 128)),
    "softmax and norm": (WIDE, (2, 8, 64, 256)),
}


def _compute(form: str, x: Float[Array, "M D"], w: Float[Array, "D F"]) -> Float[Array, "M _"]:
    if form == "dense projection":
        return jax.lax.dot_general(x, w.T, (((1,), (1,)), ((), ())))
    if form == "softmax and norm":
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return jax.nn.log_softmax(y, axis=-1)
    return x @ w


@functools.cache
def check_row_invariance() -> None:
    """Raises PefxError if a row of any of `FORMS` has other bits among other numbers of rows. CPU only; once."""
    if jax.default_backend() != "cpu":
        return
    rng = np.random.default_rng(0)
    for form, (depth, counts) in FORMS.items():
        x = rng.normal(size=(max(counts), depth)).astype(np.float32)
        w = rng.normal(size=(depth, NARROW)).astype(np.float32)
        rows = [np.asarray(jit(functools.partial(_compute, form))(x[:count], w)) for count in counts]
        broken = differing(rows)
        if broken:
            raise PefxError(
                f"jaxlib {version('jaxlib')} on this processor gives a row of a {form} other bits among "
                f"{counts[broken[0]]} rows than among {max(counts)}; training and serving would differ. "
                "Install the pinned versions (constraints.txt)"
            )


def differing(rows: list[np.ndarray]) -> list[int]:
    """Which of the results do not equal, bit for bit, the first rows of the last."""
    return [i for i, y in enumerate(rows) if y.tobytes() != np.ascontiguousarray(rows[-1][: len(y)]).tobytes()]
