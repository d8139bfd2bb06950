"""An adapter on disk, packed as the catalog does and in the layouts that are published: how long it takes to load.

The shape is that of a 30B-A3B base: 48 layers of 128 experts, rank 1, gate, up and down of every expert: 36,864 tensors
where every expert's matrices stand alone. What is loaded is the same in all: twelve arrays' worth of numbers in host
memory, in the form a bank takes.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pefx.adapters.peft import read_peft
from pefx.adapters.peft_writing import write_peft
from pefx.config import AdapterSpec, ModelConfig
from pefx.store.catalog import Catalog

MODEL = ModelConfig(
    vocab_size=64, hidden=2048, layers=48, heads=32, kv_heads=4, head_size=128, dense_hidden=6144, expert_hidden=768,
    experts=128, experts_per_token=8, dense_layers=(), tied_embedding=False,
)  # fmt: skip
SITES = ("experts.gate_proj", "experts.up_proj", "experts.down_proj")
SPEC = AdapterSpec(rank=1, alpha=2.0, targets=SITES)
BASE = "sha256:" + "0" * 64


def adapter() -> dict[str, dict[str, np.ndarray]]:
    """104 MB in bfloat16."""
    rng, found = np.random.default_rng(0), {}
    for site in SITES:
        wide = (MODEL.expert_hidden, MODEL.hidden) if site == SITES[2] else (MODEL.hidden, MODEL.expert_hidden)
        lead = (MODEL.layers, MODEL.experts, 1)
        found[site] = {
            factor: rng.normal(size=(*lead, width)).astype(ml_dtypes.bfloat16)
            for factor, width in zip("ab", wide, strict=True)
        }
    return found


def layouts(place: Path, repeats: int) -> dict[str, float]:
    """Median seconds to load, by layout; taking turns, from the page cache."""
    one = adapter()
    catalog = Catalog.open(place / "catalog", create=True)
    revision = catalog.commit(
        "ann", adapter=one, spec=SPEC, base=BASE, step=0, seeds={}, config={}, data_fingerprint="", metrics={}
    )
    write_peft(place / "peft", one, SPEC, MODEL, "per_expert")
    _save_apart(place / "files", one)
    ways: dict[str, Callable[[], object]] = {
        "packed": lambda: catalog.load(catalog.serving("ann")),
        "one file, a tensor per expert": lambda: _load_together(place / "peft"),
        "one file, a tensor per expert, checked": lambda: read_peft(place / "peft", MODEL),
        "a file per expert tensor": lambda: _load_apart(place / "files"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(repeats + 1):
        for name, load in ways.items():
            start = time.perf_counter()
            load()
            if round:
                times[name].append(time.perf_counter() - start)
    shutil.rmtree(place / "files")
    loaded = catalog.load(revision)
    assert all((loaded[s][f] == one[s][f]).all() for s in one for f in one[s])
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _save_apart(folder: Path, one: dict[str, dict[str, np.ndarray]]) -> None:
    folder.mkdir()
    for site, pair in one.items():
        for factor, x in pair.items():
            for layer in range(MODEL.layers):
                for expert in range(MODEL.experts):
                    name = f"{layer}.{expert}.{site}.{factor}"
                    save_file({name: np.ascontiguousarray(x[layer, expert])}, folder / f"{name}.safetensors")


def _load_apart(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor from its file into its place."""
    found: dict[str, np.ndarray] = {}
    for site in SITES:
        for factor in "ab":
            parts = []
            for layer in range(MODEL.layers):
                for expert in range(MODEL.experts):
                    name = f"{layer}.{expert}.{site}.{factor}"
                    parts.append(load_file(folder / f"{name}.safetensors")[name])
            found[f"{site}.{factor}"] = np.stack(parts)
    return found


def _load_together(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of one file into its place, by the format's own library."""
    found: dict[str, np.ndarray] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as opened:
        names = sorted(opened.keys())
        for site in SITES:
            for factor, letter in (("a", "A"), ("b", "B")):
                ending = f".{site.split('.')[1]}.lora_{letter}.weight"
                found[f"{site}.{factor}"] = np.stack([opened.get_tensor(n) for n in names if n.endswith(ending)])
    return found
