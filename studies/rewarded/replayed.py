"""How far another form of a base is from it over text of the tasks, with routers free and with its routes replayed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pefx.batch import TokenBatch
from pefx.config import Precision, Weights
from pefx.data.tokenizer import Tokenizer
from pefx.loading import load_base
from pefx.model import Base
from pefx.packing import Sizes, Span, pack, tile_of, whole_pages
from pefx.rl.tasks.text import lines
from pefx.steps import TrainBatch, score_with_routes
from pefx.sweeping.intervals import Interval, interval

PAGE, LENGTH, COUNT = 32, 96, 64  # tokens of a page and of a sequence, sequences
FORMS: dict[str, tuple[Precision, Weights]] = {
    "bfloat16": ("bfloat16", "plain"),
    "int8": ("float32", "int8"),
    "fp8": ("float32", "fp8"),
}


def divergences(directory: Path, seeds: int) -> dict[str, dict[str, Interval]]:
    """By form of the base: k3 of the base in float32 from it, with live routers and with the form's routes replayed; by
    how much that is less; and the share of tokens for which some layer chooses other experts.
    """
    base, _ = load_base(str(directory), "float32", None, "plain")
    tokenizer = Tokenizer.load(str(directory))
    batches = [batch_of(tokenizer.encode("".join(lines(seed, 400, 0.5))), base) for seed in range(seeds)]
    found = {}
    for name, (precision, weights) in FORMS.items():
        other, _ = load_base(str(directory), precision, None, weights)
        each = [_one(base, other, batch) for batch in batches]
        found[name] = {measure: interval([one[measure] for one in each]) for measure in each[0]}
    return found


def batch_of(tokens: Sequence[int], base: Base) -> TrainBatch:
    """The first `COUNT` windows of some tokens, each to be predicted from those before."""
    tile, pages = tile_of(PAGE), whole_pages(LENGTH, PAGE)
    windows = np.asarray(tokens[: COUNT * LENGTH], np.int32).reshape(COUNT, LENGTH)
    spans = [Span(own, 0, -1, range(at * pages, (at + 1) * pages)) for at, own in enumerate(windows)]
    sizes = Sizes(0, windows.size // tile, COUNT, base.config.context // PAGE, PAGE, tile)
    targets = np.concatenate([windows[:, 1:], np.full((COUNT, 1), -1, np.int32)], axis=1).ravel()
    return TrainBatch(TokenBatch(**pack(spans, sizes)), targets, (targets >= 0).astype(np.float32))


def _one(base: Base, other: Base, batch: TrainBatch) -> dict[str, float]:
    told, routes = map(np.asarray, score_with_routes(other, None, batch))
    free, own = map(np.asarray, score_with_routes(base, None, batch))
    replayed = np.asarray(score_with_routes(base, None, replace(batch, routes=routes))[0])
    counted = np.asarray(batch.targets) >= 0

    def k3(ours: np.ndarray) -> float:
        away = (ours.astype(np.float64) - told)[counted]
        return float(np.mean(np.exp(away) - 1 - away))

    flipped = (np.sort(own, axis=-1) != np.sort(routes, axis=-1)).any(axis=(1, 2))[counted]
    live, kept = k3(free), k3(replayed)
    return {"k3, routers free": live, "k3, R3": kept, "cut": 1 - kept / live, "tokens routed otherwise": flipped.mean()}
