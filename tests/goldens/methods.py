"""Makes the golden files of methods and starts: what PEFT computes with them, and the numbers that it computes with.

    pip install --editable . torch transformers peft
    python -m tests.goldens.methods                    # methods/*.npz, over qwen3/

Arrays are named as ours are: `leaf/<site>/<leaf>` of an adapter, `shared/<site>/<name>` of what PEFT draws for a base.
"""

# These packages are not needed to run pefx or its tests.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import IA3Config, LoraConfig, TinyLoraConfig, VeraConfig, get_peft_model

from tests.goldens.bases import BASES
from tests.goldens.generate import ADAPTER_LENGTHS, HERE, load, logits_of, sequences, write_goldens

BASE, RANK, ALPHA, UNITS = "qwen3", 4, 6, 3
SITES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
LAYERS = BASES[BASE].fields["num_hidden_layers"]
Arrays = dict[str, list[np.ndarray]]


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(SITES), **fields)


CONFIGS: dict[str, Callable[[], Any]] = {
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "mica": lambda: lora(init_lora_weights="mica"),
    "vera": lambda: VeraConfig(r=RANK, target_modules=list(SITES), projection_prng_key=3),
    "tiny_lora": lambda: TinyLoraConfig(r=2, u=UNITS, target_modules=list(SITES), projection_seed=5),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def module_of(model: torch.nn.Module, layer: int, site: str) -> Any:
    part = "self_attn" if site[0] in "qkvo" else "mlp"
    return model.get_submodule(f"base_model.model.model.layers.{layer}.{part}.{site}")


def put(found: Arrays, name: str, value: torch.Tensor) -> None:
    found.setdefault(name, []).append(value.detach().float().numpy().copy())


def leaves_of(module: Any, name: str, site: str, plain: torch.Tensor, found: Arrays) -> None:
    """One layer's numbers. `plain` is the matrix of the base as it was."""
    if name == "ia3":  # what a feed-forward layer reads is what the projection before it writes
        site = "up_proj" if module.is_feedforward else site
        put(found, f"leaf/{site}/gains", module.ia3_l["default"].reshape(1, -1))
    elif name == "vera":
        put(found, f"leaf/{site}/by_rank", module.vera_lambda_d["default"][None])
        put(found, f"leaf/{site}/by_output", module.vera_lambda_b["default"][None])
        put(found, f"shared/{site}/a", module.vera_A["default"][:, : plain.shape[1]])
        put(found, f"shared/{site}/b", module.vera_B["default"][: plain.shape[0]].T)
    elif name == "tiny_lora":
        put(found, f"leaf/{site}/vector", module.tinylora_v["default"][module._tinylora_v_key["default"]][None])
        put(found, f"shared/{site}/a", module.tinylora_A["default"])
        put(found, f"shared/{site}/b", module.tinylora_B["default"].T)
        put(found, f"shared/{site}/projections", module.tinylora_P["default"].reshape(UNITS, -1))
    else:
        put(found, f"leaf/{site}/a", module.lora_A["default"].weight)
        put(found, f"leaf/{site}/b", module.lora_B["default"].weight.T)
        if name == "dora":  # ours is relative to the rows of the base
            magnitude = module.lora_magnitude_vector["default"].weight / torch.linalg.norm(plain, dim=1)
            put(found, f"leaf/{site}/magnitude", magnitude[None])


def make(name: str, seed: int) -> None:
    """A model that PEFT adapts, its trained numbers moved at random, what is read of it, and its logits."""
    base = load(HERE / BASE)
    plain = {key: value.detach().clone() for key, value in base.state_dict().items()}
    config = CONFIGS[name]()
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape, generator=generator) * 0.2
    found: Arrays = {}
    sites = SITES if name != "ia3" else ("k_proj", "v_proj", "down_proj")
    for layer in range(LAYERS):
        for site in sites:
            part = "self_attn" if site[0] in "qkvo" else "mlp"
            matrix = plain[f"model.layers.{layer}.{part}.{site}.weight"]
            leaves_of(module_of(model, layer, site), name, site, matrix, found)
    tokens = sequences(ADAPTER_LENGTHS, BASES[BASE].fields["vocab_size"], seed)
    arrays = {key: np.stack(values) for key, values in found.items()}
    write_goldens(HERE / "methods" / f"{name}.npz", tokens, {"logits": logits_of(model.eval(), tokens), **arrays})


def main() -> None:
    torch.set_num_threads(1)
    (HERE / "methods").mkdir(exist_ok=True)
    for seed, name in enumerate(CONFIGS, 40):
        make(name, seed)
        print(name)


if __name__ == "__main__":
    main()
