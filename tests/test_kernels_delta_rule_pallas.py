"""The TPU's delta rule in the interpreter: values, gradients, bits as for the portable form; no races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.delta_rule.api import Tokens, delta_rule
from kernels.delta_rule.pallas_token import Head, Token, apply
from kernels.delta_rule.pallas_tpu import unsupported
from kernels.delta_rule.reference import delta_rule as reference
from kernels.implementation import INTERPRETED, PORTABLE, implementation
from kernels.rows import Rows
from pefx.compiler import jit
from tests.delta_rule_cases import (
    CHAIN,
    COUNT,
    FORMS,
    GROUPS,
    NONE,
    RANK,
    STATES,
    TILE,
    case,
    empty,
    gradient,
    single,
    whole,
)
from tests.interpreter import in_the_interpreter

TO_THE_BIT = True

# The interpreter is slow: of the forms one, the others in the slow suite.
FORM = pytest.mark.parametrize("form", [*(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[:2]), FORMS[2]])


@FORM
def test_values_are_those_of_the_loop(form):
    projected, gather, commit = case(form)
    found = in_the_interpreter(whole, projected, gather, commit, empty(), CHAIN)
    read, state = reference(projected, gather, commit, np.zeros((STATES, RANK, RANK)))
    np.testing.assert_allclose(found.read, read, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.last[-1][:, :RANK], state, rtol=0, atol=1e-5)
    _, early = reference(projected[:21], gather[:21], commit[:21], np.zeros((STATES, RANK, RANK)))
    np.testing.assert_allclose(found.kept[20 // TILE][:, :RANK], early, rtol=0, atol=1e-5)
    with implementation(PORTABLE):
        portable = whole(projected, gather, commit, empty(), CHAIN)
    np.testing.assert_allclose(found.gates, portable.gates, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.last, portable.last, rtol=0, atol=1e-6)  # what a message has gathered, too


@FORM
def test_token_by_token_has_the_bits_of_tiles(form):
    projected, gather, commit = (x[:TILE] for x in case(form))
    found = in_the_interpreter(whole, *case(form), empty(), CHAIN)
    state, reads = empty(4), []
    for t in range(TILE):
        step = in_the_interpreter(single, *(np.stack([x[t]] * 4) for x in (projected, gather, commit)), state)
        reads.append(np.asarray(step.read[2]))
        state = np.asarray(step.last)
    np.testing.assert_array_equal(np.stack(reads), found.read[:TILE])
    np.testing.assert_array_equal(state[0], found.last[0])


def test_a_group_begins_where_it_is_said_to_and_what_is_not_followed_does_not_matter():
    projected, gather, commit = case("tokens")
    starts = np.random.default_rng(1).normal(size=empty().shape).astype(np.float32)
    starts[:, :, RANK:] = 0
    apart = in_the_interpreter(whole, projected, gather, commit, starts, NONE[:GROUPS])
    for group in range(GROUPS):
        here = slice(group * TILE, (group + 1) * TILE)
        read, state = reference(projected[here], gather[here], commit[here], starts[group, :, :RANK])
        np.testing.assert_allclose(apart.read[here], read, rtol=0, atol=1e-5)
        np.testing.assert_allclose(apart.last[group][:, :RANK], state, rtol=0, atol=1e-5)
    starts[1:] = np.nan
    for x in in_the_interpreter(whole, projected, gather, commit, starts, CHAIN):
        assert np.isfinite(np.asarray(x)).all()


@FORM
def test_gradients_of_projections_are_those_of_the_portable_form(form):
    weights = np.random.default_rng(3).normal(size=(COUNT, STATES, RANK)).astype(np.float32)
    found = in_the_interpreter(gradient, *case(form), weights)
    with implementation(PORTABLE):
        expected = gradient(*case(form), weights)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


ROWS = Rows(jnp.zeros(5, jnp.int32), 3, TILE)  # three single rows, two tiles of one sequence


def found_of(projected, gather, commit, starts):
    tokens = Tokens(projected, gather, commit, jnp.arange(len(gather)) == 9)
    return delta_rule(tokens, starts, jnp.arange(5) == 4, ROWS)


@jit
def pulled(projected, gather, commit, starts, cotangents):
    """Gradients of projections and starts, from those of all that is found."""
    _, pull = jax.vjp(lambda projected, starts: found_of(projected, gather, commit, starts), projected, starts)
    return pull(cotangents)


def test_gradients_of_states_and_of_single_rows_are_those_of_the_portable_form():
    rng, rows = np.random.default_rng(4), 3 + 2 * TILE
    projected, gather, commit = (x[:rows] for x in case("some"))
    starts = rng.normal(size=empty(5).shape).astype(np.float32)
    starts[:, :, -1] = 0
    starts[:, :, -1, 0] = 2  # tokens of a message that was begun
    shapes = jax.eval_shape(found_of, projected, gather, commit, starts)
    cotangents = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    cotangents = cotangents._replace(kept=np.where(np.arange(5)[:, None, None, None] == 3, cotangents.kept, 0))
    given = projected, gather, commit, starts, cotangents
    d_projected, d_starts = in_the_interpreter(pulled, *given)
    with implementation(PORTABLE):
        expected = pulled(*given)
    np.testing.assert_allclose(d_projected, expected[0], rtol=0, atol=5e-6)
    here = np.asarray(d_starts)[:, :, : RANK + 3], np.asarray(expected[1])[:, :, : RANK + 3]  # a count has none
    np.testing.assert_allclose(*here, rtol=0, atol=5e-6)
    assert np.abs(here[0][:4]).max() > 0.1
    assert not here[0][4].any()  # it followed another


def test_zeros_behind_change_no_bit():
    """A memory in a room of a higher rank, as one token is computed."""
    rng = np.random.default_rng(5)

    def row(size: int, values: np.ndarray) -> jnp.ndarray:
        return jnp.asarray(np.pad(values, ((0, size - len(values)), (0, size - values.shape[1])))[: len(values)])

    matrix, rows = rng.normal(size=(8, 8)).astype(np.float32), rng.normal(size=(4, 1, 8)).astype(np.float32)
    found = []
    for size in (8, 16):
        zero = jnp.zeros((1, size))
        head = Head(jnp.asarray(np.pad(matrix, (0, size - 8))), zero, zero, zero, zero)
        after, read, _ = apply(head, Token(*(row(size, x) for x in rows)), True, True)
        found.append((np.asarray(after.matrix)[:8, :8], np.asarray(read)[:, :8]))
    for small, large in zip(*found, strict=True):
        np.testing.assert_array_equal(small, large)


def test_what_these_kernels_cannot_take_is_told():
    projected = np.zeros((24, 1, 4, 8), np.float32)
    assert (
        unsupported(projected, Rows(jnp.zeros(2, jnp.int32), 0, 12)) == "tiles of 12 rows (a multiple of 8 is needed)"
    )
    assert unsupported(projected[..., :4], Rows(jnp.zeros(3, jnp.int32), 0, 8)) == "rank 4 (a multiple of 8 is needed)"
    assert unsupported(projected, Rows(jnp.zeros(9, jnp.int32), 8, 16)) is None
    flag, rows = jnp.zeros(12, bool), Rows(jnp.zeros(1, jnp.int32), 0, 12)
    tokens = Tokens(jnp.zeros((12, 1, 4, 8)), flag, flag, flag)
    with implementation(INTERPRETED), pytest.raises(ValueError, match="delta_rule has no pallas_interpret form here"):
        delta_rule(tokens, jnp.zeros((1, 1, 12, 8)), jnp.zeros(1, bool), rows)
