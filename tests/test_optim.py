import jax
import jax.numpy as jnp
import numpy as np

from pefx.adapters.bank import Bank
from pefx.compiler import jit
from pefx.optim import Gradients, Hyper, init_opt, update_slots

TO_THE_BIT = True

RNG = np.random.default_rng(0)
SLOTS = 3
EACH = np.arange(SLOTS, dtype=np.int32)


def _bank() -> Bank:
    factors = {"q_proj": {n: jnp.asarray(RNG.normal(size=(2, SLOTS, 8, 5)), jnp.float32) for n in ("a", "b")}}
    return Bank(factors, jnp.ones(SLOTS, jnp.float32))


def _hyper() -> Hyper:
    columns = ([0.1, 0.02, 0.3], [0.1, 0.0, 0.2], [1.0, 0.5, 100.0], [0.9] * 3, [0.95] * 3, [1e-8] * 3)
    return Hyper(*(jnp.asarray(c, jnp.float32) for c in columns))


def _adamw(p, g, m, v, t, h):
    """The formulas of the paper, float64, for one slot."""
    rate, decay, clip, b1, b2, eps = h
    norm = np.sqrt(sum(np.sum(x**2) for x in g))
    g = [x * min(1.0, clip / norm) for x in g]
    m = [b1 * a + (1 - b1) * x for a, x in zip(m, g, strict=True)]
    v = [b2 * a + (1 - b2) * x**2 for a, x in zip(v, g, strict=True)]
    step = [(a / (1 - b1**t)) / (np.sqrt(b / (1 - b2**t)) + eps) for a, b in zip(m, v, strict=True)]
    return [x - rate * (s + decay * x) for x, s in zip(p, step, strict=True)], m, v, norm


def test_two_updates_follow_the_formulas_slot_by_slot():
    bank, hyper = _bank(), _hyper()
    params, opt = bank.factors, init_opt(bank)
    own = [[np.asarray(x[:, s], np.float64) for x in jax.tree.leaves(params)] for s in range(SLOTS)]
    moments = [([np.zeros_like(x) for x in o], [np.zeros_like(x) for x in o]) for o in own]
    step = jit(update_slots)
    for t in (1, 2):
        gradient = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), params)
        weight = jnp.asarray([4.0, 2.0, 8.0])
        gradients = Gradients(gradient, weight)
        params, opt, norms = step(params, opt, gradients, EACH, hyper, jnp.ones(SLOTS, bool))
        for s in range(SLOTS):
            mean = [np.asarray(g[:, s], np.float64) / float(weight[s]) for g in jax.tree.leaves(gradient)]
            numbers = [float(c[s]) for c in jax.tree.leaves(hyper)]
            own[s], m, v, norm = _adamw(own[s], mean, *moments[s], t, numbers)
            moments[s] = (m, v)
            np.testing.assert_allclose(norms[s], norm, rtol=1e-5)
            for got, want in zip(jax.tree.leaves(params), own[s], strict=True):
                np.testing.assert_allclose(got[:, s], want, rtol=2e-4, atol=2e-5)
    assert opt.count.tolist() == [2, 2, 2]
    assert not any(np.any(x) for x in jax.tree.leaves(opt.gradient))


def test_slots_that_wait_or_have_no_weight_keep_everything():
    bank = _bank()
    gradients = Gradients(jax.tree.map(jnp.ones_like, bank.factors), jnp.asarray([1.0, 0.0, 1.0]))
    apply = jnp.asarray([False, True, True])
    params, after, _ = jit(update_slots)(bank.factors, init_opt(bank), gradients, EACH, _hyper(), apply)
    assert after.count.tolist() == [0, 0, 1]
    assert after.weight.tolist() == [1.0, 0.0, 0.0]
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(bank.factors), strict=True):
        np.testing.assert_array_equal(new[:, :2], old[:, :2])
        assert not np.array_equal(new[:, 2], old[:, 2])


def test_only_the_slots_named_are_updated_and_padding_touches_none():
    bank, hyper = _bank(), _hyper()
    two = jax.tree.map(lambda x: x[:2], hyper)
    gradient = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=(2, 2, *x.shape[2:])), jnp.float32), bank.factors)
    gradients = Gradients(gradient, jnp.asarray([1.0, 1.0]))
    # The last slot is active, and the padding row behind it must not write it again.
    slots, apply = np.array([2, SLOTS], np.int32), jnp.asarray([True, True])
    params, after, norms = jit(update_slots)(bank.factors, init_opt(bank), gradients, slots, two, apply)
    assert after.count.tolist() == [0, 0, 1]
    assert norms.shape == (2,)
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(bank.factors), strict=True):
        np.testing.assert_array_equal(new[:, :2], old[:, :2])
        assert not np.array_equal(new[:, 2], old[:, 2])


def test_without_room_to_accumulate_every_step_is_an_update_with_the_same_bits():
    bank, hyper = _bank(), _hyper()
    gradient = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), bank.factors)
    gradients, apply = Gradients(gradient, jnp.asarray([4.0, 0.0, 8.0])), jnp.ones(SLOTS, bool)
    results = [
        jit(update_slots)(bank.factors, init_opt(bank, accumulate), gradients, EACH, hyper, apply)
        for accumulate in (True, False)
    ]
    assert results[1][1].gradient is None
    for kept, plain in zip(jax.tree.leaves(results[0][0]), jax.tree.leaves(results[1][0]), strict=True):
        np.testing.assert_array_equal(kept, plain)
    assert results[0][1].count.tolist() == results[1][1].count.tolist() == [1, 0, 1]
    assert not results[1][1].weight.any()
