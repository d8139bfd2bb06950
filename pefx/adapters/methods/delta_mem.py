"""delta-mem (2605.12357): a small memory for each sequence, read and written layer by layer, that steers attention.

An adapter holds how memories are read and written, and how what is read steers. A state is what they held when a
sequence was over: a policy of its own, of a few numbers a layer, for the next sequence to begin with. See
`pefx.layers.memory`.
"""

import numpy as np

from pefx.adapters.methods.method import ZERO, Leaf, Method, Source, by_rank, constant, memory_only, uniform, unscaled

GAIN, COLUMNS = 0.05, 8  # what steers starts from so many of the base's columns, normed, times the gain
QUERIES, OUTPUT = ("q_proj", "q_b_proj"), ("o_proj",)


def begins(source: Source) -> dict[str, np.ndarray]:
    """What steers, from the first columns of the base's own queries and outputs."""
    found = {}
    for name, sites in (("steer_query", QUERIES), ("steer_output", OUTPUT)):
        columns = source.columns(sites, min(COLUMNS, source.rank))
        length = np.sqrt((columns.astype(np.float64) ** 2).sum(axis=-2, keepdims=True))
        rows = np.swapaxes(columns / np.maximum(length, 1e-6), -1, -2) * GAIN
        found[name] = np.asarray(rows, np.float32)
    return found


DELTA_MEM = Method(
    {
        "projections": Leaf("projected", "reads", uniform, "reads"),
        "gates": Leaf("memory", "reads", ZERO, "reads"),
        # Where a bank has room for more states than an adapter has, theirs are never written.
        "bias": Leaf("states", "rank", constant(-1.5), "reads", beyond=-1e30),
        "steer_query": Leaf("memory", "writes", ZERO, "writes"),
        "steer_output": Leaf("memory", "reads", ZERO, "reads"),
    },
    by_rank,
    refuses=memory_only,
    from_base=begins,
)
DELTA_STATE = Method(
    {"state": Leaf("memory", "rank", ZERO, "reads")}, unscaled, rates={"state": 0.0}, refuses=memory_only
)
