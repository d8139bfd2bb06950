"""The device mesh, and what of a step lies where on it.

One axis so far: `data`. A shard of it holds a part of the slots (with their moments), a part of the key and value
pages, and the rows of the sequences that use them; the base is whole on every shard. An adapter's rows are all on its
own shard: nothing is summed across shards, and no bit depends on their number. On CPU a shard is a core.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pefx.errors import PefxError

DATA = "data"
# Where the shards of an array lie, by what it is an array of.
Axis = Callable[[Any], int | None]


def whole(x: Any) -> None:
    """Not divided: weights of the base, and scalars."""
    return None


def by_row(x: Any) -> int:
    """Batches and what is computed of them."""
    return 0


def by_slot(x: Any) -> int:
    """The bank and what stands beside it: slots are behind the layers, or first in an array of one number a slot."""
    return min(x.ndim - 1, 1)


def by_page(x: Any) -> int:
    """Keys and values: pages are behind the layers."""
    return 1


def use_cores() -> None:
    """On CPU make every core a device, unless XLA_FLAGS says how many. Before jax has looked for devices."""
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def data_shards(asked: int, work: int) -> int:
    """Shards of the `data` axis: `asked`, or where that is 0 as many as there are devices (cores, on CPU) and work for.

    Raises PefxError where there are fewer devices than asked for.
    """
    devices = len(jax.devices())
    if asked > devices:
        raise PefxError(f"config field 'mesh.data' is {asked}, but there are {devices} devices")
    if asked:
        return asked
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else devices
    return max(1, min(devices, cores, work))


def on_mesh(data: int) -> AbstractContextManager[Any]:
    """Within it, steps run over `data` shards; with one shard there is no mesh."""
    if data == 1:
        return nullcontext()
    devices = np.asarray(jax.devices()[:data])
    return jax.set_mesh(Mesh(devices, (DATA,), axis_types=(AxisType.Auto,)))


def spec(axis: Axis, tree: Any) -> Any:
    """A tree of partition specs like `tree`."""

    def one(x: Any) -> P:
        at = axis(x)
        return P() if at is None else P(*[None] * at, DATA)

    return jax.tree.map(one, tree)


def place(axis: Axis, tree: Any) -> Any:
    """`tree` on the devices of the mesh in use, divided along `axis`; where there is no mesh, as it is."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    return jax.device_put(tree, jax.tree.map(lambda p: NamedSharding(mesh, p), spec(axis, tree)))


def sharded(function: Callable[..., Any], axes: tuple[Axis, ...], out: Callable[[tuple[Any, ...]], Any]):
    """`function` on every shard's part of its arguments, divided along `axes`; without a mesh, `function` itself.

    `out` gives the partition specs of the results from those of the arguments.
    """

    def call(*args: Any) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args)
        specs = tuple(spec(axis, arg) for axis, arg in zip(axes, args, strict=True))
        return jax.shard_map(function, in_specs=specs, out_specs=out(specs), check_vma=False)(*args)

    return call


def over_shards(x: Any) -> Any:
    """The sum over all shards of what each has, within `sharded`."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.psum(x, DATA)
