"""From a rate that was found at one rank to another: the rules, what they keep, and what they refuse."""

import math
from typing import Any

import pytest

from pefx.adapters.methods.table import scale
from pefx.config import AdapterSpec, Record, Scaling
from pefx.errors import PefxError
from pefx.sweeping.transfer import ALPHAS, METHOD_POWERS, RULES, at


def record(alpha: Any = "by_rank", rate: Any = "unchanged", **fields: Any) -> Record:
    return Record(AdapterSpec(rank=4, alpha=8.0, **fields), 2e-3, Scaling(alpha, rate))


@pytest.mark.parametrize(("alpha", "there"), [("by_rank", 128.0), ("by_root", 32.0), ("constant", 8.0)])
def test_alpha_follows_its_rule_and_the_rate_stays(alpha, there):
    found = at(record(alpha), 64)
    assert (found.adapter.rank, found.adapter.alpha, found.learning_rate) == (64, there, 2e-3)
    assert found.scaling == record(alpha).scaling


def test_its_own_rank_is_itself():
    assert at(record("by_rank", "mu_a"), 4) == record("by_rank", "mu_a")


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus"])
@pytest.mark.parametrize("alpha", ["by_rank", "by_root", "constant"])
def test_powers_of_methods_are_those_of_their_scales(method, alpha):
    found = at(record(alpha, method=method), 64)
    power = float(ALPHAS[found.scaling.alpha] - METHOD_POWERS[method])
    assert math.isclose(scale(found.adapter) / scale(record(alpha, method=method).adapter), 16**power)


@pytest.mark.parametrize("alpha", ["by_rank", "by_root", "constant"])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_the_first_step_moves_the_product_as_far(alpha, rank):
    found = at(record(alpha, "first_step"), rank)
    assert math.isclose(found.learning_rate * found.adapter.alpha**2 / rank, 2e-3 * 8.0**2 / 4)


def test_maximal_updates_under_adam():
    assert at(record("constant", "mu_a"), 64).learning_rate == 2e-3
    for fields in ({"alpha": "by_root"}, {"alpha": "constant", "method": "rslora"}):
        assert math.isclose(at(record(rate="mu_a", **fields), 64).learning_rate, 2e-3 * 16**-0.25)


@pytest.mark.parametrize("rate", sorted(RULES))
@pytest.mark.parametrize("alpha", sorted(ALPHAS))
def test_there_and_back(rate, alpha):
    if (alpha, rate) == ("by_rank", "mu_a"):
        return
    back = at(at(record(alpha, rate), 64), 4)
    assert math.isclose(back.adapter.alpha, 8.0)
    assert math.isclose(back.learning_rate, 2e-3)


@pytest.mark.parametrize(
    ("own", "rank", "told"),
    [
        (record(), 0, "rank 0 is none"),
        (record("by_rank", "mu_a"), 8, "'lora' with alpha 'by_rank'; it does of alpha 'by_root', 'constant'"),
        (record("by_root", "first_step", method="vera"), 8, "of lora, lora_plus, rslora .* not of method 'vera'"),
        (record("by_root", "mu_a", init="minor"), 8, "not of method 'lora', init 'minor'"),
        (record("by_root", "mu_a", frozen="a"), 8, "frozen 'a'; 'unchanged' is of all"),
    ],
)
def test_what_a_rule_does_not_say_is_an_error(own, rank, told):
    with pytest.raises(PefxError, match=told):
        at(own, rank)
