"""The seam: the only functions trainer and server import of the model. Pure, jitted, state donated.

All of them call the same `forward`. Training is a prefill into a fresh pool.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int32

from kernels.rows import rows_of
from pefx.adapters.bank import Bank, rederived
from pefx.adapters.derivation import pulled
from pefx.adapters.matrices import matrices, matrix_axes, untied
from pefx.adapters.sharded_slots import by_slot
from pefx.adapters.sites import SITES, is_partial
from pefx.batch import Array, KVPool, TokenBatch
from pefx.collectives import of_group, over_data, over_model, over_rows, whole_width
from pefx.compiler import jit
from pefx.config import Remat
from pefx.losses.policy import PolicyNumbers, PolicyTerms, policy_losses
from pefx.losses.token import balance, cross_entropy, entropies, sum_by_slot, token_logprobs
from pefx.mesh import ROWS, RULES, by_page, by_row, of_base, sharded
from pefx.model import AdapterBank, Base, Routes, forward, unembed
from pefx.optim import Gradients, Hyper, OptState, adamw, update_slots
from pefx.packing import COMMIT
from pefx.parcel import Parcel, unwrap
from pefx.sampling import Sampling, Shaping, sample, shaped

# Of what memories are written with, the mean gate, and the weight of its squared distance from that (2605.12357).
GATES, SPARSITY = 0.05, 0.01
BALANCE = 0.01  # weight of the routers' load balance when a base trains (Fedus et al. 2021)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """A teacher-forced batch. `targets[t]` is the token after row t (-1: none), `weights[t]` its weight in the loss.

    `policy` is what losses of the table read beside it (None: every loss is cross entropy). `routes` are recorded
    experts of each row and expert layer, to be chosen again (-1: as the router says now; None: everywhere).
    """

    tokens: TokenBatch
    targets: Int32[Array, "T"]
    weights: Float[Array, "T"]
    policy: PolicyTerms | None = None
    routes: Int32[Array, "T Lm k"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainHyper:
    """Numbers of the `A` active adapters: `slots` in the bank (N for padding), AdamW's, and whether to update now;
    `policy`, their losses, where the batch has policy terms; `rates`, by leaf, the multiple of the learning rate that
    each learns it with, 0 where it is not trained (None: all with the learning rate); `states`, the share of the bank's
    states of a memory that each has, 0 of adapters without one (None: nobody has).
    """

    slots: Int32[Array, "A"]
    learning_rate: Float[Array, "A"]
    weight_decay: Float[Array, "A"]
    clip: Float[Array, "A"]
    beta1: Float[Array, "A"]
    beta2: Float[Array, "A"]
    epsilon: Float[Array, "A"]
    apply: Bool[Array, "A"]
    policy: PolicyNumbers | None = None
    rates: dict[str, Float[Array, "A"]] | None = None
    states: Float[Array, "A"] | None = None

    def numbers(self) -> Hyper:
        return Hyper(self.learning_rate, self.weight_decay, self.clip, self.beta1, self.beta2, self.epsilon)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainMetrics:
    """Per active adapter: mean nats a token, weight of the tokens, norm of its mean gradient; and all `logprobs[t]`.

    Of losses of the table: the sum over the denominator, the denominator; and the `entropies[t]` of what rows predict.
    """

    loss: Float[Array, "A"]
    tokens: Float[Array, "A"]
    gradient_norm: Float[Array, "A"]
    logprobs: Float[Array, "T"]
    entropies: Float[Array, "T"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PretrainMetrics:
    """Of a step of the base: mean nats per token, weight of the tokens, gradient norm, the routers' load balance."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    balance: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServeState:
    """What serving carries from step to step."""

    kv: KVPool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ServePlan:
    """One serving step. `rows` of the batch want their next token's distribution (-1: padding row); `targets` names a
    token to score, or -1 to draw one as `how` and `shaping` (None: of no row) say.

    The first `singles` of them may be any rows, the others come in tiles of the batch's `tile` rows, each of one slot.
    Shaping is of single ones. The `top` likeliest tokens of every row are told.
    """

    batch: TokenBatch
    rows: Int32[Array, "Q"]
    targets: Int32[Array, "Q"]
    how: Sampling
    singles: int = field(metadata={"static": True})
    shaping: Shaping | None = None
    top: int = field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """The token scored or drawn for each wanted row, and its log-probability under the model (nats, temperature 1,
    nothing shaped; 0 for padding rows). The likeliest `top_tokens`, best first, with theirs.
    """

    tokens: Int32[Array, "Q"]
    logprobs: Float[Array, "Q"]
    top_tokens: Int32[Array, "Q K"]
    top_logprobs: Float[Array, "Q K"]


def _fresh_pool(base: Base, bank: AdapterBank | None, batch: TokenBatch) -> KVPool:
    """A pool with one page for each page of a batch of whole sequences."""
    pages, memory = batch.tokens.shape[0] // batch.page_size, None if bank is None else bank.memory
    return KVPool.zeros(base.config, pages, batch.page_size, memory)


def _teacher_forced(
    base: Base, bank: AdapterBank | None, batch: TrainBatch, remat: Remat = "none"
) -> tuple[Float[Array, "T"], Float[Array, "T V"], Routes]:
    """Log-probabilities of the targets, logits of this shard's vocabulary, and routes taken."""
    replay = None if batch.routes is None else jnp.swapaxes(batch.routes, 0, 1)
    hidden, _, routes = forward(base, bank, batch.tokens, _fresh_pool(base, bank, batch.tokens), replay, remat)
    logits = unembed(base, bank, hidden, batch.tokens.by_slot())
    return token_logprobs(logits, batch.targets), logits, routes


@jit
def score(base: Base, bank: Bank | None, batch: TrainBatch) -> Float[Array, "T"]:
    """Teacher-forced log-probabilities of `batch.targets` (nats, 0 where there is none). Slots index the bank."""

    def on_shard(base, bank, batch):
        return _teacher_forced(base, bank, batch)[0]

    return sharded(on_shard, (of_base, by_slot, by_row), lambda specs: ROWS)(base, bank, batch)


@jit
def score_with_routes(
    base: Base, bank: Bank | None, batch: TrainBatch
) -> tuple[Float[Array, "T"], Int32[Array, "T Lm k"]]:
    """`score`, and the experts that each row took in each expert layer, in the form of `batch.routes`."""

    def on_shard(base, bank, batch):
        logprobs, _, routes = _teacher_forced(base, bank, batch)
        return logprobs, jnp.swapaxes(routes.ids, 0, 1)

    return sharded(on_shard, (of_base, by_slot, by_row), lambda specs: (ROWS, ROWS))(base, bank, batch)


@partial(jit, donate_argnames=("bank", "opt"), static_argnames="remat")
def train_step(
    base: Base, bank: Bank, opt: OptState, batch: TrainBatch, hyper: TrainHyper, *, remat: Remat = "none"
) -> tuple[Bank, OptState, TrainMetrics]:
    """One step of every active adapter on its own rows, with its own loss, clip, rate and count.

    `batch.tokens.slots` index `hyper.slots`. Each adapter's gradient sum joins what its slot has accumulated; where
    `hyper.apply`, the slot is updated by the mean over the accumulated weight (of losses of the table: denominators).
    Other slots do not change by a bit. On a mesh all slots are counted within their shard. `remat` trades time for
    memory: see `pefx.config.Remat`. Raises ValueError where only one of batch and hyper has policy fields.
    """
    run = sharded(
        partial(_train_shard, remat), (of_base, by_slot, by_slot, by_row, by_row), lambda specs: (*specs[1:3], ROWS)
    )
    return run(base, bank, opt, batch, hyper)


def _train_shard(remat: Remat, base: Base, bank: Bank, opt: OptState, batch: TrainBatch, hyper: TrainHyper):
    """`train_step` on one shard's slots and rows."""
    asked, hyper = hyper.slots.shape[0], _never_one(hyper, bank.slots)
    active = bank.take(hyper.slots)

    def loss(factors):
        logprobs, logits, routes = _teacher_forced(base, replace(active, factors=factors), batch, remat)
        sums, weight, spread = _slot_losses(logprobs, logits, batch, hyper)
        return jnp.sum(sums + _sparsity(routes, batch.tokens, hyper) * weight), (sums, weight, logprobs, spread)

    sums, (losses, weight, *of_tokens) = jax.grad(loss, has_aux=True)(active.factors)
    gradients = Gradients(_trained(pulled(base, active, _whole_gradient(sums)), hyper.rates), weight)
    factors, opt, norm = update_slots(
        bank.factors, opt, gradients, hyper.slots, hyper.numbers(), hyper.apply, hyper.rates
    )
    bank = rederived(base, replace(bank, factors=factors), hyper.slots)
    means = losses / jnp.maximum(weight, 1e-30)
    return bank, opt, TrainMetrics(means[:asked], weight[:asked], norm[:asked], *of_tokens)


def _slot_losses(logprobs, logits, batch: TrainBatch, hyper: TrainHyper):
    """Each slot's summed loss, what it is divided by, and the tokens' entropies where losses of the table are asked."""
    count, slots = hyper.slots.shape[0], batch.tokens.slots
    if batch.policy is None and hyper.policy is None:
        return *cross_entropy(logprobs, batch.weights, slots, count), None
    if batch.policy is None or hyper.policy is None:
        raise ValueError("a step has policy terms in its batch and policy numbers in its hyper, or neither")
    spread = entropies(logits)
    losses = policy_losses(logprobs, spread, batch.weights, batch.tokens, batch.policy, hyper.policy)
    return sum_by_slot(losses, slots, count), hyper.policy.denominator, spread


def _sparsity(routes: Routes, tokens: TokenBatch, hyper: TrainHyper) -> Float[Array, "A"] | float:
    """What each slot pays for the mean gate that its memories were written with, on average over what it wrote."""
    if routes.gates is None or tokens.memory is None or hyper.states is None:
        return 0.0
    count, slots = hyper.slots.shape[0], jnp.asarray(tokens.slots)
    wrote = ((jnp.asarray(tokens.memory) & COMMIT) > 0).astype(jnp.float32)
    shares = sum_by_slot(wrote, slots, count) * hyper.states
    mean = sum_by_slot(routes.gates, slots, count) / jnp.maximum(shares, 1e-30)
    return jnp.where(shares > 0, SPARSITY * (mean - GATES) ** 2, 0.0)


def _whole_gradient(sums: Any) -> Any:
    """Gradients of factors that are whole on shards of a divided width, each of which has a part of them."""
    return {
        site: {name: over_model(x) if is_partial(site, name) else x for name, x in pair.items()}
        for site, pair in sums.items()
    }


def _trained(sums: Any, rates: dict[str, Array] | None) -> Any:
    """Gradients of what is trained, zeros of what is not."""
    if rates is None:
        return sums

    def chosen(name: str, x: Array) -> Array:
        live = of_group(rates[name]) if x.ndim == 5 else rates[name]
        return jnp.where((live != 0).reshape(1, -1, *(1,) * (x.ndim - 2)), x, 0.0)

    return {site: {name: chosen(name, x) for name, x in leaves.items()} for site, leaves in sums.items()}


def _never_one(hyper: TrainHyper, slots: int) -> TrainHyper:
    """At least two active slots: a loop over a single one is compiled into what is around it, and takes other bits."""
    if hyper.slots.shape[0] > 1:
        return hyper
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), hyper)
    return replace(two, slots=two.slots.at[1].set(slots))


@partial(jit, donate_argnames=("base", "opt"), static_argnames="remat")
def pretrain_step(
    base: Base, opt: optax.OptState, batch: TrainBatch, hyper: Hyper, *, remat: Remat = "none"
) -> tuple[Base, optax.OptState, PretrainMetrics]:
    """One AdamW step of the base itself (`opt` from `init_pretrain`); only matrices decay. `hyper` holds scalars."""

    run = sharded(partial(_pretrain_shard, remat), (of_base, by_row), lambda specs: (specs[0], P()))
    gradient, metrics = run(base, batch)
    with jax.numpy_dtype_promotion("standard"):  # as in pefx.optim
        updates, opt = _pretrain_optimizer(hyper).update(gradient, opt, cast(optax.Params, base))
    base = cast(Base, optax.apply_updates(cast(optax.Params, base), updates))
    return base, opt, metrics


def _pretrain_shard(remat: Remat, base: Base, batch: TrainBatch) -> tuple[Base, PretrainMetrics]:
    """The gradient of the whole batch's mean, from one shard's rows and those of the others."""
    total = jnp.maximum(over_rows(jnp.sum(batch.weights)), 1e-30)
    shards = over_rows(jnp.ones((), jnp.float32))

    def loss(base):
        logprobs, _, routes = _teacher_forced(base, None, batch, remat)
        nats = -jnp.sum(logprobs * batch.weights) / total
        even = balance(routes.load, routes.ids, (batch.tokens.positions >= 0).astype(jnp.float32)) / shards
        return nats + BALANCE * even, (nats, even)

    gradient, (nats, even) = jax.tree.map(over_rows, jax.grad(loss, has_aux=True)(base))
    return gradient, PretrainMetrics(nats, total, optax.tree.norm(gradient), even)


@partial(jit, static_argnames=("sites", "remat"))
def base_gradient(
    base: Base, batch: TrainBatch, *, sites: tuple[str, ...], remat: Remat = "none"
) -> dict[str, Float[Array, "..."]]:
    """The gradient of the batch's summed nats under the bare base, by its matrices `[L, (E,) out, in]` at some sites.

    In the base's precision. Of a tied unembedding, as one that is its own.
    """

    def on_shard(base, batch):
        def loss(base):
            return -jnp.sum(_teacher_forced(base, None, batch, remat)[0] * batch.weights)

        gradient = jax.grad(loss)(untied(base) if "unembed" in sites else base)
        # An expert's shard has met the rows of its whole axis already.
        return {
            site: (over_data if SITES[site].kind == "experts" else over_rows)(matrices(gradient, site))
            for site in sites
        }

    out = {site: P(*[RULES.get(axis) if axis else None for axis in matrix_axes(site)]) for site in sites}
    return sharded(on_shard, (of_base, by_row), lambda specs: out)(base, batch)


def init_pretrain(base: Base) -> optax.OptState:
    """Zero optimizer state for `pretrain_step`."""
    zero = np.zeros((), np.float32)
    return _pretrain_optimizer(Hyper(zero, zero, zero, zero, zero, zero)).init(cast(optax.Params, base))


def _pretrain_optimizer(hyper: Hyper) -> optax.GradientTransformation:
    return adamw(hyper, decayed=lambda tree: jax.tree_util.tree_map_with_path(_decays, tree))


def _decays(path, value) -> bool:
    return not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias"))


@partial(jit, donate_argnames="state")
def serve_step(
    base: Base, bank: Bank | None, state: ServeState, plan: ServePlan | Parcel
) -> tuple[ServeState, Drawn, Int32[Array, "Lm T k"]]:
    """Prefill chunks and decodes of one batch. Returns the state, what was drawn, and the routes taken. The plan may
    come as a parcel.
    """

    def out(specs):
        return specs[2], ROWS, P(None, RULES["rows"])

    run = sharded(_serve_shard, (of_base, by_slot, by_page, by_row), out)
    return run(base, bank, state, plan)


def _serve_shard(base: Base, bank: Bank | None, state: ServeState, plan: ServePlan | Parcel):
    """`serve_step` on one shard's slots, pages and rows."""
    if isinstance(plan, Parcel):
        plan = cast(ServePlan, unwrap(plan))
    hidden, kv, routes = forward(base, bank, plan.batch, state.kv)
    row = jnp.maximum(plan.rows, 0)
    slots = jnp.where(plan.rows >= 0, plan.batch.slots[row], -1)
    logits = unembed(base, bank, hidden[row], rows_of(slots, plan.singles, plan.batch.tile))
    whole = whole_width(logits)
    drawn_from = whole if plan.shaping is None else shaped(whole, plan.shaping)
    drawn = sample(drawn_from, plan.how, plan.batch.positions[row])
    tokens = jnp.where(plan.targets >= 0, plan.targets, drawn)
    _, top = jax.lax.top_k(whole, plan.top)
    told = jnp.where(plan.rows[:, None] >= 0, jnp.concatenate([tokens[:, None], top], axis=1), -1)
    logprobs = jax.vmap(token_logprobs, in_axes=(None, 1), out_axes=1)(logits, told)
    return ServeState(kv), Drawn(tokens, logprobs[:, 0], top, logprobs[:, 1:]), routes.ids
