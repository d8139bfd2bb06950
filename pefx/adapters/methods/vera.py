"""VeRA (Kopiczko et al. 2023, 2310.11454): one random pair of factors for all matrices of a base; an adapter holds what
multiplies their ranks, and the outputs.
"""

import numpy as np

from pefx.adapters.methods.method import ZERO, Array, Common, Given, Leaf, Leaves, Method, Source, constant, unscaled


def derive(leaves: Leaves, given: Given) -> dict[str, Array]:
    """`a = d A`, `b = B b` (eq. 2)."""
    a, b = (given.shared[name][:, None] for name in ("a", "b"))
    by_rank = leaves["by_rank"]
    return {"a": by_rank.swapaxes(-1, -2) * a, "b": b * leaves["by_output"]}


def shared(source: Source) -> dict[str, np.ndarray]:
    """`a [1, (1,) R, D]`, `b [1, (1,) R, F]`: the beginning of the one pair that is as wide as the base's widest.

    Uniform, of variance 2 / width and 2 / rank, as PEFT draws them; the same for every base of that width.
    """
    found = {}
    for name, width, widest, fan in (
        ("a", source.reads, source.widest[0], source.widest[0]),
        ("b", source.writes, source.widest[1], source.rank),
    ):
        bound = (6 / fan) ** 0.5
        whole = np.random.default_rng([*b"vera", *name.encode()]).uniform(-bound, bound, (source.rank, widest))
        one = whole[:, :width].astype(np.float32)
        found[name] = one.reshape(*(1 for _ in source.stack), *one.shape)
    return found


LEAVES = {"by_rank": Leaf("one", "rank", constant(0.1), "reads"), "by_output": Leaf("one", "writes", ZERO, "writes")}
SHARES = {"a": Common("rank", "reads", once=True), "b": Common("rank", "writes", once=True)}
VERA = Method(LEAVES, unscaled, derive, shared, SHARES)
