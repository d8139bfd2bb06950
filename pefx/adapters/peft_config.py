"""The `adapter_config.json` of a PEFT directory: what of it decides where an adapter is and how it is scaled.

Patterns are matched as PEFT matches them: a pattern is a regular expression that must match the end of a module's name,
from a dot or the beginning on; the first that does settles it. What is adapted as a parameter (`target_parameters`) is
known by the parameter's name, `...mlp.gate_proj.weight` or `...mlp.experts.gate_up_proj`, and does not heed
`layers_to_transform`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pefx.adapters.methods.table import METHODS
from pefx.config import Method
from pefx.errors import PefxError
from pefx.families.config_json import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Fields of a PEFT configuration that are read, or do not change what a saved adapter computes; others must be unset.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora",
}  # fmt: skip
UNSET = (None, False, "none", {}, [], 0)
# Initialisations that leave the base as it is. The others subtract the start from it: such factors fit no other base.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What an `adapter_config.json` says.

    `layers` are those of `layers_to_transform`, None where it is unset. `modules` and `parameters` are its targets,
    `excluded` are no modules of them; a text instead of names is a regular expression of a whole name. `version` is
    that of the PEFT that wrote it, () where it does not say.
    """

    path: Path
    rank: int
    alpha: float
    method: Method
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    layers: frozenset[int] | None
    modules: tuple[str, ...] | str
    excluded: tuple[str, ...] | str
    parameters: tuple[str, ...]
    version: tuple[int, ...]

    def rank_of(self, module: str) -> int:
        """The rank of the factors of a module, or of a parameter."""
        return _first_match(self.rank_pattern, self.key(module), self.rank)

    def scale_of(self, module: str) -> float:
        """The factor on the product of a module's factors, of a parameter's."""
        alpha = _first_match(self.alpha_pattern, self.key(module), self.alpha)
        return METHODS[self.method].scale(alpha, self.rank_of(module))

    def key(self, module: str) -> str:
        """The name that patterns are matched against."""
        return f"{module}.weight" if self.is_parameter(f"{module}.weight") else module

    def is_parameter(self, name: str) -> bool:
        """Whether a parameter of the base is one of the targets."""
        return _ends(name, self.parameters)

    def targets(self, module: str, layer: int) -> bool:
        """Whether a module of a layer is a target, or its weight, or the parameter of all experts of this name."""
        if self.is_parameter(module) or self.is_parameter(f"{module}.weight"):
            return True
        if _matches(module, self.excluded):
            return False
        if isinstance(self.modules, str) or module in self.modules:
            return _matches(module, self.modules)
        return _ends(module, self.modules) and (self.layers is None or layer in self.layers)

    def leaves_out(self, module: str, layer: int) -> bool:
        """Whether `layers_to_transform` says that a module of this layer is not adapted."""
        return self.layers is not None and layer not in self.layers and not self.targets(module, layer)


def _ends(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _matches(name: str, targets: tuple[str, ...] | str) -> bool:
    """Whether a name is meant by a list of ends of names, or by a regular expression."""
    return bool(re.fullmatch(targets, name)) if isinstance(targets, str) else _ends(name, targets)


def _first_match(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """What the first pattern that matches the end of a name says."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def read_peft_config(path: Path) -> PeftConfig:
    """Raises PefxError, naming file and field, for what is missing or means what cannot be expressed here."""
    fields = read_json(path, "an adapter is a PEFT directory")
    if fields.get("peft_type") != "LORA":
        raise PefxError(f"{path}: peft_type is {fields.get('peft_type')!r}, only 'LORA' is supported")
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not _is_rank(rank):
        raise PefxError(f"{path}: r must be a positive integer, got {rank!r}")
    if not _is_alpha(alpha):
        raise PefxError(f"{path}: lora_alpha must be a number, not zero, got {alpha!r}")
    for field, value in fields.items():
        if field not in KNOWN and value not in UNSET:
            raise PefxError(f"{path}: {field} is {value!r}, which cannot be expressed here; it must be unset")
    start = fields.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise PefxError(
            f"{path}: init_lora_weights {start!r} changes the base; save the adapter relative to the original base"
        )
    return PeftConfig(
        path=path,
        rank=rank,
        alpha=float(alpha),
        method="rslora" if fields.get("use_rslora") else "lora",
        rank_pattern=_patterns(fields, "rank_pattern", path),
        alpha_pattern=_patterns(fields, "alpha_pattern", path),
        layers=_layers(fields, path),
        modules=_names(fields, "target_modules", path),
        excluded=_names(fields, "exclude_modules", path),
        parameters=tuple(_names(fields, "target_parameters", path)),
        version=tuple(int(x) for x in re.findall(r"\d+", str(fields.get("peft_version") or ""))[:2]),
    )


def _is_rank(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value) and value != 0


def _patterns(fields: Mapping[str, Any], field: str, path: Path) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern`: regular expressions of names, each with its rank or alpha."""
    found = fields.get(field) or {}
    if not isinstance(found, dict):
        raise PefxError(f"{path}: {field} is {found!r}, must be an object of a number for each pattern")
    fits, wanted = (_is_rank, "a positive integer") if field == "rank_pattern" else (_is_alpha, "a number, not zero")
    for key, value in found.items():
        if not fits(value):
            raise PefxError(f"{path}: {field} of '{key}' must be {wanted}, got {value!r}")
        try:
            re.compile(key)
        except re.error as error:
            raise PefxError(f"{path}: '{key}' of {field} is no regular expression ({error})") from None
    return found if field == "rank_pattern" else {key: float(value) for key, value in found.items()}


def _layers(fields: Mapping[str, Any], path: Path) -> frozenset[int] | None:
    """The layers of `layers_to_transform`; `layers_pattern`, where it is set, must mean the layers of a base."""
    found, pattern = fields.get("layers_to_transform"), fields.get("layers_pattern")
    if found is None or found == []:
        return None
    found = [found] if type(found) is int else found
    if not (isinstance(found, list) and all(type(layer) is int and layer >= 0 for layer in found)):
        raise PefxError(f"{path}: layers_to_transform is {found!r}, must be numbers of layers")
    if isinstance(fields.get("target_modules"), str):
        raise PefxError(f"{path}: layers_to_transform needs a list of target_modules, not a regular expression")
    names = [pattern] if isinstance(pattern, str) else pattern
    if names and not any(isinstance(name, str) and name == "layers" for name in names):
        raise PefxError(f"{path}: layers_pattern is {pattern!r}; the layers of a base are 'layers'")
    return frozenset(found)


def _names(fields: Mapping[str, Any], field: str, path: Path) -> tuple[str, ...] | str:
    """Names of a field, or a regular expression where it holds a text ("all-linear" means what it says: anything)."""
    found = fields.get(field) or []
    if isinstance(found, str) and field != "target_parameters":
        expression = ".*" if found == "all-linear" else found
        try:
            re.compile(expression)
        except re.error as error:
            raise PefxError(f"{path}: {field} is {found!r}, which is no regular expression ({error})") from None
        return expression
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise PefxError(f"{path}: {field} is {found!r}, must be a list of names")
    return tuple(found)
