"""The factors of all routed experts of a layer as one pair of tensors, as several programs write them, and back.

Ours are a `[E, R, in]` and b `[E, R, out]`. PEFT (as of transformers 5) writes matrices: A `[E R, in]` with the expert
slowest, B `[out, R E]` with the expert fastest; some write the same numbers as A `[E, R, in]` and B `[out, R, E]`.
There gate and up are one matrix of height 2F, its first half gate's: they share A, each has its half of B.

SGLang and Megatron-Bridge write stacks of matrices: A `[E, R, in]`, B `[E, out, R]`, with one matrix instead of E
where the experts of a layer share it ("shared outer": A of gate and up, B of down). Under the name `gate_up_proj`,
B has height 2F and A is either shared by gate and up, or holds first gate's rows and then up's: twice as many as B has
columns.
"""

import numpy as np

from pefx.adapters.peft_names import LONG
from pefx.config import ModelConfig
from pefx.errors import PefxError

GATE: str = "experts.gate_proj"
UP: str = "experts.up_proj"
DOWN: str = "experts.down_proj"
# The first version known to write fused experts with A on the side that an expert reads, whatever the sizes.
FUSED_SINCE = (0, 21)

Pair = tuple[np.ndarray, np.ndarray]  # a [E or 1, R, in], b [E or 1, R, out]


def split_fused(
    a: np.ndarray, b: np.ndarray, config: ModelConfig, version: tuple[int, ...], where: str
) -> tuple[str, dict[str, Pair]]:
    """The parameter that PEFT's fused factors belong to, and the factors by site.

    Older versions of PEFT took `[out, in]` for `[in, out]`, so that A stands on the output side: sizes tell, and the
    `version` where they do not. Raises PefxError, which `where` begins.
    """
    experts, hidden, wide = config.experts, config.hidden, config.expert_hidden
    if a.ndim == 3 and b.ndim == 3:
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        told = f"{where} has A of shape {a.shape} and B of shape {b.shape}, which do not multiply"
        raise PefxError(told, "wrong_rank")
    if a.shape[0] % experts:
        told = f"{where} has {a.shape[0]} rows in A, no multiple of this base's {experts} experts"
        raise PefxError(told, "wrong_target")
    rank = a.shape[0] // experts
    first = a.reshape(experts, rank, a.shape[1])
    second = b.reshape(b.shape[0], rank, experts).transpose(2, 1, 0)
    sizes = (a.shape[1], b.shape[0])
    known = {"gate_up_proj": (hidden, 2 * wide), "down_proj": (wide, hidden)}
    name = next((n for n, s in known.items() if sorted(s) == sorted(sizes)), None)
    if name is None:
        told = f"{where} maps {sizes[0]} to {sizes[1]}; this base's fused experts map {known}"
        raise PefxError(told, "wrong_target")
    if sizes[0] == sizes[1]:
        if version < FUSED_SINCE:
            raise PefxError(
                f"{where} is square, and its adapter_config.json has no peft_version from {FUSED_SINCE[0]}."
                f"{FUSED_SINCE[1]} on: it cannot be told which factor is on which side; load and save it with a newer "
                "PEFT"
            )
    elif sizes != known[name]:
        first, second = second, first
    if name == "down_proj":
        return name, {DOWN: (first, second)}
    return name, {GATE: (first, second[..., :wide]), UP: (first, second[..., wide:])}


def join_fused(pairs: dict[str, Pair]) -> Pair:
    """PEFT's A `[E R, in]` and B `[out, R E]` of one parameter, from the factors (of E experts) of its sites.

    Gate and up keep their own A in a pair of twice the rank: A has gate's rows and then up's, B is zero where the rows
    of one would meet the output of the other. Of one of them alone B is zero on the other's half, at its own rank.
    """
    if DOWN in pairs:
        a, b = pairs[DOWN]
    elif len(pairs) == 2:
        (gate_a, gate_b), (up_a, up_b) = pairs[GATE], pairs[UP]
        a = np.concatenate([gate_a, up_a], axis=1)
        upper = np.concatenate([gate_b, np.zeros_like(gate_b)], axis=2)
        b = np.concatenate([upper, np.concatenate([np.zeros_like(up_b), up_b], axis=2)], axis=1)
    else:
        (site, (a, own)) = next(iter(pairs.items()))
        halves = [own, np.zeros_like(own)] if site == GATE else [np.zeros_like(own), own]
        b = np.concatenate(halves, axis=2)
    return a.reshape(-1, a.shape[-1]), b.transpose(2, 1, 0).reshape(b.shape[2], -1)


def are_blocks(gate: Pair, up: Pair) -> bool:
    """Whether a pair that gate and up share is two pairs of half the rank, as `join_fused` puts them together."""
    rank = gate[1].shape[1]
    half = rank // 2
    return rank % 2 == 0 and not gate[1][:, half:].any() and not up[1][:, :half].any()


def halves(gate: Pair, up: Pair) -> tuple[Pair, Pair]:
    """The two pairs that `are_blocks` speaks of."""
    half = gate[1].shape[1] // 2
    return (gate[0][:, :half], gate[1][:, :half]), (up[0][:, half:], up[1][:, half:])


def split_stacked(name: str, a: np.ndarray, b: np.ndarray, experts: int, where: str) -> dict[str, Pair]:
    """Factors by site of stacks of matrices under a projection's name; raises PefxError, which `where` begins."""
    name = LONG.get(name, name)
    if a.ndim != 3 or b.ndim != 3 or {a.shape[0], b.shape[0]} - {1, experts}:
        told = f"{where} has A of shape {a.shape} and B of shape {b.shape}; of all {experts} experts, or of one for all"
        raise PefxError(f"{told}, they are [{experts} or 1, r, in] and [{experts} or 1, out, r]", "wrong_target")
    rank, out = b.shape[2], b.swapaxes(1, 2)
    if name == "gate_up_proj" and a.shape[1] in (rank, 2 * rank) and b.shape[1] % 2 == 0:
        wide = b.shape[1] // 2
        return {GATE: (a[:, :rank], out[..., :wide]), UP: (a[:, -rank:], out[..., wide:])}
    if a.shape[1] != rank:
        told = f"{where} has A of shape {a.shape} and B of shape {b.shape}, which do not multiply"
        raise PefxError(told, "wrong_rank")
    return {f"experts.{name}": (a, out)}
