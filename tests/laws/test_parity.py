"""Law 7: base logits equal those of Hugging Face transformers, adapters equal those of PEFT, within float32 rounding.

The goldens and the program that made them are in `tests/goldens`. Every case runs twice: whole sequences at once, and
one token at a time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.adapters.peft import read_peft
from pefx.batch import KVPool, TokenBatch
from pefx.compiler import jit
from pefx.families.config_json import read_config
from pefx.loading import load_base
from pefx.model import Base, forward, unembed
from pefx.packing import Sizes, Span, pack, span_rows, tile_of, whole_pages
from tests.goldens.bases import BASES

GOLDENS = Path(__file__).parent.parent / "goldens"
SHIPPED = Path(__file__).parent.parent.parent / "assets" / "base"
ADAPTERS = {
    "odd": ("attention", "dense", "experts", "unembed", "everything", "per_expert", "ranks"),
    "deepseek": ("latent", "latent_and_experts", "ranks_rslora"),
    "qwen3": ("some_layers", "half"),
}
WITH_EXPERTS = {"experts", "everything", "per_expert", "ranks", "latent_and_experts", "ranks_rslora"}
TO_THE_BIT = False
PAGE = 16
TOLERANCE = 2e-4  # of a logit, absolute


@dataclass(frozen=True)
class Case:
    """A sequence, the slot of its adapter (-1: the base), and the logits it should give, `[n, V]`."""

    tokens: np.ndarray
    slot: int
    logits: np.ndarray


def cases(file: Path, slot: int) -> list[Case]:
    with np.load(file) as golden:
        ends = np.cumsum(golden["lengths"])[:-1]
        pieces = zip(np.split(golden["tokens"], ends), np.split(golden["logits"], ends), strict=True)
        return [Case(tokens, slot, logits) for tokens, logits in pieces]


@jit
def step(base: Base, bank: Bank | None, batch: TokenBatch, kv: KVPool):
    """One step of the model as training, scoring and serving take it: logits of every row, and the pool."""
    hidden, kv, _ = forward(base, bank, batch, kv)
    return unembed(base, bank, hidden, batch.by_slot()), kv


def run(base: Base, bank: Bank | None, sequences: Sequence[tuple[np.ndarray, int]], decode: bool) -> list[np.ndarray]:
    """Logits of every token of (tokens, slot), all in one mixed batch: whole, or one token of each at a time."""
    blocks = max(whole_pages(len(tokens), PAGE) for tokens, _ in sequences)
    owned = [range(i * blocks, (i + 1) * blocks) for i in range(len(sequences))]
    kv = KVPool.zeros(base.config, blocks * len(sequences), PAGE)
    tile = tile_of(PAGE)
    size = 1 if decode else max(len(tokens) for tokens, _ in sequences)
    tiles = 0 if decode else sum(whole_pages(len(tokens), tile) for tokens, _ in sequences) + 1
    sizes = Sizes(max(8, len(sequences)) if decode else 0, tiles, len(sequences), blocks, PAGE, tile)
    out: list[list[np.ndarray]] = [[] for _ in sequences]
    for start in range(0, max(len(tokens) for tokens, _ in sequences), size):
        alive = [i for i, (tokens, _) in enumerate(sequences) if start < len(tokens)]
        parts = [sequences[i][0][start : start + size] for i in alive]
        spans = [Span(part, start, sequences[i][1], owned[i]) for i, part in zip(alive, parts, strict=True)]
        logits, kv = step(base, bank, TokenBatch(**pack(spans, sizes)), kv)
        for i, part, row in zip(alive, parts, span_rows(spans, sizes), strict=True):
            out[i].append(np.asarray(logits)[row : row + len(part)])
    return [np.concatenate(rows) for rows in out]


def loaded(name: str) -> Base:
    return load_base(GOLDENS / name, "float32")[0]


def bank_of(name: str) -> Bank:
    """All the adapters of a base, slot i the i-th, each of its own rank; made by PEFT."""
    config = read_config(GOLDENS / name)
    read = [read_peft(GOLDENS / "adapters" / adapter, config) for adapter in ADAPTERS[name]]
    full = empty_bank(config, bank_spec([spec for _, spec in read]), len(read))
    for slot, (adapter, spec) in enumerate(read):
        full = load_adapter(full, slot, adapter, spec)
    return full


@pytest.mark.parametrize("decode", [False, True], ids=["whole", "decode"])
@pytest.mark.parametrize("name", BASES)
def test_a_random_base_equals_transformers(name: str, decode: bool) -> None:
    golden = cases(GOLDENS / name / "logits.npz", -1)
    computed = run(loaded(name), None, [(case.tokens, -1) for case in golden], decode)
    assert apart(computed, golden)[-1] <= TOLERANCE


def mixed(name: str) -> list[Case]:
    """Sequences of a base and of every adapter of it, in any order."""
    groups = [cases(GOLDENS / name / "logits.npz", -1)]
    groups += [
        cases(GOLDENS / "adapters" / adapter / "logits.npz", slot) for slot, adapter in enumerate(ADAPTERS[name])
    ]
    together = [case for group in groups for case in group]
    return [together[i] for i in np.random.default_rng(0).permutation(len(together))]


def apart(computed: Sequence[np.ndarray], golden: Sequence[Case]) -> dict[int, float]:
    """The largest difference of a logit from its golden one, by slot."""
    out: dict[int, float] = {}
    for ours, case in zip(computed, golden, strict=True):
        out[case.slot] = max(out.get(case.slot, 0.0), float(np.abs(ours - case.logits).max()))
    return out


def test_every_adapter_is_compared() -> None:
    named = {adapter: name for name, adapters in ADAPTERS.items() for adapter in adapters}
    found = {path.parent.name: json.loads(path.read_text()) for path in GOLDENS.glob("adapters/*/adapter_config.json")}
    assert {name: Path(one["base_model_name_or_path"]).name for name, one in found.items()} == named


@pytest.mark.parametrize("decode", [False, True], ids=["whole", "decode"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_and_base_in_one_batch_equal_peft(name: str, decode: bool) -> None:
    golden = mixed(name)
    found = apart(run(loaded(name), bank_of(name), [(case.tokens, case.slot) for case in golden], decode), golden)
    assert len(found) == 1 + len(ADAPTERS[name])
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_matters(name: str) -> None:
    """Else the law would hold for adapters that are ignored, or whose experts are mistaken for one another."""
    base, bank, golden, slots = loaded(name), bank_of(name), mixed(name), range(len(ADAPTERS[name]))
    without = apart(run(base, None, [(case.tokens, -1) for case in golden], False), golden)
    assert min(without[slot] for slot in slots) > 0.1, without
    rolled = {
        site: {k: jnp.roll(v, 1, axis=2) if site.startswith("experts.") else v for k, v in pair.items()}
        for site, pair in bank.factors.items()
    }
    others = run(base, Bank(rolled, bank.scales), [(case.tokens, case.slot) for case in golden], False)
    confused = apart(others, golden)
    with_experts = [slot for slot in slots if ADAPTERS[name][slot] in WITH_EXPERTS]
    assert all(confused[slot] > 0.1 for slot in with_experts), confused


@pytest.mark.parametrize("decode", [False, True], ids=["whole", "decode"])
def test_the_shipped_base_equals_transformers(decode: bool) -> None:
    base, digest = load_base(SHIPPED, "float32")
    again = "run python -m tests.goldens.generate shipped"
    assert (GOLDENS / "shipped.npz").exists(), f"the shipped base has no goldens: {again}"
    with np.load(GOLDENS / "shipped.npz") as golden:
        made_for = str(golden["digest"])
        assert digest == made_for, f"the shipped base is {digest}, its goldens are of {made_for}: {again}"
        tokens = np.split(golden["tokens"], np.cumsum(golden["lengths"])[:-1])
        logits = np.concatenate(run(base, None, [(t, -1) for t in tokens], decode))[golden["rows"]]
        assert np.abs(logits[:, golden["ids"]] - golden["logits"]).max() <= TOLERANCE
        top = logits.max(-1)
        logsumexp = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        assert np.abs(logsumexp - golden["logsumexp"]).max() <= TOLERANCE
