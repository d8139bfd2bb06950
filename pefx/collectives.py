"""What shards tell each other within a step. Where an axis has one shard, or there is no mesh, nothing is done.

A block whose width is divided over `model` begins with `enter` and ends with `leave` (Shoeybi et al. 2019, section 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pefx.mesh import DATA, EXPERT, MODEL


def size(axis: str) -> int:
    """Shards along a mesh axis, within `pefx.mesh.sharded`; 1 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def index(axis: str) -> Int32[Array, ""]:
    """This shard's place along an axis."""
    return jax.lax.axis_index(axis).astype(jnp.int32) if size(axis) > 1 else jnp.zeros((), jnp.int32)


def over_rows(x: Any) -> Any:
    """The sum over all shards of rows of what each has."""
    axes = tuple(axis for axis in (DATA, EXPERT) if size(axis) > 1)
    return jax.lax.psum(x, axes) if axes else x


def over_data(x: Any) -> Any:
    """The sum over the shards of data of what each has."""
    return jax.lax.psum(x, DATA) if size(DATA) > 1 else x


def over_model(x: Any) -> Any:
    """The sum over the parts of a width, not differentiated."""
    return jax.lax.psum(x, MODEL) if size(MODEL) > 1 else x


def enter(x: Array) -> Array:
    """`x`, whole on every shard of `model`, where a divided block reads it: its gradient is the sum of theirs."""
    return _enter(x) if size(MODEL) > 1 else x


def leave(x: Array) -> Array:
    """The sum of the partial results of a divided block's shards."""
    return _leave(x) if size(MODEL) > 1 else x


@jax.custom_vjp
def _enter(x):
    return x


_enter.defvjp(lambda x: (x, None), lambda _, dx: (jax.lax.psum(dx, MODEL),))


@jax.custom_vjp
def _leave(x):
    return jax.lax.psum(x, MODEL)


_leave.defvjp(lambda x: (_leave(x), None), lambda _, dy: (dy,))


def own_rows(x: Float[Array, "T D"]) -> Float[Array, "t D"]:
    """This shard's part of rows that every shard of `model` has, where their number can be divided."""
    return _own_rows(x) if x.shape[0] % size(MODEL) == 0 and size(MODEL) > 1 else x


def all_rows(x: Float[Array, "t D"], count: int) -> Float[Array, "T D"]:
    """All `count` rows from the `own_rows` of each shard."""
    return _all_rows(x) if x.shape[0] != count else x


def _part(x: Array) -> Array:
    own = x.shape[0] // size(MODEL)
    return jax.lax.dynamic_slice_in_dim(x, index(MODEL) * own, own)


def _joined(x: Array) -> Array:
    return jax.lax.all_gather(x, MODEL, axis=0, tiled=True)


# Every shard has the whole gradient of whole rows: each hands its part on, and gathers what the others have of it.
_own_rows, _all_rows = jax.custom_vjp(_part), jax.custom_vjp(_joined)
_own_rows.defvjp(lambda x: (_part(x), None), lambda _, dx: (_joined(dx),))
_all_rows.defvjp(lambda x: (_joined(x), None), lambda _, dx: (_part(dx),))


def whole_width(x: Float[Array, "Q V"]) -> Float[Array, "Q W"]:
    """The parts of a divided width side by side, not differentiated."""
    return jax.lax.all_gather(x, MODEL, axis=1, tiled=True) if size(MODEL) > 1 else x


def own_part(ids: Int32[Array, "T"], width: int) -> tuple[Int32[Array, "T"], Array]:
    """Ids counted within this shard's `width` of a divided axis, and which of them are in it; others become 0."""
    local = ids - index(MODEL) * width
    inside = (local >= 0) & (local < width)
    return jnp.where(inside, local, 0), inside


def of_group(x: Array) -> Array:
    """Rows of all shards of an expert axis, in their order."""
    return jax.lax.all_gather(x, EXPERT, axis=0, tiled=True) if size(EXPERT) > 1 else x


def group_slots(slots: Int32[Array, "A"], own: int) -> Int32[Array, "A2"]:
    """`of_group` of slots that each shard counts among its `own`, counted in one row; -1 stays, past the end too."""
    count = size(EXPERT)
    if count == 1:
        return slots
    inside = index(EXPERT) * own + slots
    return of_group(jnp.where(slots < 0, -1, jnp.where(slots < own, inside, own * count)))


def of_own(x: Array, axis: int = 0) -> Array:
    """This shard's part of what `of_group` made."""
    count = size(EXPERT)
    if count == 1:
        return x
    part = x.shape[axis] // count
    return jax.lax.dynamic_slice_in_dim(x, index(EXPERT) * part, part, axis)


def all_experts(x: Float[Array, "..."], axis: int = 1) -> Float[Array, "..."]:
    """What each shard of an expert axis has of its own experts, side by side in their order along `axis`."""
    return jax.lax.all_gather(x, EXPERT, axis=axis, tiled=True) if size(EXPERT) > 1 else x
