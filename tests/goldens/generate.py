"""Makes the golden files of the parity law: what transformers and PEFT compute, so that the tests need neither.

    pip install --editable . torch transformers peft
    python -m tests.goldens.generate random [NAME...]  # bases (all, or those named), made anew, weights included
    python -m tests.goldens.generate adapters [NAME...] # adapters/, of odd/ and deepseek/
    python -m tests.goldens.generate shipped [BASE]    # shipped.npz: again after every change of assets/base

Made with torch 2.13.0 (CPU), transformers 5.23.0, peft 0.21.2. All logits are float32.
"""

# These packages are not needed to run pefx or its tests.
# pyright: reportMissingImports=false

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from pefx.loading import load_base
from tests.goldens.bases import BASES, ODD, Base

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

BASE_LENGTHS = (1, 7, 33, 70)
ADAPTER_LENGTHS = (3, 37)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# As parameters: PEFT takes the module names of dense layers for the experts of transformers 4, and moves them there.
DENSE = [f"layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
SHARED = [f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
ADAPTERS = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
    "dense": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": [], "target_parameters": DENSE},
    "experts": {"r": 2, "lora_alpha": 4, "target_modules": [], "target_parameters": EXPERTS},
    "unembed": {"r": 5, "lora_alpha": 5, "target_modules": ["lm_head"]},
    "everything": {
        "r": 6,
        "lora_alpha": 7,
        "use_rslora": True,
        "target_modules": [*ATTENTION, "lm_head"],
        "target_parameters": [*DENSE, *EXPERTS],
    },
    "latent": {"r": 4, "lora_alpha": 6, "target_modules": LATENT},
    "latent_and_experts": {
        "r": 3,
        "lora_alpha": 3,
        "target_modules": [*LATENT, "lm_head"],
        "target_parameters": [*EXPERTS, *SHARED],
    },
}
PER_EXPERT = "per_expert"
BASE_OF = {"latent": "deepseek", "latent_and_experts": "deepseek"}  # the others adapt odd/


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that matter: matrices that keep the scale of what they read, norms that are not one."""
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = 1 + 0.3 * noise if "norm" in name else noise * 1.3 * value.shape[-1] ** -0.5
    for name, value in model.named_buffers():
        if "e_score_correction_bias" in name:  # as far apart as the scores
            value.data = torch.randn(value.shape, generator=generator) * 0.3


def sequences(lengths: tuple[int, ...], vocabulary: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, n) for n in lengths]


def logits_of(model: torch.nn.Module, tokens: list[np.ndarray]) -> np.ndarray:
    """Float32 logits of every token, sequence after sequence, each run alone: `[sum of lengths, V]`."""
    with torch.no_grad():
        rows = [model(torch.as_tensor(t)[None]).logits[0].float().numpy() for t in tokens]
    return np.concatenate(rows)


def write_goldens(path: Path, tokens: list[np.ndarray], arrays: dict[str, Any]) -> None:
    lengths = np.asarray([len(t) for t in tokens], np.int32)
    arrays = {"tokens": np.concatenate(tokens).astype(np.int32), "lengths": lengths, **arrays}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def make_base(name: str, base: Base) -> None:
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    config = AutoConfig.for_model(base.family, **base.fields)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, torch.Generator().manual_seed(base.seed))
    model.to(getattr(torch, base.precision))
    for key, value in model.named_buffers():
        if "e_score_correction_bias" in key:
            value.data = value.float()
    model.save_pretrained(directory, max_shard_size=base.shard)
    (directory / "generation_config.json").unlink(missing_ok=True)
    tokens = sequences(BASE_LENGTHS, config.vocab_size, base.seed)
    write_goldens(directory / "logits.npz", tokens, {"logits": logits_of(load(directory), tokens)})


def load(directory: Path) -> torch.nn.Module:
    """A base in float32; a tensor missing or left over is an error, not a warning."""
    model, info = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    if wrong := {k: v for k, v in info.items() if v}:
        sys.exit(f"{directory}: {wrong}")
    return model.eval()


def make_adapter(name: str, fields: dict, seed: int) -> None:
    """An adapter that PEFT makes, fills with random numbers (B too), saves, and runs."""
    directory, base = HERE / "adapters" / name, BASE_OF.get(name, "odd")
    shutil.rmtree(directory, ignore_errors=True)
    model = get_peft_model(load(HERE / base), LoraConfig(task_type="CAUSAL_LM", **fields))
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.named_parameters():
        if "lora_" in key:
            value.data = torch.randn(value.shape, generator=generator) * (0.2 if "lora_B" in key else 0.15)
    model.save_pretrained(directory, save_embedding_layers=False)
    finish_adapter(directory, model, base, seed)


def make_per_expert_adapter(seed: int) -> None:
    """The layout of transformers 4: one pair of matrices per expert. PEFT converts it as it loads."""
    directory, rank = HERE / "adapters" / PER_EXPERT, 3
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    hidden, wide = ODD["hidden_size"], ODD["moe_intermediate_size"]
    tensors = {}
    for layer in (0, 2):
        for expert in range(ODD["num_experts"]):
            for site in ("gate_proj", "up_proj", "down_proj"):
                reads, writes = (wide, hidden) if site == "down_proj" else (hidden, wide)
                key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{site}"
                tensors[f"{key}.lora_A.weight"] = rng.normal(0, 0.15, (rank, reads)).astype(np.float32)
                tensors[f"{key}.lora_B.weight"] = rng.normal(0, 0.2, (writes, rank)).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = ["gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 6, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    finish_adapter(directory, PeftModel.from_pretrained(load(HERE / "odd"), directory), "odd", seed)


def finish_adapter(directory: Path, model: torch.nn.Module, base: str, seed: int) -> None:
    tokens = sequences(ADAPTER_LENGTHS, BASES[base].fields["vocab_size"], seed)
    write_goldens(directory / "logits.npz", tokens, {"logits": logits_of(model.eval(), tokens)})
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"tests/goldens/{base}"
    for field in ("target_modules", "target_parameters"):  # PEFT writes them in any order
        if field in config:
            config[field] = sorted(config[field])
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_shipped(base: Path) -> None:
    """Logits of the shipped base at 64 positions of text and of noise: 512 ids of the vocabulary, and logsumexp."""
    text = Tokenizer.from_file(str(base / "tokenizer.json")).encode(Path(__file__).read_text()).ids
    model = load(base)
    vocabulary = model.config.vocab_size
    tokens = [np.asarray(text[:260]), np.asarray(text[260:297]), *sequences((1, 120), vocabulary, 5)]
    logits = logits_of(model, tokens)
    rng = np.random.default_rng(6)
    rows = np.sort(rng.choice(len(logits), 64, replace=False)).astype(np.int32)
    ids = np.sort(rng.choice(vocabulary, min(512, vocabulary), replace=False)).astype(np.int32)
    chosen = {
        "digest": np.asarray(load_base(base)[1]),
        "rows": rows,
        "ids": ids,
        "logits": logits[rows][:, ids],
        "logsumexp": torch.logsumexp(torch.as_tensor(logits[rows]), -1).numpy(),
    }
    write_goldens(HERE / "shipped.npz", tokens, chosen)


def main() -> None:
    torch.set_num_threads(1)
    what, names = sys.argv[1:2], sys.argv[2:]
    if what == ["random"] and set(names) <= set(BASES):
        for name in names or BASES:
            make_base(name, BASES[name])
    elif what == ["adapters"] and set(names) <= {*ADAPTERS, PER_EXPERT}:
        for seed, (name, fields) in enumerate(ADAPTERS.items(), 10):
            if name in names or not names:
                make_adapter(name, fields, seed)
        if PER_EXPERT in names or not names:
            make_per_expert_adapter(20)
    elif what == ["shipped"] and len(names) <= 1:
        make_shipped(Path(names[0]) if names else ROOT / "assets" / "base")
    else:
        sys.exit("usage: python -m tests.goldens.generate random [NAME...] | adapters [NAME...] | shipped [BASE]")


if __name__ == "__main__":
    main()
