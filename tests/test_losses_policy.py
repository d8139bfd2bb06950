"""Every loss of the table, values and gradients, against its formula in float64; none meets the numbers of another."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.compiler import jit
from pefx.losses.policy import SURROGATES, policy_losses
from pefx.losses.rows import LOSSES
from tests.policy_oracle import Case, Numbers, default, draw, gradients, lay_out, pieces

TO_THE_BIT = True
NAMES = list(LOSSES)


@jit
def _run(logprobs, entropies, weights, batch, terms, numbers):
    def total(logprobs, entropies):
        losses = policy_losses(logprobs, entropies, weights, batch, terms, numbers)
        return jnp.sum(losses), losses

    (by_logprobs, by_entropies), losses = jax.grad(total, (0, 1), has_aux=True)(logprobs, entropies)
    return losses, by_logprobs, by_entropies


def found(case: Case) -> list[np.ndarray]:
    """Losses and gradients in log-probabilities and in entropies, by row."""
    return [
        np.asarray(x) for x in _run(case.logprobs, case.entropies, case.weights, case.batch, case.terms, case.numbers)
    ]


WIDE = {"clip_low": 0.15, "clip_high": 0.25, "beta": 0.4}


@pytest.mark.parametrize("changes", [{}, WIDE, WIDE | {"kl": 0.3, "entropy": 0.2}], ids=["default", "wide", "anchored"])
@pytest.mark.parametrize("order", ["as they come", "another"])
def test_values_and_gradients_are_those_of_the_formulas(changes, order):
    numbers = [default(name, **changes) for name in NAMES]
    told = draw(numbers, seed=len(changes))
    places = range(len(told)) if order == "as they come" else np.random.default_rng(3).permutation(len(told)).tolist()
    case = lay_out(told, numbers, places)
    losses, by_logprobs, by_entropies = found(case)
    wanted = zip(told, pieces(told, numbers, [x.logprobs for x in told]), gradients(told, numbers), strict=True)
    covered = np.zeros(len(losses), bool)
    for here, (own, value, slope) in zip(case.rows, wanted, strict=True):
        name = numbers[own.slot].loss
        np.testing.assert_allclose(losses[here], value, rtol=2e-5, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(by_logprobs[here], slope, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(by_entropies[here], -numbers[own.slot].entropy * own.weights, rtol=1e-6)
        assert np.any(losses[here] != 0), name
        covered[here] = True
    # Rows of nobody are in no loss.
    assert not any(x[~covered].any() for x in (losses, by_logprobs, by_entropies))


def test_ratios_on_both_sides_of_both_bounds_are_met():
    """What the test above draws holds tokens within the bounds, beyond the upper and the lower, of either sign."""
    numbers = [default("ppo", **WIDE)] * 6
    told = draw(numbers, seed=len(WIDE))
    kinds = {
        (int(np.digitize(np.exp(drift), [0.85, 1.25])), bool(a > 0))
        for x in told
        for drift, a in zip(x.logprobs - x.old, x.advantages, strict=True)
    }
    assert len(kinds) == 6


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_another_loss_reaches_a_token(name):
    """Others a hundred nats from their old policies: this one's bits stay, and nobody gets a NaN."""
    numbers = [default(x, kl=0.1, entropy=0.1) for x in NAMES]
    told = draw(numbers, seed=5)
    own = NAMES.index(name)
    rng = np.random.default_rng(6)

    def far(x):
        sign = rng.choice([-100.0, 100.0], len(x.logprobs))
        return x if x.slot == own else replace(x, old=x.logprobs + sign, base=x.logprobs - sign)

    calm = found(lay_out(told, numbers, range(len(told))))
    case = lay_out([far(x) for x in told], numbers, range(len(told)), empty=-np.inf)
    stormy = found(case)
    for one, two in zip(calm, stormy, strict=True):
        assert np.isfinite(two).all()
        for here in case.rows[2 * own : 2 * own + 2]:
            assert one[here].tobytes() == two[here].tobytes()


def test_what_a_loss_does_not_read_may_be_anything():
    numbers = [default(name) for name in NAMES]
    told = draw(numbers, seed=10)

    def unread(x):
        row, nothing = LOSSES[numbers[x.slot].loss], np.full(len(x.logprobs), np.nan)
        x = x if row.old == "base" else replace(x, base=nothing)
        x = x if row.old not in ("none", "base") else replace(x, old=nothing)
        return x if row.advantage != "none" else replace(x, advantages=nothing)

    plain = found(lay_out(told, numbers, range(len(told))))
    strange = found(lay_out([unread(x) for x in told], numbers, range(len(told))))
    for one, two in zip(plain, strange, strict=True):
        assert np.isfinite(two).all()
        assert one.tobytes() == two.tobytes()


def test_a_ratio_past_all_bounds_is_cut_and_has_no_gradient():
    numbers = [default(name) for name in NAMES]
    told = [replace(x, old=x.logprobs - 100, base=x.logprobs + 100) for x in draw(numbers, seed=7)]
    case = lay_out(told, numbers, range(len(told)))
    losses, slopes, _ = found(case)
    assert np.isfinite(losses).all()
    assert np.isfinite(slopes).all()
    here = case.rows[2 * NAMES.index("importance_sampling")]
    own = told[2 * NAMES.index("importance_sampling")]
    np.testing.assert_allclose(losses[here], -np.exp(20) * own.advantages * own.weights, rtol=1e-5)
    assert not slopes[here].any()


def test_a_token_without_weight_or_advantage_is_inert():
    names = [name for name in NAMES if LOSSES[name].advantage != "none" and name not in ("dro", "dpo")]
    numbers = [default(name) for name in names]
    told = [replace(x, advantages=0 * x.advantages) for x in draw(numbers, seed=8)]
    losses, slopes, _ = found(lay_out(told, numbers, range(len(told))))
    assert not losses.any()
    assert not slopes.any()

    # What a token without weight holds reaches nothing, not even the sums over its sequence.
    numbers = [default(name, kl=0.1, entropy=0.1) for name in NAMES]
    told, rng = draw(numbers, seed=9), np.random.default_rng(9)

    def other(x, name):
        values = getattr(x, name)
        return np.where(x.weights == 0, rng.choice([np.inf, -np.inf, 7.0, -100.0], len(values)), values)

    def changed(x):
        kept = ("slot", "weights", "partner")
        return replace(x, **{name: other(x, name) for name in vars(x) if name not in kept})

    plain = found(lay_out(told, numbers, range(len(told))))
    strange = found(lay_out([changed(x) for x in told], numbers, range(len(told))))
    for one, two in zip(plain, strange, strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_pair_costs_what_its_two_sequences_share():
    """With weights 1/n in each, half the sum over both is the loss of the pair, and moves both."""
    numbers = [default("dpo")]
    told = [replace(x, weights=np.full(len(x.weights), 1 / len(x.weights))) for x in draw(numbers, seed=2)]
    case = lay_out(told, numbers, [1, 0])
    losses, slopes, _ = found(case)
    better, worse = ((x.logprobs - x.base).sum() for x in told)
    margin = numbers[0].beta * (better - worse)
    np.testing.assert_allclose(losses.sum() / 2, np.log1p(np.exp(-margin)), rtol=1e-5)
    push = numbers[0].beta / (1 + np.exp(margin))
    np.testing.assert_allclose(slopes[case.rows[0]] / 2, -push, rtol=1e-5)
    np.testing.assert_allclose(slopes[case.rows[1]] / 2, push, rtol=1e-5)


def test_a_sequence_without_a_partner_is_compared_to_nothing():
    numbers = [default("dpo"), default("dpo")]
    told = [replace(x, partner=-1) for x in draw(numbers, seed=4)]
    case = lay_out(told, numbers, range(len(told)))
    wanted = np.concatenate(pieces(told, numbers, [x.logprobs for x in told]))
    np.testing.assert_allclose(np.concatenate([found(case)[0][here] for here in case.rows]), wanted, rtol=2e-5)


def test_one_sequence_alone_and_among_others_has_the_same_bits():
    numbers = [default("gspo", clip_low=0.2, clip_high=0.2), default("dpo")]
    told = draw(numbers, seed=11)
    for its, own in (
        (numbers[:1], told[:2]),
        (numbers[1:], [replace(x, slot=0, partner=1 - i) for i, x in enumerate(told[2:])]),
    ):
        first = 0 if its[0].loss == "gspo" else 2
        alone, among = lay_out(own, its, [0, 1]), lay_out(told, numbers, [3, 0, 2, 1])
        for one, two in zip(found(alone), found(among), strict=True):
            for i in (0, 1):
                assert one[alone.rows[i]].tobytes() == two[among.rows[first + i]].tobytes()


def test_every_surrogate_of_the_table_is_there_and_used():
    assert {row.surrogate for row in LOSSES.values()} == set(SURROGATES)
    assert all(isinstance(default(name), Numbers) for name in NAMES)
