"""The grouped matmul of 64 experts beside `lax.ragged_dot` and one dense matmul of as many operations, on this device.

`pefx bench expert_matmul`, or from the root `python -m benchmarks.expert_matmul --rounds 30`. Routes are drawn evenly;
the grouping, made once for a layer's three projections, is not timed.
"""

import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from kernels.grouped_matmul.api import grouped_matmul
from kernels.tiles import take_rows, tile_map
from pefx.compiler import jit
from pefx.mesh import use_cores

EXPERTS, TILE = 64, 32


@dataclass(frozen=True)
class Size:
    """`rows` copies of tokens, each to one expert's `[hidden, width]`."""

    rows: int
    hidden: int
    width: int


SIZES = (Size(2048, 256, 128), Size(2048, 1024, 512), Size(8192, 512, 256))


def forms(size: Size):
    """The three products, as functions of nothing, and how far the first two are apart."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(size.rows, size.hidden)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(EXPERTS, size.hidden, size.width)), jnp.float32)
    expert = jnp.asarray(rng.integers(0, EXPERTS, size.rows), jnp.int32)
    tiles = jax.jit(lambda e: tile_map(e, groups=EXPERTS, tile=TILE))(expert)
    order = jnp.argsort(expert, stable=True)
    counts = jnp.bincount(expert, length=EXPERTS).astype(jnp.int32)
    buffer, sorted_x, zero = take_rows(x, tiles.source), x[order], jnp.asarray(0, jnp.int32)
    ours, ragged, dense = jit(grouped_matmul), jit(jax.lax.ragged_dot), jit(jnp.matmul)
    apart = jnp.max(jnp.abs(take_rows(ours(buffer, w, tiles, zero), tiles.place)[order] - ragged(sorted_x, w, counts)))
    if apart > 1e-2:
        raise RuntimeError(f"the products differ by {apart}")
    return {
        "grouped_matmul": lambda: ours(buffer, w, tiles, zero),
        "lax.ragged_dot": lambda: ragged(sorted_x, w, counts),
        "one dense matmul": lambda: dense(x, w[0]),
    }


def main(rounds: int = 15) -> None:
    """Prints medians of alternating rounds, and the ratios of the first form's rate over the others'."""
    use_cores()
    table = Table("rows, hidden, width", title=f"{EXPERTS} experts, float32, medians of {rounds} rounds")
    for column in ("form", "ms", "Gflop/s", "grouped_matmul's rate over it"):
        table.add_column(column, justify="right")
    for size in SIZES:
        products = forms(size)
        times: dict[str, list[float]] = {name: [] for name in products}
        for _ in range(rounds):
            for name, product in products.items():
                began = time.perf_counter()
                jax.block_until_ready(product())
                times[name].append(time.perf_counter() - began)
        ours = times["grouped_matmul"]
        for name, found in times.items():
            median = statistics.median(found)
            ratio = statistics.median(b / a for a, b in zip(ours, found, strict=True))
            rate = 2 * size.rows * size.hidden * size.width / median / 1e9
            shape = f"{size.rows}, {size.hidden}, {size.width}"
            table.add_row(shape, name, f"{1e3 * median:.2f}", f"{rate:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
