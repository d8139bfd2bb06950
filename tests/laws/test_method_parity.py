"""Law 7 for methods and starts: the same numbers give PEFT's logits, within float32 rounding.

The goldens and the program that made them are in `tests/goldens`. What PEFT draws for a base (VeRA's pair, TinyLoRA's
directions and projections) is taken from it; starts from the base are made here.
"""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.recipe import recipe_of
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec
from pefx.families.config_json import read_config
from pefx.model import Base
from tests.laws.test_parity import GOLDENS, TOLERANCE, apart, cases, loaded, run

TO_THE_BIT = False
SITES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
PLAIN = AdapterSpec(rank=4, alpha=6.0, targets=SITES)
SPECS: dict[str, AdapterSpec] = {
    "rslora": AdapterSpec("rslora", 4, 6.0, SITES),
    "dora": AdapterSpec("dora", 4, 6.0, SITES),
    "pissa": AdapterSpec("lora", 4, 6.0, SITES, init="pissa"),
    "olora": AdapterSpec("lora", 4, 6.0, SITES, init="olora"),
    "mica": AdapterSpec("lora", 4, 6.0, SITES, init="mica"),
    "vera": AdapterSpec("vera", 4, targets=SITES),
    "tiny_lora": AdapterSpec("tiny_lora", 2, targets=SITES, units=3),
    "ia3": AdapterSpec("ia3", targets=("k_proj", "v_proj", "up_proj")),
}
NAMES = tuple(SPECS)


def arrays(name: str, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Of a golden file, `leaf` or `shared`, by site and name."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDENS / "methods" / f"{name}.npz") as golden:
        for key in golden.files:
            if key.startswith(f"{kind}/"):
                _, site, leaf = key.split("/")
                found.setdefault(site, {})[leaf] = golden[key]
    return found


@pytest.fixture(scope="module", name="base")
def make_base() -> Base:
    """The base, with what PEFT drew for it in the place of what we draw."""
    base = with_shared(loaded("qwen3"), SPECS.values())
    for name, spec in SPECS.items():
        for site, own in arrays(name, "shared").items():
            recipe = recipe_of(spec)
            assert recipe is not None
            held = base.shared[recipe.name][site]
            for part, value in own.items():
                if held[part].shape[0] == 1:  # one for all layers
                    assert (value == value[:1]).all()
                    value = value[:1]
                assert held[part].shape == value.shape
                held[part] = nnx.Param(value, out_sharding=held[part].get_metadata()["out_sharding"])
    return base


def test_every_golden_file_is_compared():
    assert {path.stem for path in (Path(GOLDENS) / "methods").glob("*.npz")} == set(SPECS)


@pytest.mark.parametrize("decode", [False, True], ids=["whole", "decode"])
def test_all_methods_in_one_batch_equal_peft(base: Base, decode: bool):
    config = read_config(GOLDENS / "qwen3")
    bank = empty_bank(config, bank_spec([PLAIN, *SPECS.values()]), len(SPECS), list(SPECS.values()))
    golden = list(cases(GOLDENS / "qwen3" / "logits.npz", -1))
    for slot, (name, spec) in enumerate(SPECS.items()):
        bank = load_adapter(bank, slot, arrays(name, "leaf"), spec, base)
        golden += cases(GOLDENS / "methods" / f"{name}.npz", slot)
    found = apart(run(base, bank, [(case.tokens, case.slot) for case in golden], decode), golden)
    assert len(found) == 1 + len(SPECS)
    assert max(found.values()) <= TOLERANCE, {NAMES[slot]: far for slot, far in found.items() if slot >= 0}
    bare = apart(run(base, None, [(case.tokens, -1) for case in golden], decode), golden)
    assert min(bare[slot] for slot in range(len(SPECS))) > 0.1, bare
