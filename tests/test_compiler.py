"""The one place that sets compiler options: they reach the compiler, and jit stays jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx import compiler
from pefx.compiler import jit


def test_only_the_cpu_needs_options_and_the_table_is_not_shared():
    assert compiler.options("tpu") == compiler.options("gpu") == {}
    mine = compiler.options("cpu")
    assert mine == compiler.CPU_OPTIONS
    mine.clear()
    assert compiler.options("cpu") == compiler.CPU_OPTIONS != {}


def test_the_options_reach_the_compiler(monkeypatch):
    x = np.ones(3, np.float32)
    assert float(jit(jnp.sum)(x)) == 3
    step = jit(lambda y: jnp.sum(y) + 1)
    assert float(step(x)) == 4
    monkeypatch.setitem(compiler.CPU_OPTIONS, "xla_cpu_experimental_ynn_fusion_type", "NO_SUCH_TYPE")
    with pytest.raises(Exception, match=r"NO_SUCH_TYPE|ynn_fusion_type"):
        step(x)


def test_multiply_adds_are_not_contracted():
    a, b, c, d = np.random.default_rng(0).normal(size=(4, 999)).astype(np.float32)
    np.testing.assert_array_equal(jit(lambda a, b, c, d: a * b - c * d)(a, b, c, d), a * b - c * d)


def test_bfloat16_is_rounded_where_the_program_says():
    @jit
    def rounded(x):
        return (x.astype(jnp.bfloat16) + jnp.bfloat16(0)).astype(jnp.float32) * 1.0

    x = np.float32(1 + 2**-9)
    assert float(rounded(x)) == 1.0


def test_it_keeps_the_name_and_passes_jits_arguments():
    def double(x, times=2):
        """Twice."""
        return x * times

    step = jit(double, static_argnames="times", donate_argnums=0)
    assert (step.__name__, step.__doc__) == ("double", "Twice.")
    given = jnp.arange(3, dtype=jnp.float32)
    np.testing.assert_array_equal(step(given, times=3), [0, 3, 6])
    assert given.is_deleted()
    step(jnp.arange(3, dtype=jnp.float32), times=3)
    assert step.jitted()._cache_size() == 1
    assert step.jitted().lower(jax.ShapeDtypeStruct((3,), jnp.float32), times=3).compile()


def test_the_backend_is_looked_up_when_called(monkeypatch):
    asked = []
    real = jax.default_backend
    monkeypatch.setattr(jax, "default_backend", lambda: asked.append(1) or real())
    step = jit(lambda x: x + 1)
    assert not asked
    step(np.float32(1))
    assert asked
