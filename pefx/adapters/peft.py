"""Adapters as Hugging Face PEFT directories: `adapter_config.json` and `adapter_model.safetensors`, read into our form.

Read are LoRA and rsLoRA on attention, dense and expert projections, routed or shared, and on `lm_head`. Routed experts
come in two layouts: one pair of matrices per expert (transformers 4), or fused, as parameters of all experts
(transformers 5). What cannot be expressed is refused by name, never dropped.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pefx.adapters.methods import Adapter
from pefx.adapters.sites import SITES, factor_shapes, has_site, layer_count, parameter
from pefx.config import AdapterSpec, ModelConfig
from pefx.errors import PefxError
from pefx.families.tables import FAMILIES

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Fields of a PEFT configuration that do not change what a saved adapter computes; any other must be unset.
INERT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora",
}  # fmt: skip
UNSET = (None, False, "none", {}, [], 0)
# Initialisations that leave the base as it is. The others subtract the start from it: such factors fit no other base.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
FUSED_MODULE = re.compile(r"model\.layers\.(\d+)\.mlp\.experts(?:\.base_layer)*")
# The first version known to write fused experts with A on the side that an expert reads, whatever the sizes.
FUSED_SINCE = (0, 21)

Place = tuple[str, int, int]  # site, layer of the base, expert (-1: none)
Pairs = dict[Place, tuple[np.ndarray, np.ndarray]]  # a [R, in], b [R, out]


def read_peft(directory: str | Path, config: ModelConfig) -> tuple[Adapter, AdapterSpec]:
    """The adapter of a PEFT directory, float32, for a base of shape `config`, and its spec (form `per_expert`).

    Raises PefxError naming file and field or tensor where something is missing, foreign, or cannot be expressed.
    """
    directory = Path(directory)
    fields = _read_config(directory / CONFIG)
    source = directory / TENSORS
    rank = fields["r"]
    pairs: Pairs = {}
    for module, (a, b) in _read_pairs(source).items():
        for place, pair in _places(module, a, b, config, f"{source}: '{module}'", fields).items():
            if pair[0].shape[0] != rank:
                raise PefxError(
                    f"{source}: '{module}' has rank {pair[0].shape[0]}, r in {CONFIG} is {rank}; "
                    "all targets of an adapter must have one rank"
                )
            pairs[place] = pair
    targets = tuple(site for site in SITES if any(site == place[0] for place in pairs))
    method = "rslora" if fields.get("use_rslora") else "lora"
    spec = AdapterSpec(method=method, rank=rank, alpha=float(fields["lora_alpha"]), targets=targets)
    return _stack(pairs, spec, config, source), spec


def _stack(pairs: Pairs, spec: AdapterSpec, config: ModelConfig, source: Path) -> Adapter:
    """One array per site and factor, from the pairs of its layers and experts; none may be missing."""
    adapter: Adapter = {}
    for site, shapes in factor_shapes(config, spec).items():
        out = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        for index, layer in enumerate(_layers(site, config)):
            experts = range(config.experts) if SITES[site].kind == "experts" else (-1,)
            for expert in experts:
                if (site, layer, expert) not in pairs:
                    where = f"layer {layer}" + (f" expert {expert}" if expert >= 0 else "")
                    raise PefxError(f"{source}: {site} is adapted, but not in {where}; all layers must be, or none")
                at = (index, expert) if expert >= 0 else (index,)
                for name, value in zip(("a", "b"), pairs[site, layer, expert], strict=True):
                    if value.shape != out[name][at].shape:
                        raise PefxError(
                            f"{source}: {site} in layer {layer} has {name} of shape {value.shape}, this base needs "
                            f"{out[name][at].shape}"
                        )
                    out[name][at] = value
        adapter[site] = out
    return adapter


def _layers(site: str, config: ModelConfig) -> list[int]:
    """Layers of the base (0-based) that have `site`, in order."""
    kind = SITES[site].kind
    if kind == "unembed":
        return [0]
    if not has_site(config, site):
        return []
    if kind == "attention":
        return list(range(config.layers))
    layers = [i for i in range(config.layers) if (i in config.dense_layers) == (kind == "dense")]
    assert len(layers) == layer_count(config, kind)
    return layers


def _places(
    module: str, a: np.ndarray, b: np.ndarray, config: ModelConfig, where: str, fields: dict[str, Any]
) -> Pairs:
    """Where a module's factors, A `[R, in]` and B `[out, R]`, go. `where` names the module in errors."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise PefxError(f"{where} has A of shape {a.shape} and B of shape {b.shape}, which do not multiply")
    if fused := FUSED_MODULE.fullmatch(module):
        layer = int(fused[1])
        split = _split_fused(a, b, config, where, fields) if config.experts else {}
        found = {(site, layer, e): (x[e], y[e]) for site, (x, y) in split.items() for e in range(config.experts)}
    elif module == "lm_head":
        found = {("unembed", 0, -1): (a, b.T)}
    else:
        found = dict.fromkeys(_linear_places(module, config), (a, b.T))
    if not found:
        own = [site for site in SITES if has_site(config, site)]
        raise PefxError(f"{where} is no module that can be adapted here; sites are {', '.join(own)}")
    for site, layer, e in found:
        if layer not in _layers(site, config) or e >= config.experts:
            raise PefxError(f"{where} is not in this base, whose layers with {site} are {_layers(site, config)}")
    return found


def _linear_places(module: str, config: ModelConfig) -> list[Place]:
    """The site, layer and expert whose matrix a module of the base is; nothing for other modules."""
    matches = [(site, pattern.fullmatch(module)) for site, pattern in _modules(config.family)]
    return [(site, int(m[1]), int(m[2]) if m.re.groups > 1 else -1) for site, m in matches if m]


@cache
def _modules(family: str) -> list[tuple[str, re.Pattern[str]]]:
    """Names of a family's modules by site: groups are the layer, and the expert where each has its own."""
    tensors = FAMILIES[family].tensors
    found = []
    for site in SITES:
        if tensor := tensors.get(parameter(site) or ""):
            name = re.escape(tensor.removesuffix(".weight")).replace(re.escape("{e}"), r"(\d+)")
            found.append((site, re.compile(rf"model\.layers\.(\d+)\.{name}")))
    return found


def _split_fused(
    a: np.ndarray, b: np.ndarray, config: ModelConfig, where: str, fields: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Factors of all experts by site, a `[E, R, in]` and b `[E, R, out]`, from A `[E R, in]` and B `[out, R E]`.

    A has the expert slowest, B has it fastest. Gate and up are one matrix of height 2F: they share A, each has its half
    of B. Older versions of PEFT took `[out, in]` for `[in, out]`, so that A stands on the output side: sizes tell.
    """
    experts, hidden, wide = config.experts, config.hidden, config.expert_hidden
    if a.shape[0] % experts:
        raise PefxError(f"{where} has {a.shape[0]} rows in A, no multiple of this base's {experts} experts")
    rank = a.shape[0] // experts
    first = a.reshape(experts, rank, a.shape[1])
    second = b.reshape(b.shape[0], rank, experts).transpose(2, 1, 0)
    sizes = (a.shape[1], b.shape[0])
    known = {"gate_up_proj": (hidden, 2 * wide), "down_proj": (wide, hidden)}
    name = next((n for n, s in known.items() if sorted(s) == sorted(sizes)), None)
    if name is None:
        raise PefxError(f"{where} maps {sizes[0]} to {sizes[1]}; this base's fused experts map {known}")
    if sizes[0] == sizes[1]:
        version = tuple(int(x) for x in re.findall(r"\d+", str(fields.get("peft_version", "")))[:2])
        if version < FUSED_SINCE:
            raise PefxError(
                f"{where} is square, and {CONFIG} has no peft_version from {FUSED_SINCE[0]}.{FUSED_SINCE[1]} on: it "
                "cannot be told which factor is on which side; load and save it with a newer PEFT"
            )
    elif sizes != known[name]:
        first, second = second, first
    if name == "down_proj":
        return {"experts.down_proj": (first, second)}
    return {"experts.gate_proj": (first, second[..., :wide]), "experts.up_proj": (first, second[..., wide:])}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise PefxError(f"{path}: no such file; an adapter is a PEFT directory") from None
    except (OSError, ValueError) as error:
        raise PefxError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(fields, dict):
        raise PefxError(f"{path}: must hold one JSON object")
    if fields.get("peft_type") != "LORA":
        raise PefxError(f"{path}: peft_type is {fields.get('peft_type')!r}, only 'LORA' is supported")
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise PefxError(f"{path}: r must be a positive integer, got {rank!r}")
    if type(alpha) not in (int, float):
        raise PefxError(f"{path}: lora_alpha must be a number, got {alpha!r}")
    for field, value in fields.items():
        if field not in INERT and value not in UNSET:
            raise PefxError(f"{path}: {field} is {value!r}, which cannot be expressed here; it must be unset")
    start = fields.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise PefxError(
            f"{path}: init_lora_weights {start!r} changes the base; save the adapter relative to the original base"
        )
    return fields


def _read_pairs(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of every adapted module, float32, by the module's name in the base."""
    if not path.exists():
        raise PefxError(f"{path}: no such file; adapters are read from safetensors only")
    factors: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(path, framework="numpy") as opened:
            for name in sorted(opened.keys()):
                match = KEY.fullmatch(name)
                if match is None:
                    raise PefxError(f"{path}: tensor '{name}' is no LoRA factor of a linear module")
                value = opened.get_tensor(name).astype(np.float32)
                factors.setdefault(match["module"], {})[match["factor"]] = value
    except (SafetensorError, OSError) as error:
        raise PefxError(f"{path}: not a readable safetensors file ({error})") from None
    if not factors:
        raise PefxError(f"{path}: holds no tensors")
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            missing = min({"A", "B"} - set(pair))
            raise PefxError(f"{path}: '{module}' lacks its lora_{missing}")
    return {module: (pair["A"], pair["B"]) for module, pair in factors.items()}
