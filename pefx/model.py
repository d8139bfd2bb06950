"""The base and its one forward. A family is a `ModelConfig`, never a second copy of this file.

Layers are stacked in runs of one kind (dense or mixture of experts) and scanned. Training, scoring, prefill and decode
all call `forward`; they differ in the batch they pass.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from kernels.rows import Rows
from pefx.batch import KVPool, TokenBatch
from pefx.collectives import all_rows, enter, leave, own_part, own_rows, size
from pefx.compiler import layers_at_once
from pefx.config import ModelConfig, Remat
from pefx.layers.attention import Attention, attention
from pefx.layers.linear import Adapters, adapted, dot
from pefx.layers.memory import MemoryFactors, Steering, remember
from pefx.layers.mla import LatentAttention, mla
from pefx.layers.mlp import Mlp, mlp
from pefx.layers.moe import Experts, Region, Router, moe, regions, route
from pefx.layers.norm import rms_norm
from pefx.layers.parameter import ones, weight
from pefx.layers.quantised import quantise_modules
from pefx.layers.rope import angles
from pefx.mesh import MODEL


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routes:
    """What the routers of the `Lm` expert layers did: chosen `ids`, and the summed score of each expert (`load`).

    `gates`: of what each token wrote into its memory, the mean over layers (None: there are no memories).
    """

    ids: Int32[Array, "Lm T k"]
    load: Float[Array, "Lm E"]
    gates: Float[Array, "T"] | None = None


@runtime_checkable
class AdapterBank(Protocol):
    """What the model needs of a bank: see `pefx.adapters.bank`."""

    @property
    def slots(self) -> int: ...

    @property
    def memory(self) -> tuple[int, int] | None: ...

    def scanned(self, sites: range, kind: str) -> dict[str, dict[str, Array]]: ...

    def at(self, layer: Int32[Array, ""], kind: str, scanned: dict[str, dict[str, Array]]) -> Adapters: ...

    def memory_at(self, layer: Int32[Array, ""], scanned: dict[str, dict[str, Array]]) -> MemoryFactors | None: ...


# Kinds of sites of a layer with experts; "across_experts" are factors that the routed experts share.
SPARSE = ("experts", "across_experts", "shared_experts")
# What the backward pass finds of a layer besides its input, by `Remat`; None: whatever it asks for.
SAVED = {"none": None, "full": jax.checkpoint_policies.nothing_saveable}


class Block(nnx.Module):
    """All but the routed experts of `layers` decoder layers of one kind, stacked."""

    def __init__(self, config: ModelConfig, layers: int, dense: bool, rngs: nnx.Rngs):
        self.input_norm = ones((layers, config.hidden), ("layers", "embed"), config.precision)
        self.attention = (LatentAttention if config.kv_rank else Attention)(config, layers, rngs)
        self.post_norm = ones((layers, config.hidden), ("layers", "embed"), config.precision)
        self.feed = Mlp(config, layers, config.dense_hidden, rngs) if dense else Router(config, layers, rngs)
        wide = 0 if dense else config.shared_experts * config.expert_hidden
        self.shared_experts = Mlp(config, layers, wide, rngs) if wide else None


class Segment(nnx.Module):
    """A run of consecutive layers of one kind. Experts stand apart: they are read in place, never sliced."""

    def __init__(self, config: ModelConfig, layers: int, dense: bool, rngs: nnx.Rngs):
        self.block = Block(config, layers, dense, rngs)
        self.experts = None if dense else Experts(config, layers, rngs)


class Base(nnx.Module):
    """The frozen model: embedding, segments, final norm, unembedding. Used as a plain pytree.

    `shared`: arrays beside its weights that adapters of one recipe share (`pefx.adapters.shared`), by recipe, site and
    name.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        self.config = config
        self.embed = weight(rngs, (c.vocab_size, c.hidden), ("vocab", "embed"), c.hidden**-0.5, c.precision)
        self.segments = nnx.List([Segment(c, len(run), dense, rngs) for run, dense in runs(c)])
        self.final_norm = ones((c.hidden,), ("embed",), c.precision)
        self.unembed = (
            None
            if c.tied_embedding
            else weight(rngs, (c.vocab_size, c.hidden), ("vocab", "embed"), c.hidden**-0.5, c.precision)
        )
        self.shared: dict[str, dict[str, dict[str, nnx.Param]]] = nnx.data({})
        if c.weights != "plain":
            quantise_modules(self, c)


def runs(config: ModelConfig) -> list[tuple[range, bool]]:
    """Maximal runs of consecutive layers of one kind: (global layer numbers, dense?)."""
    kinds = [layer in config.dense_layers for layer in range(config.layers)]
    starts = [i for i in range(config.layers) if i == 0 or kinds[i] != kinds[i - 1]]
    ends = [*starts[1:], config.layers]
    return [(range(a, b), kinds[a]) for a, b in zip(starts, ends, strict=True)]


def abstract_base(config: ModelConfig) -> Base:
    """The base's shapes and types without any weights in memory."""
    return jax.eval_shape(lambda: Base(config, nnx.Rngs(0)))


def forward(
    base: Base,
    bank: AdapterBank | None,
    batch: TokenBatch,
    kv: KVPool,
    routes: Int32[Array, "Lm T k"] | None = None,
    remat: Remat = "none",
) -> tuple[Float[Array, "T D"], KVPool, Routes]:
    """Final hidden states of every token, the pool with this step's keys and values, and the routes taken.

    `routes` are recorded expert ids to replay (-1: route live). A bank of None is the bare base. `remat` says what a
    backward pass computes again instead of keeping it.
    """
    config = base.config
    rows = None if bank is None else batch.by_slot()
    places = batch.positions, regions(batch.by_slot(), 0 if bank is None else bank.slots)
    turn = angles(batch.positions, config)
    x = embed(base.embed[...], jnp.asarray(batch.tokens))
    tokens, copies = batch.tokens.shape[0], config.experts_per_token
    taken, loads, gates, dense_seen, sparse_seen = [], [], [], 0, 0
    for segment, (run, dense) in zip(base.segments, runs(config), strict=True):
        seen = dense_seen if dense else sparse_seen
        own = range(seen, seen + len(run))
        kinds = {"attention": run, "memory": run} | dict.fromkeys(("dense",) if dense else SPARSE, own)
        scanned = {} if bank is None else {kind: bank.scanned(layers, kind) for kind, layers in kinds.items()}
        if dense or routes is None:
            replay = jnp.full((len(run), tokens, copies), -1, jnp.int32)
        else:
            replay = routes[own.start : own.stop]
        step = _LayerStep(config, bank, batch, rows, turn, places, segment.experts, dense)
        together = layers_at_once()
        if SAVED[remat] is not None:
            # Where layers stand beside each other in the program, XLA would compute all of them again at once.
            step, together = jax.checkpoint(_Kept(step, tokens), policy=SAVED[remat]), 1
            x = own_rows(x)
        first = jnp.asarray([run.start, own.start], jnp.int32)
        count = jnp.arange(len(run), dtype=jnp.int32)
        (x, kv), (ids, load, written) = jax.lax.scan(
            lambda carry, xs, step=step, first=first: step(carry, first, xs),
            (x, kv),
            (count, segment.block, scanned, replay),
            unroll=min(len(run), together),
        )
        x = all_rows(x, tokens)
        gates.append(written)
        if dense:
            dense_seen += len(run)
        else:
            sparse_seen += len(run)
            taken.append(ids)
            loads.append(load)
    hidden = rms_norm(x, base.final_norm[...], config.norm_epsilon)
    wrote = None if gates[0] is None else _in_order(jnp.concatenate(gates)) * (1.0 / config.layers)
    if not taken:
        ids, load = jnp.zeros((0, tokens, copies), jnp.int32), jnp.zeros((0, config.experts), jnp.float32)
        return hidden, kv, Routes(ids, load, wrote)
    return hidden, kv, Routes(jnp.concatenate(taken), jnp.concatenate(loads), wrote)


def _in_order(x: Float[Array, "L T"]) -> Float[Array, "T"]:
    """The sum over layers, one after another."""
    total = x[0]
    for layer in range(1, x.shape[0]):
        total = total + x[layer]
    return total


@dataclass(frozen=True, eq=False)
class _LayerStep:
    """The body scanned over the layers of a segment, with what all of them share."""

    config: ModelConfig
    bank: AdapterBank | None
    batch: TokenBatch
    rows: Rows | None
    turn: tuple[Array, Array]
    places: tuple[Array, list[Region]]
    experts: Experts | None
    dense: bool

    def __call__(self, carry, first, xs):
        x, pool = carry
        index, block, scanned, replay = xs
        c, layer, own = self.config, first[0] + index, first[1] + index
        sites: dict[str, Adapters] = {kind: {} for kind in ("attention", "dense", *SPARSE)}
        if self.bank is not None:
            for kind in sites.keys() & scanned.keys():
                sites[kind] = self.bank.at(layer if kind == "attention" else own, kind, scanned[kind])
        y = rms_norm(x, block.input_norm[...], c.norm_epsilon)
        steering, pool, gates = self._remember(y, pool, layer, scanned)
        attend, cache = mla if c.kv_rank else attention, (pool, layer, self.turn)
        y, pool = attend(y, block.attention, c, sites["attention"], self.rows, self.batch, cache, steering)
        x = x + y
        y = rms_norm(x, block.post_norm[...], c.norm_epsilon)
        if self.experts is None:
            y = mlp(y, block.feed, sites["dense"], self.rows)
            return (x + y, pool), (replay, jnp.zeros(c.experts, jnp.float32), gates)
        routing = route(y, block.feed, c, replay)
        routed = moe(y, self.experts, index, routing, (sites["experts"], sites["across_experts"]), self.places)
        if block.shared_experts is not None:
            routed = routed + mlp(y, block.shared_experts, sites["shared_experts"], self.rows, "shared_experts.")
        load = jnp.sum(jnp.where((self.batch.positions >= 0)[:, None], routing.scores, 0.0), axis=0)
        return (x + routed, pool), (routing.ids, load, gates)

    def _remember(self, x, pool, layer, scanned) -> tuple[Steering | None, KVPool, Array | None]:
        """What tokens read of their memories, and the pool with what they wrote; nothing where no adapter has one."""
        found = None if self.bank is None else self.bank.memory_at(layer, scanned["memory"])
        if found is None or self.rows is None:
            return None, pool, None
        if pool.memory is None or self.batch.memory is None:
            raise ValueError("the bank has room for memories, and batch or pool have none")
        steering, held, gates = remember(x, found, self.rows, self.batch, pool.memory, layer)
        return steering, replace(pool, memory=held), gates


@dataclass(frozen=True, eq=False)
class _Kept:
    """A step whose input is kept for the backward pass: each shard of `model` keeps its own rows of it, gathered where
    the layer begins (sequence parallelism, Korthikanti et al. 2022, of what is kept). No bit depends on it.
    """

    step: _LayerStep
    tokens: int

    def __call__(self, carry, first, xs):
        x, pool = carry
        (x, pool), found = self.step((all_rows(x, self.tokens), pool), first, xs)
        return (own_rows(x), pool), found


def embed(table: Float[Array, "V D"], tokens: Int32[Array, "T"]) -> Float[Array, "T D"]:
    """A row of the table for each token; the table may be divided over the vocabulary."""
    if size(MODEL) == 1:
        return jnp.take(table, tokens, axis=0)
    local, inside = own_part(tokens, table.shape[0])
    return leave(jnp.where(inside[:, None], jnp.take(table, local, axis=0), 0))


def unembed(base: Base, bank: AdapterBank | None, hidden: Float[Array, "Q D"], rows: Rows) -> Float[Array, "Q V"]:
    """Float32 logits of final hidden states, each row with its own slot's adapter; `rows` are owned by slots.

    Of this shard's part of the vocabulary.
    """
    hidden = enter(hidden)
    matrix = base.embed[...] if base.unembed is None else base.unembed[...]
    if bank is None:
        return dot(hidden, matrix)
    sites = bank.at(jnp.asarray(0, jnp.int32), "unembed", _first(bank.scanned(range(1), "unembed")))
    return adapted(dot(hidden, matrix), hidden, sites.get("unembed"), rows)


def _first(stacked: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    return jax.tree.map(lambda x: x[0], stacked)
