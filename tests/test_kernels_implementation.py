"""Which form of a kernel runs: named, or the best there is."""

import jax
import jax.numpy as jnp
import pytest

from kernels.implementation import INTERPRETED, PALLAS, PORTABLE, implementation, interpreter, use_pallas


def test_without_a_name_the_platform_decides():
    assert jax.default_backend() == "cpu"
    assert not use_pallas("some_kernel", None)
    assert interpreter() is False


@pytest.mark.parametrize(("name", "pallas"), [(PALLAS, True), (INTERPRETED, True), (PORTABLE, False), (None, False)])
def test_a_named_form_is_taken_and_the_choice_ends_with_the_block(name, pallas):
    with implementation(PALLAS), implementation(name):
        assert use_pallas("some_kernel", None) == pallas
        assert bool(interpreter()) == (name == INTERPRETED)
    assert not use_pallas("some_kernel", None)


def test_a_named_form_that_cannot_take_the_shapes_raises_and_the_default_does_not():
    with implementation(PALLAS), pytest.raises(ValueError, match="some_kernel has no pallas_tpu form here: too odd"):
        use_pallas("some_kernel", "too odd")
    assert not use_pallas("some_kernel", "too odd")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'cuda'"):
        implementation("cuda")


def test_the_choice_is_part_of_what_jit_remembers():
    @jax.jit
    def chosen(x):
        return x + int(use_pallas("some_kernel", None))

    one = jnp.asarray(1)
    assert chosen(one) == 1
    with implementation(PALLAS):
        assert chosen(one) == 2
    assert chosen(one) == 1
