"""Parameters of the base: Flax NNX variables with logical axis names, layers stacked in front."""

import jax
import jax.numpy as jnp
from flax import nnx

# Modules made under different settings of this flag do not tree-map together: it is set once, here.
nnx.use_eager_sharding(False)


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], deviation: float, dtype: str
) -> nnx.Param[jax.Array]:
    """A normal random parameter; `axes` are logical names, one per dimension, for the sharding rules."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axis names for shape {shape}")
    return nnx.Param((jax.random.normal(rngs.params(), shape) * deviation).astype(dtype), out_sharding=axes)


def ones(shape: tuple[int, ...], axes: tuple[str, ...], dtype: str) -> nnx.Param[jax.Array]:
    """A parameter of ones (the weight of a norm)."""
    return nnx.Param(jnp.ones(shape, dtype), out_sharding=axes)


def zeros(shape: tuple[int, ...], axes: tuple[str, ...], dtype: str) -> nnx.Param[jax.Array]:
    """A parameter of zeros (a bias)."""
    return nnx.Param(jnp.zeros(shape, dtype), out_sharding=axes)
