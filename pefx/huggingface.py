"""Bases as Hugging Face directories: `config.json`, `*.safetensors`, `tokenizer.json`. A family is a row of two tables.

The digest of a base is over the stored tensors and the shape, so it is the same at whatever precision it is loaded.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from pefx.config import ModelConfig, Precision
from pefx.errors import PefxError
from pefx.model import Base, Segment, runs
from pefx.safetensors_files import StoredTensor
from pefx.stored_weights import Source

# ModelConfig field -> config.json field, for what families of the Qwen3 line share.
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "dense_hidden": "intermediate_size",
    "expert_hidden": "moe_intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "normalize_gates": "norm_topk_prob",
    "norm_epsilon": "rms_norm_eps",
    "tied_embedding": "tie_word_embeddings",
    "context": "max_position_embeddings",
}
# config.json field -> its name since transformers 5.
RENAMED = {"num_experts": "num_local_experts"}
ARCHITECTURES = {"qwen3_moe": "Qwen3MoeForCausalLM"}
# What a family's code assumes: any other value is refused by name rather than computed wrongly.
FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}

# Parameter of a segment -> tensor of a layer. `{e}` runs over experts, whose matrices are transposed.
LAYER_TENSORS = {
    "block.input_norm": "input_layernorm.weight",
    "block.post_norm": "post_attention_layernorm.weight",
    "block.attention.q_proj": "self_attn.q_proj.weight",
    "block.attention.k_proj": "self_attn.k_proj.weight",
    "block.attention.v_proj": "self_attn.v_proj.weight",
    "block.attention.o_proj": "self_attn.o_proj.weight",
    "block.attention.q_norm": "self_attn.q_norm.weight",
    "block.attention.k_norm": "self_attn.k_norm.weight",
    "block.feed.gate_proj": "mlp.gate_proj.weight",
    "block.feed.up_proj": "mlp.up_proj.weight",
    "block.feed.down_proj": "mlp.down_proj.weight",
    "block.feed.weight": "mlp.gate.weight",
    "experts.gate_proj": "mlp.experts.{e}.gate_proj.weight",
    "experts.up_proj": "mlp.experts.{e}.up_proj.weight",
    "experts.down_proj": "mlp.experts.{e}.down_proj.weight",
}
TOP_TENSORS = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "unembed": "lm_head.weight"}

# Fields of the shape that are in every digest. Those that came later are in it where they are not their default: a
# base keeps its digest when the shape learns a new field.
HASHED = (*FIELDS, "family", "dense_layers", "rope_theta")


def read_config(directory: str | Path) -> ModelConfig:
    """The shape of the base in a directory. Raises PefxError naming file and field."""
    path = Path(directory) / "config.json"
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in ARCHITECTURES:
        raise PefxError(f"{path}: model_type {family!r} is not known; known are {', '.join(ARCHITECTURES)}")
    for field, value in FIXED.items():
        if raw.get(field, value) != value:
            raise PefxError(f"{path}: {field} is {raw[field]!r}, only {value!r} is supported")
    values = _values(raw, path)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise PefxError(f"{path}: rope_type {rope.get('rope_type', rope.get('type'))!r} is not supported")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1)) not in (1, None):
        raise PefxError(f"{path}: partial_rotary_factor is not supported; all of a head is rotated")
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    stride, only = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    dense = tuple(i for i in range(values["layers"]) if i in only or (i + 1) % stride)
    kind = raw.get("dtype", raw.get("torch_dtype", "float32"))
    precision: Precision = "bfloat16" if kind == "bfloat16" else "float32"
    return ModelConfig(family=family, dense_layers=dense, rope_theta=float(theta), precision=precision, **values)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `config.json`; raises PefxError."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise PefxError(f"{path}: no such file; a base is a Hugging Face directory") from None
    except (OSError, ValueError) as error:
        raise PefxError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise PefxError(f"{path}: must hold one JSON object")
    return raw


def _values(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """ModelConfig's fields by `FIELDS`, each of its type; sizes are positive."""
    values = {}
    for field in dataclasses.fields(ModelConfig):
        if field.name not in FIELDS:
            continue
        name = FIELDS[field.name]
        value = raw.get(name, raw.get(RENAMED.get(name, name)))
        if value is None and name == "head_dim":
            value = values["hidden"] // values["heads"]
        if value is None:
            raise PefxError(f"{path}: field '{name}' is missing")
        kind: Any = field.type
        if type(value) not in ((int, float) if kind is float else (kind,)) or (kind is not bool and value <= 0):
            wanted = "true or false" if kind is bool else f"a positive {kind.__name__}"
            raise PefxError(f"{path}: {name} is {value!r}, must be {wanted}")
        values[field.name] = value
    return values


def config_json(config: ModelConfig, precision: Precision) -> dict[str, Any]:
    """`config.json` of a base, as transformers reads it."""
    return {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        **FIXED,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": precision,
        "torch_dtype": precision,
    }


def save_base(
    base: Base,
    directory: str | Path,
    tokenizer_json: str | Path,
    card: str | None = None,
    precision: Precision | None = None,
) -> str:
    """Write a base in Hugging Face layout, its tokenizer beside it (and `tokenizer_config.json`, if there is one).

    Returns the digest. Files are written beside and renamed, the weights last; the card becomes `README.md`.
    """
    directory, tokenizer_json = Path(directory), Path(tokenizer_json)
    directory.mkdir(parents=True, exist_ok=True)
    precision = precision or base.config.precision
    tensors = {name: np.ascontiguousarray(x.astype(precision)) for name, x in base_tensors(base)}
    for source in (tokenizer_json, tokenizer_json.with_name("tokenizer_config.json")):
        target = directory / source.name
        if source.exists() and source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    (directory / "config.json").write_text(json.dumps(config_json(base.config, precision), indent=2) + "\n")
    if card is not None:
        (directory / "README.md").write_text(card)
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / "model.safetensors")
    return base_digest(base.config, tensors)


def base_digest(config: ModelConfig, tensors: Mapping[str, np.ndarray | StoredTensor]) -> str:
    """`sha256:` over the shape (without precision) and the named tensors as stored; those of files by pieces."""
    digest = hashlib.sha256(_shape(config))
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        for piece in value.chunks() if isinstance(value, StoredTensor) else [np.ascontiguousarray(value)]:
            digest.update(piece.reshape(-1).view(np.uint8).data)
    return "sha256:" + digest.hexdigest()


def shape_digest(config: ModelConfig) -> str:
    """`sha256:` over the shape alone."""
    return "sha256:" + hashlib.sha256(_shape(config)).hexdigest()


def _shape(config: ModelConfig) -> bytes:
    default, shape = dataclasses.asdict(ModelConfig()), dataclasses.asdict(config)
    shape = {k: v for k, v in shape.items() if k in HASHED or (k != "precision" and v != default[k])}
    return json.dumps(shape, sort_keys=True).encode()


def base_tensors(base: Base) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a base under its Hugging Face name and in its layout."""
    values = parameters(base)
    for path, source in sources(base).items():
        stacked = np.asarray(values[path][...])
        for place in np.ndindex(source.names.shape):
            yield str(source.names[place]), stacked[place].T if source.transposed else stacked[place]


def parameters(base: Base) -> dict[str, nnx.Variable]:
    """The parameters of a base (abstract or not) by path, e.g. `segments.0.block.input_norm`."""
    leaves = jax.tree_util.tree_flatten_with_path(base, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): variable for path, variable in leaves}


def sources(base: Base) -> dict[str, Source]:
    """Where the numbers of each parameter of a base (abstract or not) are, by the parameter's path."""
    found = {ours: Source(np.array(theirs, object)) for ours, theirs in TOP_TENSORS.items()}
    if base.config.tied_embedding:
        del found["unembed"]
    for number, (segment, (run, _)) in enumerate(zip(base.segments, runs(base.config), strict=True)):
        for path, name in _segment_names(segment):
            layers = [f"model.layers.{layer}.{name}" for layer in run]
            if "{e}" in name:
                layers = [[layer.format(e=e) for e in range(base.config.experts)] for layer in layers]
            found[f"segments.{number}.{path}"] = Source(np.array(layers, object), transposed="{e}" in name)
    return found


def _segment_names(segment: Segment) -> list[tuple[str, str]]:
    return [(path, name) for path, name in LAYER_TENSORS.items() if _get(segment, path) is not None]


def _get(module: Any, path: str) -> Any:
    for attribute in path.split("."):
        module = getattr(module, attribute, None)
    return module
