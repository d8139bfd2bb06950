"""A tiny base of odd sizes, the same model once more in plain float64 numpy, and batches for both."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from pefx.adapters.methods.table import Adapter, init_adapter, scale
from pefx.adapters.sites import MATRICES
from pefx.batch import TokenBatch
from pefx.config import AdapterSpec, ModelConfig
from pefx.model import Base
from pefx.packing import Sizes, Span, pack, tile_of, whole_pages
from pefx.steps import TrainBatch

PAGE, TOKENS, PLACES = 16, 64, 4
TILE = tile_of(PAGE)
MODEL = ModelConfig(
    vocab_size=61,
    hidden=33,
    layers=3,
    heads=3,
    kv_heads=1,
    head_size=6,
    dense_hidden=21,
    expert_hidden=13,
    experts=5,
    experts_per_token=2,
    dense_layers=(1,),
    context=TOKENS,
)
SPEC = AdapterSpec(rank=3, alpha=6.0, targets=MATRICES)


def make_base(config: ModelConfig = MODEL, seed: int = 0) -> Base:
    """Random weights, those of norms and biases too: ones and zeros would hide one that is left out."""
    base = Base(config, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)

    def noisy(path, x):
        if "norm" in jax.tree_util.keystr(path) or "bias" in jax.tree_util.keystr(path):
            return (x + rng.uniform(-0.3, 0.3, x.shape).astype(np.float32)).astype(x.dtype)
        return x

    return jax.tree_util.tree_map_with_path(noisy, base)


def random_adapter(config: ModelConfig, spec: AdapterSpec, seed: int) -> Adapter:
    """An adapter that changes every site it has."""
    rng = np.random.default_rng(seed)
    adapter = init_adapter(config, spec, seed)
    for pair in adapter.values():
        pair["b"] = rng.normal(size=pair["b"].shape).astype(np.float32) * 0.3
    return adapter


def random_tokens(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, MODEL.vocab_size, n).astype(np.int32) for n in lengths]


def train_batch(sequences: Sequence[np.ndarray], slots: Sequence[int], weight: float = 1.0) -> TrainBatch:
    """Whole sequences on page boundaries, every next token a target of the same weight."""
    spans, page = [], 0
    targets = np.full(TOKENS, -1, np.int32)
    for tokens, slot in zip(sequences, slots, strict=True):
        need = whole_pages(len(tokens), PAGE)
        spans.append(Span(tokens, 0, slot, range(page, page + need)))
        targets[page * PAGE : page * PAGE + len(tokens) - 1] = tokens[1:]
        page += need
    fields = pack(spans, Sizes(0, TOKENS // TILE, PLACES, TOKENS // PAGE, PAGE, TILE))
    return TrainBatch(TokenBatch(**fields), targets, np.where(targets >= 0, weight, 0).astype(np.float32))


def split_rows(sequences: Sequence[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each sequence of a `train_batch`."""
    out, at = [], 0
    for tokens in sequences:
        out.append(np.asarray(rows)[at : at + len(tokens)])
        at += whole_pages(len(tokens), PAGE) * PAGE
    return out


class Plain:
    """The model in float64, one sequence, one adapter: written from the formulas, sharing no code with pefx."""

    def __init__(self, base: Base, adapter: Adapter | None = None, spec: AdapterSpec = SPEC):
        self.config, self.adapter, self.scale = base.config, adapter or {}, scale(spec)
        self.embed = self._array(base.embed)
        self.head = self.embed if base.unembed is None else self._array(base.unembed)
        self.final_norm = self._array(base.final_norm)
        self.layers = []
        for segment in base.segments:
            dense = segment.experts is None
            parts = [segment.block] if dense else [segment.block, segment.experts]
            flat: dict[str, np.ndarray] = {}
            for part, prefix in zip(parts, ("", "experts."), strict=False):
                for path, value in jax.tree_util.tree_leaves_with_path(part):
                    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
                    names = [n for n in names if n not in ("value", "", "attention", "feed")]
                    flat[prefix + ".".join(names)] = np.asarray(value, np.float64)
            count = len(flat["input_norm"])
            self.layers += [(dense, {name: value[i] for name, value in flat.items()}) for i in range(count)]

    @staticmethod
    def _array(variable) -> np.ndarray:
        return np.asarray(variable[...], np.float64)

    def _norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.norm_epsilon) * weight

    def _delta(self, x, site, layer, expert=None):
        if site not in self.adapter:
            return 0.0
        a, b = self.adapter[site]["a"][layer], self.adapter[site]["b"][layer]
        if expert is not None:
            a, b = (f[expert] if f.ndim == 3 else f for f in (a, b))
        return self.scale * (x @ a.astype(np.float64).T) @ b.astype(np.float64)

    def _project(self, x, weights, name, layer):
        return x @ weights[name].T + weights.get(name.replace("proj", "bias"), 0) + self._delta(x, name, layer)

    def _rotate(self, x):
        size = int(x.shape[-1] * self.config.rotary_fraction)
        angle = np.arange(len(x))[:, None] * self.config.rope_theta ** -(np.arange(0, size, 2) / size)
        cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
        low, high = x[..., : size // 2], x[..., size // 2 : size]
        return np.concatenate([low * cosine - high * sine, low * sine + high * cosine, x[..., size:]], -1)

    def _attention(self, x, weights, layer):
        c, n = self.config, len(x)
        q = self._project(x, weights, "q_proj", layer).reshape(n, c.heads, c.head_size)
        k = self._project(x, weights, "k_proj", layer).reshape(n, c.kv_heads, c.head_size)
        v = self._project(x, weights, "v_proj", layer).reshape(n, c.kv_heads, c.head_size)
        if c.query_key_norm:
            q, k = self._norm(q, weights["q_norm"]), self._norm(k, weights["k_norm"])
        q, k = self._rotate(q), self._rotate(k)
        out = np.zeros((n, c.heads, c.head_size))
        for head in range(c.heads):
            group = head // (c.heads // c.kv_heads)
            for t in range(n):
                s = k[: t + 1, group] @ q[t, head] / np.sqrt(c.head_size)
                p = np.exp(s - s.max())
                out[t, head] = p @ v[: t + 1, group] / p.sum()
        return self._project(out.reshape(n, -1), weights, "o_proj", layer)

    def _dense(self, x, weights, layer, sites=""):
        gate = self._project(x, weights, f"{sites}gate_proj", layer)
        hidden = gate / (1 + np.exp(-gate)) * self._project(x, weights, f"{sites}up_proj", layer)
        return self._project(hidden, weights, f"{sites}down_proj", layer)

    def _expert(self, x, weights, layer, expert):
        def project(x, name):
            site = "experts." + name
            return x @ weights[site][expert] + self._delta(x, site, layer, expert)

        gate = project(x, "gate_proj")
        return project(gate / (1 + np.exp(-gate)) * project(x, "up_proj"), "down_proj")

    def _sparse(self, x, weights, layer):
        c, out, ids = self.config, np.zeros_like(x), []
        logits = x @ weights["weight"].T
        if c.router_scores == "sigmoid":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        for t, row in enumerate(scores):
            chosen = self._chosen(row + weights.get("bias", 0))
            gates = c.gate_scale * row[chosen] / (row[chosen].sum() if c.normalize_gates else 1)
            out[t] = sum(g * self._expert(x[t], weights, layer, e) for g, e in zip(gates, chosen, strict=True))
            ids.append(chosen)
        if c.shared_experts:
            out += self._dense(x, weights, layer, "shared_experts.")
        return out, np.array(ids)

    def _chosen(self, wanted):
        c = self.config
        groups = np.split(np.arange(c.experts), c.expert_groups)
        best = sorted(groups, key=lambda group: -np.sort(wanted[group])[-2:].sum())[: c.groups_per_token]
        allowed = np.sort(np.concatenate(best))
        return allowed[np.argsort(-wanted[allowed], kind="stable")[: c.experts_per_token]]

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits [n, V] and the experts chosen in each expert layer [n, k]."""
        x, routes = self.embed[tokens], []
        seen = {True: 0, False: 0}
        for layer, (dense, weights) in enumerate(self.layers):
            x = x + self._attention(self._norm(x, weights["input_norm"]), weights, layer)
            y = self._norm(x, weights["post_norm"])
            if dense:
                y = self._dense(y, weights, seen[dense])
            else:
                y, ids = self._sparse(y, weights, seen[dense])
                routes.append(ids)
            x, seen[dense] = x + y, seen[dense] + 1
        x = self._norm(x, self.final_norm)
        return x @ self.head.T + self._delta(x, "unembed", 0), routes

    def logprobs(self, tokens: np.ndarray) -> np.ndarray:
        """Of each next token, [n - 1]."""
        logits = self(tokens)[0][:-1]
        logits = logits - logits.max(-1, keepdims=True)
        return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(tokens) - 1), tokens[1:]]


def variant(**changes) -> ModelConfig:
    """`MODEL` with some fields changed."""
    return replace(MODEL, **changes)
