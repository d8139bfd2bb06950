"""Adapters written as Hugging Face PEFT directories, in the layout that one's reader of routed experts wants.

| layout | routed experts | read by |
| --- | --- | --- |
| `fused` | matrices of all experts, as parameters | PEFT 0.21 with transformers 5 |
| `per_expert` | a pair of matrices per expert | PEFT with transformers 4, vLLM |
| `shared_outer` | stacks of matrices, one where experts share it | SGLang |

All else is the same in the three. In `fused`, gate and up are one matrix in PEFT and share A: ours are put beside each
other, at twice the rank and with a `rank_pattern` and `alpha_pattern` that keep the scale; `read_peft` takes them
apart. An adapter of the form `shared_hidden` is written out for each expert in `fused` and `per_expert`: the same
product. On transformers 5, PEFT 0.21 turns `per_expert` into `fused` as it loads; for rsLoRA it gets the scale of gate
and up wrong by a root of two as it does, and it refuses gate without up, so give it `fused`.

Equal adapters give equal files, byte for byte.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from pefx.adapters.methods.recipe import check_exchangeable
from pefx.adapters.methods.table import Adapter, check_shapes
from pefx.adapters.peft import SITES_FIELD
from pefx.adapters.peft_config import CONFIG, TENSORS
from pefx.adapters.peft_experts import DOWN, GATE, UP, Pair, join_fused
from pefx.adapters.peft_names import Place, key, module_name
from pefx.adapters.sites import MATRICES, SITES, layers_with
from pefx.complete_directory import complete_directory, sync
from pefx.config import AdapterSpec, ModelConfig, Precision
from pefx.errors import PefxError
from pefx.safetensors_files import file_bytes
from pefx.stored_weights import FLOATS

Layout = Literal["fused", "per_expert", "shared_outer"]
GATE_UP_PARAMETER, DOWN_PARAMETER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
# The PEFT whose layout `fused` is: readers tell the sides of square factors by it.
PEFT_VERSION = "0.21.0"


def write_peft(
    directory: str | Path,
    adapter: Adapter,
    spec: AdapterSpec,
    config: ModelConfig,
    layout: Layout = "fused",
    base_name: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Write an adapter for a base of shape `config` as a PEFT directory, its numbers as they are or in `precision`.

    `base_name` is what the configuration calls the base, as PEFT loads it by name. What is there already stays if it is
    the same, byte for byte. Raises PefxError: of kind "conflict" if it is not, "bad_adapter" where a factor does not
    fit the spec and the base, "not_finite" for values that are no numbers (or not in `precision`).
    """
    directory = Path(directory)
    check_exchangeable(spec)
    check_shapes(config, spec, {site: {k: np.shape(x) for k, x in pair.items()} for site, pair in adapter.items()})
    stored = {site: {k: _stored(f"{site}.{k}", x, precision) for k, x in adapter[site].items()} for site in adapter}
    tensors = {name: np.ascontiguousarray(x) for name, x in _tensors(stored, config, layout)}
    metadata = {"format": "pt"}
    if layout == "fused" and len({GATE, UP} & set(stored)) == 1:
        metadata[SITES_FIELD] = ",".join(site for site in MATRICES if site in stored)
    fields = _fields(set(stored), spec, config, layout)
    if base_name is not None:
        fields["base_model_name_or_path"] = base_name
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    _put(directory, {TENSORS: file_bytes(tensors, metadata), CONFIG: text.encode()})


def _stored(name: str, value: Any, precision: Precision | None) -> np.ndarray:
    """A factor as it is stored; raises PefxError for a type or for values that no adapter has."""
    value = np.asarray(value)
    if value.dtype not in FLOATS:
        raise PefxError(f"{name} is {value.dtype}; an adapter is float32, float16 or bfloat16", "bad_adapter")
    dtype = {None: value.dtype, "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}[precision]
    with np.errstate(invalid="ignore", over="ignore"):
        found = value.astype(dtype)
        if bad := found.size - int(np.isfinite(found).sum()):
            raise PefxError(f"{name} has {bad} NaN or infinite values of {found.size} in {dtype}", "not_finite")
    return found


def _tensors(adapter: Adapter, config: ModelConfig, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor of the file."""
    experts = [site for site in adapter if SITES[site].kind == "experts"]
    for site in sorted(set(adapter) - set(experts)):
        a, b = adapter[site]["a"], adapter[site]["b"]
        for at, layer in enumerate(layers_with(config, site)):
            yield from _matrices(module_name(config, Place(site, layer)), a[at], b[at].T)
    for at, layer in enumerate(layers_with(config, experts[0]) if experts else ()):
        pairs = {site: (adapter[site]["a"][at], adapter[site]["b"][at]) for site in experts}
        if layout == "shared_outer":
            yield from _stacked(layer, pairs)
        else:
            full = {site: (_each(a, config), _each(b, config)) for site, (a, b) in pairs.items()}
            yield from _fused(layer, full) if layout == "fused" else _per_expert(layer, full, config)


def _matrices(module: str, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((key(module, "A"), a), (key(module, "B"), b))


def _each(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """A factor for each expert, of one that may be for all."""
    return x if x.ndim == 3 else np.broadcast_to(x, (config.experts, *x.shape))


def _fused(layer: int, pairs: dict[str, Pair]) -> Iterator[tuple[str, np.ndarray]]:
    """PEFT wraps the module of a layer's experts for gate and up, and what comes of it for down."""
    module = f"model.layers.{layer}.mlp.experts"
    gate_up = {site: pair for site, pair in pairs.items() if site != DOWN}
    if gate_up:
        yield from _matrices(f"{module}.base_layer" if DOWN in pairs else module, *join_fused(gate_up))
    if DOWN in pairs:
        yield from _matrices(module, *join_fused({DOWN: pairs[DOWN]}))


def _per_expert(layer: int, pairs: dict[str, Pair], config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    for site, (a, b) in pairs.items():
        for e in range(config.experts):
            yield from _matrices(module_name(config, Place(site, layer, e)), a[e], b[e].T)


def _stacked(layer: int, pairs: dict[str, Pair]) -> Iterator[tuple[str, np.ndarray]]:
    for site, (a, b) in pairs.items():
        a, b = (x if x.ndim == 3 else x[None] for x in (a, b))
        yield from _matrices(f"model.layers.{layer}.mlp.{site}", a, b.swapaxes(1, 2))


def _fields(sites: set[str], spec: AdapterSpec, config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """The configuration; of its fields only those that some reader asks for."""
    modules, parameters = _targets(sites, config, layout)
    fields: dict[str, Any] = {
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _number(spec.alpha),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": spec.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": spec.method == "rslora",
    }
    if parameters:
        fields["target_parameters"] = parameters
    if layout == "fused" and {GATE, UP} <= sites:
        fields["rank_pattern"] = {GATE_UP_PARAMETER: 2 * spec.rank}
        growth = 2.0 if spec.method == "lora" else 2**0.5  # what keeps the scale at twice the rank
        fields["alpha_pattern"] = {GATE_UP_PARAMETER: _number(growth * spec.alpha)}
    return fields


def _number(x: float) -> int | float:
    return int(x) if float(x).is_integer() else float(x)


def _targets(sites: set[str], config: ModelConfig, layout: Layout) -> tuple[list[str], list[str]]:
    """`target_modules` and `target_parameters`.

    Dense projections of a base with experts are parameters: PEFT, on transformers 5, takes their names as modules for
    those of experts.
    """
    modules, parameters = set(), set()
    for site in sites:
        place = Place(site, layers_with(config, site)[0], 0)
        leaf, kind = module_name(config, place).rpartition(".")[2], SITES[site].kind
        if kind == "experts" and layout == "fused":
            parameters.add(DOWN_PARAMETER if site == DOWN else GATE_UP_PARAMETER)
        elif kind == "experts" and layout == "per_expert" and (config.dense_layers or config.shared_experts):
            # In full, since the end of the name is that of dense and shared projections too.
            modules |= {f"experts.{e}.{leaf}" for e in range(config.experts)}
        elif kind in ("dense", "shared_experts") and config.experts and layout != "shared_outer":
            parameters.add(f"mlp.{'shared_experts.' if kind == 'shared_experts' else ''}{leaf}.weight")
        else:
            modules.add(leaf)
    return sorted(modules), sorted(parameters)


def _put(directory: Path, files: dict[str, bytes]) -> None:
    """Files into a directory, the last of them last; each is there whole or not at all."""
    there = {name: directory / name for name in files if (directory / name).exists()}
    for name, path in there.items():
        if path.read_bytes() != files[name]:
            raise PefxError(f"{path}: is another adapter's; remove it, or give another directory", "conflict")
    if not directory.exists():
        with complete_directory(directory) as partial:
            for name, data in files.items():
                (partial / name).write_bytes(data)
        return
    try:
        for name in files.keys() - there.keys():
            (directory / f".{name}.partial").write_bytes(files[name])
        for name in files:
            if name not in there:
                sync(directory / f".{name}.partial")
                (directory / f".{name}.partial").rename(directory / name)
        sync(directory)
    except OSError as error:
        raise PefxError(f"{directory}: cannot be written ({error})", "storage") from None
