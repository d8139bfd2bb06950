"""Adapters as Hugging Face PEFT directories: `adapter_config.json` and `adapter_model.safetensors`, read into our form.

Read are LoRA and rsLoRA on attention, dense and expert projections, routed or shared, and on `lm_head`, in float32,
bfloat16 or float16. Routed experts come in three layouts: one pair of matrices per expert (transformers 4, vLLM), fused
as parameters of all experts (transformers 5), or as stacks of matrices (SGLang, Megatron-Bridge): see
`pefx.adapters.peft_experts`. What cannot be expressed is refused by name, never dropped.

An adapter here has one rank and one scale. Where `rank_pattern` gives lower ranks, factors are padded with zeros to the
highest; where `alpha_pattern` gives another scale than that of most modules, B is multiplied by the ratio in float32:
exact for powers of two, rounded once otherwise. Layers that the configuration leaves out (`layers_to_transform`, or
targets that name layers) are zeros; one that it does not leave out must be in the file.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pefx.adapters.methods.table import METHODS, Adapter, leaf_shapes, scale
from pefx.adapters.peft_config import CONFIG, TENSORS, PeftConfig, read_peft_config
from pefx.adapters.peft_experts import DOWN, GATE, UP, are_blocks, halves, split_fused, split_stacked
from pefx.adapters.peft_names import EXPERTS, KEY, STACKED, Place, all_names, places_of, sites_named
from pefx.adapters.sites import MATRICES, SITES, has_site, layers_with
from pefx.config import AdapterSpec, ExpertForm, ModelConfig
from pefx.errors import PefxError
from pefx.safetensors_files import StoredTensor, read_header, read_metadata
from pefx.stored_weights import FLOATS

# In a file's metadata: the sites that it holds, where gate or up alone are written as the one matrix they are in PEFT.
SITES_FIELD = "pefx_sites"


@dataclass(frozen=True)
class Piece:
    """Factors of a place, a `[R, in]` and b `[R, out]`; or of all experts of its layer, `[E, R, in]`, where the place
    names none. An axis E may be 1: one matrix for all. `joint`: gate and up share one A. `module` is its name.
    """

    place: Place
    a: np.ndarray
    b: np.ndarray
    scale: float
    module: str
    joint: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


def read_peft(directory: str | Path, config: ModelConfig) -> tuple[Adapter, AdapterSpec]:
    """The adapter of a PEFT directory, float32, for a base of shape `config`, and its spec.

    Routed experts are in the form `shared_hidden` where all of them share the factors on the hidden side, else
    `per_expert`. Raises PefxError naming file and field or tensor where something is missing, foreign, or cannot be
    expressed; of kind "wrong_rank", "wrong_target" or "not_finite" where a tensor is of another rank than the
    configuration says, has no place in this base, or has values that are no numbers.
    """
    directory = Path(directory)
    peft = read_peft_config(directory / CONFIG)
    source = directory / TENSORS
    pieces = [
        piece
        for module, (a, b) in _read_pairs(source).items()
        for piece in _pieces(module, a, b, config, f"{source}: '{module}'", peft)
    ]
    pieces = _without_absent(_apart(pieces, peft), read_metadata(source).get(SITES_FIELD), source)
    _check_targets(peft, {piece.place.site for piece in pieces}, config, source)
    spec = _spec(pieces, peft, config)
    return _stack(pieces, spec, config, peft, source), spec


def find_adapters(folder: str | Path) -> list[Path]:
    """The PEFT directories under a folder (itself included), in order of their paths.

    Directories that are being written (`.*.partial`) are none. Raises PefxError if the folder is no directory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PefxError(f"{folder}: no such directory")
    found = []
    for path, below, files in os.walk(folder):
        below[:] = [name for name in below if not (name.startswith(".") and name.endswith(".partial"))]
        if CONFIG in files:
            found.append(Path(path))
    return sorted(found)


def _read_pairs(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of every adapted module, float32, by the module's name in the base."""
    if not path.exists():
        raise PefxError(f"{path}: no such file; adapters are read from safetensors only")
    factors: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in sorted(read_header(path).items()):
        match = KEY.fullmatch(name)
        if match is None:
            raise PefxError(f"{path}: tensor '{name}' is no LoRA factor of a linear module", "wrong_target")
        factors.setdefault(match["module"], {})[match["factor"]] = _numbers(tensor)
    if not factors:
        raise PefxError(f"{path}: holds no tensors")
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            missing = min({"A", "B"} - set(pair))
            raise PefxError(f"{path}: '{module}' lacks its lora_{missing}", "wrong_target")
    return {module: (pair["A"], pair["B"]) for module, pair in factors.items()}


def _numbers(tensor: StoredTensor) -> np.ndarray:
    if tensor.dtype not in FLOATS:
        raise PefxError(
            f"{tensor.file}: tensor '{tensor.name}' is {tensor.dtype}; an adapter is float32, float16 or bfloat16"
        )
    stored = tensor.read()
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn before it is refused
        bad = stored.size - int(np.isfinite(stored).sum())
        if bad:
            told = f"{tensor.file}: tensor '{tensor.name}' has {bad} NaN or infinite values of {stored.size}"
            raise PefxError(told, "not_finite")
    return stored.astype(np.float32)


def _pieces(
    module: str, a: np.ndarray, b: np.ndarray, config: ModelConfig, where: str, peft: PeftConfig
) -> Iterator[Piece]:
    """Where a module's factors go, A `[R, in]` and B `[out, R]` or those of all experts. `where` begins errors."""
    name, joint = module, False
    if config.experts and (match := EXPERTS.fullmatch(module)):
        leaf, found = split_fused(a, b, config, peft.version, where)
        name, joint = f"model.layers.{match['layer']}.mlp.experts.{leaf}", leaf == "gate_up_proj"
        parts = [(Place(site, int(match["layer"])), x, y) for site, (x, y) in found.items()]
    elif config.experts and (match := STACKED.fullmatch(module)):
        stacks = split_stacked(match["name"], a, b, config.experts, where)
        joint = match["name"] == "gate_up_proj" and a.shape[1] == b.shape[2]
        parts = [(Place(site, int(match["layer"])), x, y) for site, (x, y) in stacks.items()]
    else:
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            told = f"{where} has A of shape {a.shape} and B of shape {b.shape}, which do not multiply"
            raise PefxError(told, "wrong_rank")
        parts = [(place, a, b.T) for place in places_of(module, config)]
    if not parts:
        own = [site for site in MATRICES if has_site(config, site)]
        told = f"{where} is no module that can be adapted here; sites are {', '.join(own)}"
        raise PefxError(told, "wrong_target")
    for place, x, y in parts:
        piece = Piece(place, x, y, peft.scale_of(name), name, joint)
        _check_piece(piece, config, where, peft)
        yield piece


def _check_piece(piece: Piece, config: ModelConfig, where: str, peft: PeftConfig) -> None:
    site, layer, expert = piece.place
    layers = layers_with(config, site)
    if layer not in layers or expert >= config.experts:
        raise PefxError(f"{where} is not in this base, whose layers with {site} are {layers}", "wrong_target")
    if SITES[site].kind != "unembed" and peft.leaves_out(piece.module, layer):
        told = f"{where} is adapted, but layers_to_transform in {CONFIG} is {sorted(peft.layers or ())}"
        raise PefxError(told, "wrong_target")
    wanted = peft.rank_of(piece.module)
    if piece.rank != wanted:
        raise PefxError(f"{where} has rank {piece.rank}, {CONFIG} says {wanted}", "wrong_rank")


def _apart(pieces: list[Piece], peft: PeftConfig) -> list[Piece]:
    """Gate and up at rank r each, if in every layer they share a pair of rank 2 r that is two of rank r beside each
    other: what `write_peft` makes of them, and PEFT of a pair per expert. It is the same product, exactly.
    """
    shared = {(p.place.layer, p.place.site): p for p in pieces if p.joint}
    layers = sorted({layer for layer, _ in shared})
    pairs = {layer: [(shared[layer, site].a, shared[layer, site].b) for site in (GATE, UP)] for layer in layers}
    twice = all(piece.rank == 2 * peft.rank for piece in shared.values())
    if not layers or not twice or not all(are_blocks(*pair) for pair in pairs.values()):
        return pieces
    split = {layer: dict(zip((GATE, UP), halves(*pair), strict=True)) for layer, pair in pairs.items()}
    return [
        replace(p, a=split[p.place.layer][p.place.site][0], b=split[p.place.layer][p.place.site][1]) if p.joint else p
        for p in pieces
    ]


def _without_absent(pieces: list[Piece], written: str | None, source: Path) -> list[Piece]:
    """The pieces of those sites that the file says it holds, if it says so; those of other sites must be zero."""
    if written is None:
        return pieces
    sites = written.split(",")
    for piece in pieces:
        if piece.place.site not in sites and piece.b.any():
            told = f"{source}: '{piece.module}' adapts {piece.place.site}, {SITES_FIELD} in its metadata is {written}"
            raise PefxError(told, "wrong_target")
    kept = [piece for piece in pieces if piece.place.site in sites]
    if not kept:
        raise PefxError(f"{source}: {SITES_FIELD} in its metadata is '{written}', and no tensor is of those sites")
    return kept


def _check_targets(peft: PeftConfig, found: set[str], config: ModelConfig, source: Path) -> None:
    """Raise PefxError for a target of the configuration that is in this base, but not in the file at all."""
    modules = () if isinstance(peft.modules, str) else peft.modules
    for target in (*modules, *peft.parameters):
        meant = sites_named(target, config)
        if meant and not meant & found:
            raise PefxError(f"{source}: {CONFIG} targets '{target}', but no tensor of it is there", "wrong_target")


def _spec(pieces: list[Piece], peft: PeftConfig, config: ModelConfig) -> AdapterSpec:
    """The highest rank, and the scale that most modules have, by an alpha that the configuration names if one does."""
    rank = max(piece.rank for piece in pieces)
    usual = Counter(np.float32(piece.scale) for piece in pieces).most_common(1)[0][0]
    exact = next(piece.scale for piece in pieces if np.float32(piece.scale) == usual)
    named = [peft.alpha, *peft.alpha_pattern.values()]
    fitting = [alpha for alpha in named if np.float32(METHODS[peft.method].scale(alpha, rank) / exact) == 1]
    return AdapterSpec(
        method=peft.method,
        rank=rank,
        alpha=fitting[0] if fitting else exact / METHODS[peft.method].scale(1.0, rank),
        targets=tuple(site for site in MATRICES if any(site == piece.place.site for piece in pieces)),
        expert_form=_form(pieces, config),
    )


def _form(pieces: Iterable[Piece], config: ModelConfig) -> ExpertForm:
    """`shared_hidden` if in every layer one matrix on the hidden side stands beside E on the other side."""
    of_experts = [p for p in pieces if SITES[p.place.site].kind == "experts"]
    if config.experts < 2 or not of_experts:
        return "per_expert"
    for piece in of_experts:
        shared, own = (piece.b, piece.a) if piece.place.site == DOWN else (piece.a, piece.b)
        if piece.place.expert >= 0 or shared.shape[0] != 1 or own.shape[0] != config.experts:
            return "per_expert"
    return "shared_hidden"


def _stack(pieces: list[Piece], spec: AdapterSpec, config: ModelConfig, peft: PeftConfig, source: Path) -> Adapter:
    """One array per site and factor, from the pieces of its layers and experts; none may be missing."""
    shapes = leaf_shapes(config, spec)
    adapter = {site: {name: np.zeros(x, np.float32) for name, x in pair.items()} for site, pair in shapes.items()}
    filled: dict[Place, str] = {}
    for piece in pieces:
        site, layer, expert = piece.place
        stacked = SITES[site].kind == "experts" and expert < 0
        for e in range(config.experts) if stacked else (expert,):
            if (place := Place(site, layer, e)) in filled:
                told = f"{source}: '{piece.module}' and '{filled[place]}' are the same place"
                raise PefxError(told, "wrong_target")
            filled[place] = piece.module
        ratio = np.float32(piece.scale / scale(spec))
        b = piece.b if ratio == 1 else piece.b * ratio
        at = layers_with(config, site).index(layer)
        for name, value in (("a", piece.a), ("b", b)):
            room = adapter[site][name][at] if stacked or expert < 0 else adapter[site][name][at, expert]
            if value.shape[-1] != room.shape[-1]:
                told = (*value.shape[:-1], room.shape[-1])
                raise PefxError(
                    f"{source}: {site} in layer {layer} has {name} of shape {value.shape}, this base needs {told}",
                    "wrong_target",
                )
            value = value[0] if stacked and room.ndim == 2 else value
            room[..., : piece.rank, :] = value
    _check_filled(filled, spec, config, peft, source)
    return adapter


def _check_filled(
    filled: dict[Place, str], spec: AdapterSpec, config: ModelConfig, peft: PeftConfig, source: Path
) -> None:
    """Raise PefxError for a layer or an expert that an adapted site lacks, unless the configuration leaves it out."""
    for site in spec.targets:
        layers = layers_with(config, site)
        experts = range(config.experts) if SITES[site].kind == "experts" else (-1,)
        named = [layer for layer in layers if any(peft.targets(x, layer) for x in all_names(config, site, layer))]
        # Names that say nothing of this site are another program's: then no layer may be missing.
        wanted = named or [layer for layer in layers if peft.layers is None or layer in peft.layers]
        for layer in layers:
            lacking = [e for e in experts if Place(site, layer, e) not in filled]
            if lacking and (layer in wanted or len(lacking) < len(experts)):
                where = f"layer {layer}" + (f" expert {lacking[0]}" if lacking[0] >= 0 else "")
                told = f"{source}: {site} is adapted, but not in {where}; all layers must be, or none"
                raise PefxError(told, "wrong_target")
