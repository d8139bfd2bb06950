"""Makes the golden files of the parity law: what transformers and PEFT compute, so that the tests need neither.

    pip install --editable . torch transformers peft
    python -m tests.goldens.generate random [NAME...]  # bases (all, or those named), made anew, weights included
    python -m tests.goldens.generate adapters [NAME...] # adapters/, of odd/, deepseek/ and qwen3/; checks exports, too
    python -m tests.goldens.generate exports           # PEFT and transformers load what pefx exports and merges
    python -m tests.goldens.generate shipped [BASE]    # shipped.npz: again after every change of assets/base

Made with torch 2.13.0 (CPU), transformers 5.23.0, peft 0.21.2. All logits are float32.
"""

# These packages are not needed to run pefx or its tests.
# pyright: reportMissingImports=false

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from pefx.adapters.checkpoint_merge import merge_checkpoint
from pefx.adapters.methods.table import Adapter, leaf_shapes
from pefx.adapters.peft import read_peft
from pefx.adapters.peft_writing import Layout, write_peft
from pefx.config import AdapterSpec
from pefx.families.config_json import read_config
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
# Ranks and scales of their own, of modules and of parameters, by the ends of names and by expressions.
ADAPTERS["ranks"] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": [*ATTENTION, "lm_head"],
    "target_parameters": [*DENSE, *EXPERTS],
    "rank_pattern": {"q_proj": 2, r"layers\.[02]\..*v_proj": 5, "mlp.experts.gate_up_proj": 3, DENSE[0]: 6},
    "alpha_pattern": {"k_proj": 3, "mlp.experts.down_proj": 5.5, "lm_head": 16, r"v_proj": 10},
}
ADAPTERS["ranks_rslora"] = {
    "r": 3,
    "lora_alpha": 4,
    "use_rslora": True,
    "target_modules": LATENT,
    "target_parameters": [*EXPERTS, *SHARED],
    "rank_pattern": {"q_a_proj": 5, "kv_b_proj": 1, "mlp.experts.down_proj": 2, SHARED[1]: 4},
    "alpha_pattern": {"layers.1.self_attn.o_proj": 7, "mlp.experts.gate_up_proj": 5, "kv_b_proj": 2},
}
ADAPTERS["some_layers"] = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": [*ATTENTION, "gate_proj", "down_proj", "model.layers.1.mlp.up_proj", "lm_head"],
    "layers_to_transform": [0, 2],
    "layers_pattern": "layers",
}
ADAPTERS["half"] = {"r": 3, "lora_alpha": 6, "target_modules": [*ATTENTION, "up_proj"]}  # saved in bfloat16
SEEDS = (*range(10, 17), *range(21, 25))  # 20 is that of PER_EXPERT
HALF = {"half"}
PER_EXPERT = "per_expert"
BASE_OF = {
    "latent": "deepseek", "latent_and_experts": "deepseek", "ranks_rslora": "deepseek", "some_layers": "qwen3",
    "half": "qwen3",
}  # fmt: skip
# ... the others adapt odd/.
TOLERANCE = 5e-4  # of a logit, of what is exported
# What PEFT writes none of: base, spec and layout.
ROUTED = ("experts.gate_proj", "experts.up_proj", "experts.down_proj")
RANDOM: dict[str, tuple[str, AdapterSpec, Layout]] = {
    "shared": ("odd", AdapterSpec("rslora", 3, 2.0, ROUTED, "shared_hidden"), "fused"),
    "shared, per expert": ("deepseek", AdapterSpec("lora", 3, 4.0, ROUTED, "shared_hidden"), "per_expert"),
    "gate alone": ("odd", AdapterSpec("lora", 2, 4.0, ROUTED[:1]), "fused"),
    "up and down": ("deepseek", AdapterSpec("lora", 2, 4.0, ROUTED[1:]), "fused"),
    "gate and up": ("glm", AdapterSpec("rslora", 2, 2.0, ROUTED[:2]), "fused"),
    "all of glm": ("glm", AdapterSpec("lora", 3, 3.0), "fused"),
    "all of deepseek": ("deepseek", AdapterSpec("lora", 3, 3.0), "per_expert"),
    "all of a sparse one": ("glm_sparse", AdapterSpec("rslora", 3, 1.0), "fused"),
}


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
    if name in HALF:
        file = directory / "adapter_model.safetensors"
        tensors = {key: value.to(torch.bfloat16) for key, value in load_file(file).items()}
        save_torch_file(tensors, file, metadata={"format": "pt"})
        model = PeftModel.from_pretrained(load(HERE / base), directory)
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
        if config.get(field):
            config[field] = sorted(config[field])
    path.write_text(json.dumps(config, indent=2) + "\n")


def load_export(directory: Path, base: Path) -> torch.nn.Module:
    """An adapter over a base, as PEFT loads it; what it misses, finds too much, or warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        # PEFT 0.21 looks among modules alone for what a pattern matches, and warns of those of parameters.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", ".*tie_word_embeddings")
        return PeftModel.from_pretrained(load(base), directory).eval()


def apart(model: torch.nn.Module, golden: Path) -> float:
    """How far a model's logits are from golden ones."""
    with np.load(golden) as found:
        tokens = np.split(found["tokens"], np.cumsum(found["lengths"])[:-1])
        return float(np.abs(logits_of(model, tokens) - found["logits"]).max())


def export_apart(name: str, layout: Layout) -> float:
    """How far a golden adapter's logits are from its own after it was read, written in a layout, and loaded by PEFT."""
    base, source = HERE / BASE_OF.get(name, "odd"), HERE / "adapters" / name
    config = read_config(base)
    with tempfile.TemporaryDirectory() as folder:
        adapter, spec = read_peft(source, config)
        write_peft(Path(folder) / "adapter", adapter, spec, config, layout)
        return apart(load_export(Path(folder) / "adapter", base), source / "logits.npz")


def merge_apart(name: str) -> float:
    """How far the logits of a checkpoint with a golden adapter in it are from the adapter's, as transformers loads it.

    Merged into a base in float32, since a stored type rounds.
    """
    base, source = HERE / BASE_OF.get(name, "odd"), HERE / "adapters" / name
    with tempfile.TemporaryDirectory() as folder:
        wide, merged = Path(folder) / "wide", Path(folder) / "merged"
        load(base).save_pretrained(wide)
        adapter, spec = read_peft(source, read_config(base))
        merge_checkpoint(wide, adapter, spec, merged)
        return apart(load(merged), source / "logits.npz")


def random_apart(base: str, spec: AdapterSpec, layout: Layout) -> float:
    """How far the logits of a random adapter, as PEFT loads what is written, are from those of the merged base."""
    config, rng = read_config(HERE / base), np.random.default_rng(30)
    shapes = leaf_shapes(config, spec)
    adapter = {s: {k: rng.normal(0, 0.2, x).astype(np.float32) for k, x in pair.items()} for s, pair in shapes.items()}
    tokens = sequences(ADAPTER_LENGTHS, config.vocab_size, 31)
    with tempfile.TemporaryDirectory() as folder:
        wide, merged, written = (Path(folder) / name for name in ("wide", "merged", "written"))
        load(HERE / base).save_pretrained(wide)
        merge_checkpoint(wide, adapter, spec, merged)
        write_peft(written, adapter, spec, config, layout)
        bare, want, got = (logits_of(m, tokens) for m in (load(wide), load(merged), load_export(written, wide)))
    if np.abs(want - bare).max() < 0.1:
        sys.exit(f"{base}, {spec}: the adapter does nothing")
    return float(np.abs(got - want).max())


def loadable(name: str) -> list[Layout]:
    """The layouts in which PEFT 0.21 loads an adapter as it is.

    Of `per_expert` it makes fused factors of twice the rank and alpha: with rsLoRA, gate and up would grow by a root of
    two; and it refuses gate without up.
    """
    spec = spec_of(name)[1]
    experts = {site for site in spec.targets if site.startswith("experts.")}
    exact = not experts or (spec.method == "lora" and len(experts) == 3)
    return ["fused", "per_expert"] if exact else ["fused"]


def spec_of(name: str) -> tuple[Adapter, AdapterSpec]:
    return read_peft(HERE / "adapters" / name, read_config(HERE / BASE_OF.get(name, "odd")))


def check_exports() -> None:
    """Print how far exported and merged adapters are from the golden ones; exit where it is too far."""
    found = {}
    for name in (*ADAPTERS, PER_EXPERT):
        found |= {f"{name}, {layout}": export_apart(name, layout) for layout in loadable(name)}
        found[f"{name}, merged"] = merge_apart(name)
    for case, (base, spec, layout) in RANDOM.items():
        found[f"random, {case}"] = random_apart(base, spec, layout)
    for name, difference in found.items():
        print(f"{name}: {difference:.1e}")
    if max(found.values()) > TOLERANCE:
        sys.exit(f"what is exported is not what was there: {max(found, key=found.__getitem__)}")


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
        for seed, (name, fields) in zip(SEEDS, ADAPTERS.items()):
            if name in names or not names:
                make_adapter(name, fields, seed)
        if PER_EXPERT in names or not names:
            make_per_expert_adapter(20)
        check_exports()
    elif what == ["exports"] and not names:
        check_exports()
    elif what == ["shipped"] and len(names) <= 1:
        make_shipped(Path(names[0]) if names else ROOT / "assets" / "base")
    else:
        sys.exit(
            "usage: python -m tests.goldens.generate random [NAME...] | adapters [NAME...] | exports | shipped [BASE]"
        )


if __name__ == "__main__":
    main()
