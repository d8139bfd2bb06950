"""`config.json` of a base, read into a ModelConfig and written back, by its family's row of the tables."""

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

from pefx.config import ModelConfig, Precision, YarnConfig
from pefx.errors import PefxError
from pefx.families.tables import FAMILIES, Family, Written

TYPES = typing.get_type_hints(ModelConfig)
# Fields of a rotary description that are read. Any other changes what is computed, and is refused.
ROPE_FIELDS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim",
}  # fmt: skip


def read_config(directory: str | Path) -> ModelConfig:
    """The shape of the base in a directory. Raises PefxError naming file and field."""
    path = Path(directory) / "config.json"
    raw = read_json(path)
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise PefxError(f"{path}: model_type {name!r} is not known; known are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    named = raw.get("architectures") or [family.architecture]
    if family.architecture not in named:
        raise PefxError(f"{path}: architectures is {named}; a {name} base is {family.architecture!r}")
    for field, value in family.fixed.items():
        if raw.get(field, value) != value:
            raise PefxError(f"{path}: {field} is {raw[field]!r}, only {value!r} is supported")
    for field, value in family.uniform.items():
        if other := [x for x in raw.get(field) or [] if x != value]:
            raise PefxError(f"{path}: {field} has a layer of {other[0]!r}, only {value!r} is supported")
    values = {"family": name, **family.implied}
    for ours, theirs in family.fields.items():
        values[ours] = _value(raw, theirs, TYPES[ours], path)
    if "head_size" in family.fields and not values["head_size"]:
        values["head_size"] = values["hidden"] // values["heads"]
    kind = raw.get("dtype", raw.get("torch_dtype", "float32"))
    precision: Precision = "bfloat16" if kind == "bfloat16" else "float32"
    dense = _read_dense(raw, family, values["layers"], path)
    return ModelConfig(**values, **_read_rope(raw, family, path), dense_layers=dense, precision=precision)


def read_json(path: Path, of: str = "a base is a Hugging Face directory") -> dict[str, Any]:
    """The object in a JSON file; raises PefxError, which says `of` what it is where it is missing."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise PefxError(f"{path}: no such file; {of}") from None
    except (OSError, ValueError) as error:
        raise PefxError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise PefxError(f"{path}: must hold one JSON object")
    return raw


def extra_prefixes(raw: dict[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """How names of tensors begin that are of layers behind the last, by a parsed `config.json`: no part of the base."""
    count = raw.get(FAMILIES[config.family].extra_layers) or 0
    return tuple(f"model.layers.{layer}." for layer in range(config.layers, config.layers + count))


def _value(raw: dict[str, Any], written: Written, kind: type, path: Path) -> Any:
    """One field of the type that ModelConfig says; numbers are positive, or the default."""
    value = raw.get(written.name, raw.get(written.renamed))
    if value is None:
        value = written.default
    if value is None:
        raise PefxError(f"{path}: field '{written.name}' is missing")
    fits = type(value) in ((int, float) if kind is float else (kind,))
    positive = kind is bool or (fits and value > 0) or value == written.default
    if not fits or not positive:
        wanted = "true or false" if kind is bool else f"a positive {kind.__name__}"
        raise PefxError(f"{path}: {written.name} is {value!r}, must be {wanted}")
    return kind(value)


def _read_dense(raw: dict[str, Any], family: Family, layers: int, path: Path) -> tuple[int, ...]:
    """Layers with a dense feed-forward."""
    if family.dense == "all":
        return tuple(range(layers))
    if family.dense == "leading":
        count = raw.get("first_k_dense_replace")
        if type(count) is not int or not 0 <= count <= layers:
            raise PefxError(f"{path}: first_k_dense_replace is {count!r}, must be from 0 to {layers}, the layers")
        return tuple(range(count))
    stride, only = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    return tuple(i for i in range(layers) if i in only or (i + 1) % stride)


def _read_rope(raw: dict[str, Any], family: Family, path: Path) -> dict[str, Any]:
    """The rotary fields of ModelConfig. transformers 4 writes some of them beside its `rope_scaling`."""
    rope = {"rope_theta": raw.get("rope_theta", 10000.0), "partial_rotary_factor": raw.get("partial_rotary_factor")}
    rope |= raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if unknown := sorted(set(rope) - ROPE_FIELDS):
        raise PefxError(f"{path}: field '{unknown[0]}' of its rotary positions is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise PefxError(f"{path}: rope_type {kind!r} is not supported, only 'default' and 'yarn' are")
    fraction = rope["partial_rotary_factor"]
    if family.rotary_fraction is None and fraction not in (1, None):
        raise PefxError(f"{path}: partial_rotary_factor is {fraction}, but all of a head is rotated in this family")
    if fraction is None:
        fraction = family.rotary_fraction or 1.0
    return {
        "rope_theta": float(rope["rope_theta"]),
        "rotary_fraction": float(fraction),
        "yarn": _read_yarn(rope, path) if kind == "yarn" else None,
    }


def _read_yarn(rope: dict[str, Any], path: Path) -> YarnConfig:
    numbers = {}
    for name in ("factor", "original_max_position_embeddings"):
        value = rope.get(name)
        if not isinstance(value, int | float) or value <= 0:
            raise PefxError(f"{path}: {name} of rope_type 'yarn' is {value!r}, must be a positive number")
        numbers[name] = value
    factor, overall = float(numbers["factor"]), float(rope.get("mscale_all_dim") or 0)
    attention = rope.get("attention_factor")
    if attention is None:
        weights = (rope["mscale"], overall) if rope.get("mscale") and overall else (1.0, 0.0)
        over, under = (0.1 * weight * math.log(max(factor, 1.0)) + 1 for weight in weights)
        attention = over / under
    return YarnConfig(
        factor=factor,
        original_context=int(numbers["original_max_position_embeddings"]),
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=float(attention),
        latent_factor=overall,
    )


def config_json(config: ModelConfig, precision: Precision) -> dict[str, Any]:
    """`config.json` of a base, as transformers reads it.

    Raises PefxError, naming the field, where the family has no way to write what the config says.
    """
    family = FAMILIES[config.family]
    written = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs.name: _written(getattr(config, ours), theirs) for ours, theirs in family.fields.items()},
        **family.fixed,
        **_written_dense(config, family),
        **_written_rope(config),
        "dtype": precision,
        "torch_dtype": precision,
    }
    _check_expressed(config, family)
    return written


def _written(value: Any, written: Written) -> Any:
    """A zero that stands for null is written as null."""
    return None if written.default == 0 and value == 0 and type(value) is int else value


def _check_expressed(config: ModelConfig, family: Family) -> None:
    """Raise PefxError unless the fields that the family does not write have the values it implies."""
    written = {*family.fields, "family", "dense_layers", "rope_theta", "yarn", "precision"}
    if family.rotary_fraction is not None:
        written.add("rotary_fraction")
    for field in dataclasses.fields(ModelConfig):
        value, implied = getattr(config, field.name), family.implied.get(field.name, field.default)
        if field.name not in written and value != implied:
            raise PefxError(
                f"a {config.family} base has {field.name} {implied!r}, and config.json cannot say otherwise: this one "
                f"has {value!r}"
            )


def _written_dense(config: ModelConfig, family: Family) -> dict[str, Any]:
    """How the family lists `dense_layers`."""
    if family.dense == "listed":
        return {"decoder_sparse_step": 1, "mlp_only_layers": list(config.dense_layers)}
    count = config.layers if family.dense == "all" else len(config.dense_layers)
    if config.dense_layers != tuple(range(count)):
        wanted = f"all {count}" if family.dense == "all" else "the first ones"
        raise PefxError(f"dense layers of a {config.family} base are {wanted}, not {config.dense_layers}")
    return {} if family.dense == "all" else {"first_k_dense_replace": count}


def _written_rope(config: ModelConfig) -> dict[str, Any]:
    """In the words of transformers 5, and beside them in those of 4."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    old: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.yarn is not None:
        yarn = config.yarn
        stretch = {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_context,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "attention_factor": yarn.attention_factor,
        } | ({"mscale_all_dim": yarn.latent_factor} if yarn.latent_factor else {})
        rope, old = rope | stretch, old | {"rope_scaling": stretch | {"type": "yarn"}}
    if FAMILIES[config.family].rotary_fraction is not None:
        rope["partial_rotary_factor"] = old["partial_rotary_factor"] = config.rotary_fraction
    return old | {"rope_parameters": rope}
