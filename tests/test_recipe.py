"""Which adapters' factors are made of other numbers, and which a plain bank cannot hold."""

import pytest

from pefx.adapters.methods.recipe import Recipe, check_exchangeable, check_no_memory, needs_room, recipe_of, recipes_of
from pefx.config import AdapterSpec
from pefx.errors import PefxError

PLAIN, VERA, GAINS = AdapterSpec(), AdapterSpec(method="vera", rank=4), AdapterSpec(method="ia3", targets=("k_proj",))


def test_recipes_are_of_methods_that_derive():
    assert recipe_of(PLAIN) is recipe_of(GAINS) is None
    assert recipe_of(VERA) == Recipe("vera", 4)
    other = AdapterSpec(method="dora", rank=4, alpha=1.0)
    assert recipes_of([VERA, PLAIN, other, VERA]) == (Recipe("dora", 4), Recipe("vera", 4))
    assert Recipe("vera", 4).name == "vera-4"


def test_adapters_that_share_over_other_sites_are_made_in_another_way():
    one, other = (
        AdapterSpec("tiny_lora", 2, targets=targets, tied="all") for targets in (("o_proj", "q_proj"), ("q_proj",))
    )
    found = recipe_of(one)
    assert found == Recipe("tiny_lora", 2, 2, True, sites=("q_proj", "o_proj"))
    assert found != recipe_of(other)
    # What they share on a base is the same.
    assert {recipe.name for recipe in recipes_of([one, other])} == {"tiny_lora-2-2-True"}


def test_a_memory_is_named():
    check_no_memory(VERA)
    for method in ("delta_mem", "delta_state"):
        with pytest.raises(PefxError, match=f"'{method}' is no part of a base's weights: a memory cannot be merged or"):
            check_no_memory(AdapterSpec(method, 8, targets=("memory",)))


def test_what_is_no_pair_of_factors_is_named():
    assert [needs_room(spec) for spec in (PLAIN, VERA, GAINS)] == [False, True, True]
    check_exchangeable(PLAIN)
    with pytest.raises(PefxError, match="an adapter of method 'ia3', init 'default', is no pair"):
        check_exchangeable(GAINS)
