"""The one file of serving that touches the device: plans become arrays of a few shapes, results numpy."""

from typing import Any

import jax
import numpy as np

from kernels.paged_attention.api import query_tile
from pefx.adapters.bank import Bank, load_adapter
from pefx.adapters.methods import Adapter
from pefx.batch import KVPool, TokenBatch
from pefx.config import AdapterSpec
from pefx.model import Base
from pefx.packing import pack, span_rows, whole_pages
from pefx.serving.scheduler import StepPlan
from pefx.steps import ServePlan, ServeState, serve_step

SMALLEST = 8  # tokens of the smallest step: a single row would take other bits
SMALLEST_PREFILL = 32


def buckets(largest: int, smallest: int) -> list[int]:
    """Ascending sizes a step is padded to, a factor of 4 apart: each is compiled once, when first used."""
    sizes = [max(largest, smallest)]
    while sizes[0] // 4 >= smallest:
        sizes.insert(0, sizes[0] // 4)
    return sizes


def fit(count: int, sizes: list[int]) -> int:
    """The smallest of `sizes` that holds `count`."""
    return next(size for size in sizes if size >= count)


class Runner:
    """Base, bank and pool on the device. `bank` None serves the bare base alone; the pool has `pages` pages."""

    def __init__(self, base: Base, bank: Bank | None, *, pages: int, page_size: int, step_tokens: int, sequences: int):
        config = base.config
        self._base, self._bank = base, bank
        self._state = ServeState(KVPool.zeros(config, pages, page_size))
        self._page_size, self._sequences = page_size, sequences
        self._blocks = whole_pages(config.context, page_size)
        self._tile = query_tile(config.heads, config.kv_heads)
        self._decode_sizes = buckets(min(sequences, step_tokens), SMALLEST)
        self._prefill_sizes = buckets(step_tokens, SMALLEST_PREFILL)

    @property
    def vocab_size(self) -> int:
        return self._base.config.vocab_size

    @property
    def context(self) -> int:
        return self._base.config.context

    def load(self, slot: int, adapter: Adapter, spec: AdapterSpec) -> None:
        """Put `adapter` into `slot`. Raises PefxError if it does not fit; then the bank is as it was."""
        if self._bank is None:
            raise RuntimeError("there is no bank to load an adapter into")
        self._bank = load_adapter(self._bank, slot, adapter, spec)

    def run(self, plan: StepPlan) -> tuple[list[int], list[float]]:
        """One step. Returns the token and the log-probability (nats, a float32) of each of `plan.wanted`, in order."""
        wanted = len(plan.wanted)
        self._state, tokens, logprobs, _routes = serve_step(self._base, self._bank, self._state, self._arrays(plan))
        tokens, logprobs = jax.device_get((tokens, logprobs))
        return tokens[:wanted].tolist(), logprobs[:wanted].tolist()

    def _arrays(self, plan: StepPlan) -> ServePlan:
        decode = all(len(span.tokens) == 1 for span in plan.spans)
        size = fit(plan.tokens, self._decode_sizes if decode else self._prefill_sizes)
        # Prompts to be scored want every row, others at most one a sequence.
        rows = min(size, max(self._sequences, SMALLEST))
        rows = rows if len(plan.wanted) <= rows else size
        batch = pack(
            plan.spans,
            tokens=size,
            sequences=self._sequences,
            blocks=self._blocks,
            page_size=self._page_size,
            tile=1 if decode else self._tile,
        )
        first = span_rows(plan.spans, self._page_size, whole=False)
        how = [row.sampling for row in plan.wanted]

        def column(values: list, fill: int | float, dtype: type) -> Any:
            return np.array(values + [fill] * (rows - len(values)), dtype)

        fields: dict[str, Any] = batch
        return ServePlan(
            batch=TokenBatch(**fields),
            rows=column([first[row.span] + row.offset for row in plan.wanted], -1, np.int32),
            targets=column([row.target for row in plan.wanted], -1, np.int32),
            temperature=column([h.temperature for h in how], 0, np.float32),
            top_p=column([h.top_p for h in how], 1, np.float32),
            top_k=column([min(h.top_k, self.vocab_size) for h in how], 0, np.int32),
            seed=column([h.seed for h in how], 0, np.uint32),
        )
