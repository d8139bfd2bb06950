"""AdamW over slots against the paper's formula, one slot at a time in float64 numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.adapters.bank import empty_bank
from pefx.compiler import jit
from pefx.config import AdapterSpec
from pefx.optim import Gradients, Hyper, OptState, init_opt, update_slots
from tests.model_small import MODEL

SLOTS = 3
SHAPES = {
    "q_proj": {"a": (2, SLOTS, 8, 5), "b": (2, SLOTS, 8, 3)},
    "experts.up_proj": {"a": (1, SLOTS, 4, 8, 2), "b": (1, SLOTS, 4, 8, 3)},
}

_EACH = np.arange(SLOTS, dtype=np.int32)
_step = jit(update_slots)


def _update(params, opt: OptState, gradients: Gradients, hyper: Hyper, apply):
    return _step(params, opt, gradients, _EACH, hyper, apply)


def tree(rng, size=1.0):
    def draw(shape):
        return jnp.asarray(rng.normal(size=shape) * size, jnp.float32)

    return {site: {name: draw(shape) for name, shape in pair.items()} for site, pair in SHAPES.items()}


def start() -> OptState:
    mu, nu, gradient = (jax.tree.map(jnp.zeros_like, tree(np.random.default_rng(0))) for _ in range(3))
    return OptState(mu, nu, gradient, np.zeros(SLOTS, np.float32), np.zeros(SLOTS, np.int32))


def hyper_of(rng) -> Hyper:
    """Every slot with numbers of its own; the clip bites in some."""
    low = np.array([1e-3, 0.0, 0.5, 0.8, 0.9, 1e-8], np.float32)
    high = np.array([1e-1, 0.3, 5.0, 0.95, 0.999, 1e-3], np.float32)
    return Hyper(*rng.uniform(low, high, (SLOTS, 6)).astype(np.float32).T.copy())


def flat(values, slot) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64)[:, slot].ravel() for x in jax.tree.leaves(values)])


def by_hand(param, mu, nu, gradient, weight, count, numbers):
    """One AdamW update: clipped mean gradient, moments with bias correction, decoupled decay."""
    rate, decay, clip, beta1, beta2, epsilon = (float(x) for x in numbers)
    gradient = gradient / weight
    norm = np.sqrt((gradient**2).sum())
    gradient = gradient * min(1.0, clip / norm)
    mu, nu, count = beta1 * mu + (1 - beta1) * gradient, beta2 * nu + (1 - beta2) * gradient**2, count + 1
    step = mu / (1 - beta1**count) / (np.sqrt(nu / (1 - beta2**count)) + epsilon)
    return param - rate * (step + decay * param), mu, nu, count, norm


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)


@settings(max_examples=10)
@given(st.integers(0, 99), st.lists(st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS), min_size=1, max_size=4))
def test_each_slot_is_its_own_adamw(seed, applied):
    rng = np.random.default_rng(seed)
    params, opt, hyper = tree(rng), start(), hyper_of(rng)
    numbers = np.stack([np.asarray(x) for x in jax.tree.leaves(hyper)], 1)
    for apply in applied:
        gradient, weight = tree(rng, rng.choice([0.1, 10.0])), rng.uniform(0.5, 90, SLOTS).astype(np.float32)
        opt = replace(opt, gradient=jax.tree.map(jnp.zeros_like, gradient), weight=np.zeros(SLOTS, np.float32))
        new, after, norm = _update(params, opt, Gradients(gradient, weight), hyper, np.array(apply))
        for slot in range(SLOTS):
            p, mu, nu, g = (flat(x, slot) for x in (params, opt.mu, opt.nu, gradient))
            want = by_hand(p, mu, nu, g, float(weight[slot]), int(opt.count[slot]), numbers[slot])
            np.testing.assert_allclose(norm[slot], want[4], rtol=1e-5)
            if apply[slot]:
                for got, wanted in zip((new, after.mu, after.nu), want, strict=False):
                    close(flat(got, slot), wanted)
                assert int(after.count[slot]) == int(opt.count[slot]) + 1
                assert float(after.weight[slot]) == 0
                assert not flat(after.gradient, slot).any()
            else:
                kept = replace(opt, gradient=gradient, weight=weight)
                assert_slot_is_untouched(slot, (params, kept), (new, after))
        params, opt = new, after


def assert_slot_is_untouched(slot, before, after):
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        axis = (slice(None), slot) if np.ndim(old) > 1 else slot
        assert np.asarray(old)[axis].tobytes() == np.asarray(new)[axis].tobytes()


def test_a_slot_without_a_weighted_token_keeps_everything():
    rng = np.random.default_rng(0)
    opt = replace(start(), mu=tree(rng), nu=jax.tree.map(jnp.abs, tree(rng)), count=np.array([4, 5, 6], np.int32))
    gradient = jax.tree.map(lambda x: x.at[:, 1].set(0), tree(rng))
    params = tree(rng)
    gradients = Gradients(gradient, np.array([2, 0, 3], np.float32))
    new, after, norm = _update(params, opt, gradients, hyper_of(rng), np.ones(SLOTS, bool))
    assert_slot_is_untouched(1, (params, opt), (new, after))
    np.testing.assert_array_equal(after.count, [5, 5, 7])
    assert float(norm[1]) == 0
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((new, after)))


def test_one_slots_numbers_do_not_reach_another():
    rng = np.random.default_rng(1)
    params, hyper = tree(rng), hyper_of(rng)
    opt, gradients = start(), Gradients(tree(rng), np.ones(SLOTS, np.float32))
    once = _update(params, opt, gradients, hyper, np.ones(SLOTS, bool))

    def spoil(x):
        x = np.array(x)
        x[(slice(None), 2) if x.ndim > 1 else 2] = np.nan if x.dtype == np.float32 else 77
        return jnp.asarray(x)

    other = jax.tree.map(spoil, (params, opt, gradients, hyper))
    spoiled = _update(other[0], other[1], other[2], other[3], np.ones(SLOTS, bool))
    for slot in (0, 1):
        assert_slot_is_untouched(slot, once, spoiled)


def test_a_fresh_state_is_zero_and_shaped_like_the_bank():
    bank = empty_bank(MODEL, AdapterSpec(rank=2), 4)
    opt = init_opt(bank)
    for moments in (opt.mu, opt.nu, opt.gradient):
        assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, bank.factors)
    assert opt.weight.shape == opt.count.shape == (4,)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(opt))
    # Trees of their own: a donated state must not take another with it.
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((opt.mu, opt.nu, opt.gradient))]
    assert len(set(pointers)) == len(pointers)
