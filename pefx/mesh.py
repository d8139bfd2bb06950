"""The device mesh, and what of a step lies where on it.

Three axes. Rows of a step, with the slots and the pages they use, are divided over `data` and `expert` together: a
shard of rows has adapters and sequences of its own. Experts, and the adapters' factors that belong to one of them, are
divided over `expert`: rows travel to their experts and back. Heads, hidden widths and the vocabulary are divided over
`model`, where partial sums are added. An adapter's rows are all on its own shard: no bit depends on how many shards
`data` and `expert` make. On CPU a shard is a core.
"""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pefx.config import MeshConfig, ModelConfig, block_of
from pefx.distributed import several
from pefx.errors import PefxError

DATA, EXPERT, MODEL = "data", "expert", "model"
# Logical axis -> the mesh axes it is divided over. What is not here lies whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "rows": (DATA, EXPERT),
    "pages": (DATA, EXPERT),
    "slots": (DATA, EXPERT),
    # Slots of what lies with the experts, and of the few numbers that everybody on an expert axis needs.
    "group_slots": (DATA,),
    "experts": (EXPERT,),
    "heads": (MODEL,),
    "kv_heads": (MODEL,),
    "mlp": (MODEL,),
    "vocab": (MODEL,),
}
ROWS = P(RULES["rows"])
# The logical axes of an array, by its place in a tree: one name or None for each, as far as any is divided.
Axes = Callable[[tuple[Any, ...], Any], tuple[str | None, ...]]


def of_base(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Weights of the base, and what has their shape: as the parameter says. Scalars are not divided."""
    return x.get_metadata()["out_sharding"] if isinstance(x, nnx.Variable) else ()


def by_row(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Batches and what is computed of them."""
    return ("rows",)


def by_page(path: tuple[Any, ...], x: Any) -> tuple[str | None, ...]:
    """Keys and values `[L, P, G, B, K]`. A single head is every shard's: queries of all heads attend to it. So is what
    sequences remember, `[L, P, 2, M, S, R]`.
    """
    if x.ndim == 6:
        return ("layers", "pages")
    return ("layers", "pages", "kv_heads" if x.shape[2] > 1 else None)


def use_cores() -> None:
    """On CPU make every core a device, unless XLA_FLAGS says how many. Before jax has looked for devices."""
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def resolved(asked: MeshConfig, work: int) -> MeshConfig:
    """The mesh of a run: a `data` of 0 becomes what devices (cores, on CPU) and `work` leave room for.

    `work` is how many shards of rows would have something to do. Raises PefxError where there are fewer devices than
    asked for. In a job of several processes the mesh is of all devices.
    """
    devices, others = len(jax.devices()), asked.expert * asked.model
    needed = max(asked.data, 1) * others
    if needed > devices:
        named = f"{max(asked.data, 1)} x {asked.expert} x {asked.model} (data, expert, model)"
        raise PefxError(f"config field 'mesh' is {named}, {needed} devices, but there are {devices} devices")
    if several():
        found = replace(asked, data=asked.data or devices // others)
        if found.data * others != devices:
            named = f"{found.data} x {asked.expert} x {asked.model} (data, expert, model)"
            raise PefxError(
                f"config field 'mesh' is {named}; the job of {jax.process_count()} processes has {devices} devices and "
                "its mesh must use all of them"
            )
        return found
    if asked.data:
        return asked
    cores = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else devices
    return replace(asked, data=max(1, min(devices // others, cores // others, work // asked.expert)))


def check_divides(model: ModelConfig, mesh: MeshConfig) -> None:
    """Raises PefxError, naming field and value, where a base does not divide over a mesh."""
    sparse = _sparse(model)
    widths = {
        "dense_hidden": model.dense_hidden if model.dense_layers else 0,
        "shared experts' width": model.shared_experts * model.expert_hidden,
        "expert_hidden": model.expert_hidden if sparse else 0,
    }
    over_model = {"heads": model.heads, "kv_heads": 0 if model.kv_rank else model.kv_heads, **widths}
    over_model["vocab_size"] = model.vocab_size
    if model.weights != "plain":
        for name, size in (widths | _head_widths(model)).items():
            over_model[f"{name} in blocks of 8-bit weights"] = size // block_of(size) if size else 0
    divided = {"experts": (model.experts if sparse else 0, "expert", mesh.expert)}
    divided |= {name: (size, "model", mesh.model) for name, size in over_model.items()}
    for field, (size, axis, shards) in divided.items():
        if size % shards:
            fitting = [n for n in range(1, size + 1) if size % n == 0][:12]
            raise PefxError(
                f"config field 'mesh.{axis}' is {shards}, which does not divide the base's {field} ({size}); "
                f"choose one of {', '.join(map(str, fitting))}"
            )


def _head_widths(model: ModelConfig) -> dict[str, int]:
    """Rows or columns of the matrices that are divided over heads."""
    if not model.kv_rank:
        return {"heads' width": model.heads * model.head_size, "kv_heads' width": model.kv_heads * model.head_size}
    nope, value = model.nope_head_size, model.value_head_size
    queries = "q_b_proj" if model.query_rank else "q_proj"
    each = {queries: nope + model.rope_head_size, "kv_b_proj": nope + value, "o_proj": value}
    return {f"{name}'s width": model.heads * size for name, size in each.items()}


def _sparse(model: ModelConfig) -> bool:
    return any(layer not in model.dense_layers for layer in range(model.layers))


def on_mesh(mesh: MeshConfig) -> AbstractContextManager[Any]:
    """Within it, steps run over a mesh of that shape; one of a single device is none."""
    shape = (mesh.data, mesh.expert, mesh.model)
    count = int(np.prod(shape))
    if count == 1:
        return nullcontext()
    return jax.set_mesh(mesh_of(np.asarray(jax.devices()[:count]), mesh))


def mesh_of(devices: np.ndarray, mesh: MeshConfig) -> Mesh:
    """The mesh over these devices, `data` outermost."""
    shape = (mesh.data, mesh.expert, mesh.model)
    return Mesh(devices.reshape(shape), (DATA, EXPERT, MODEL), axis_types=(AxisType.Auto,) * 3)


def spec(axes: Axes, tree: Any) -> Any:
    """A tree of partition specs like `tree`, by the rules."""

    def one(path: tuple[Any, ...], x: Any) -> Any:
        names = axes(path, x)
        found = P(*[RULES.get(name) if name else None for name in names])
        return x.replace(found) if isinstance(x, nnx.Variable) else found

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shardings(axes: Axes, tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings like `tree` on a mesh."""
    return jax.tree.map(lambda p: NamedSharding(mesh, p), spec(axes, tree), is_leaf=lambda x: isinstance(x, P))


def placement() -> Callable[[nnx.Variable], jax.sharding.Sharding] | None:
    """Where a parameter of the base lies on the mesh in use; None where there is no mesh."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else lambda x: NamedSharding(mesh, spec(of_base, x).get_value())


def place(axes: Axes, tree: Any) -> Any:
    """`tree` on the devices of the mesh in use, divided by `axes`; where there is no mesh, as it is."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    where = shardings(axes, tree, mesh)
    return jax.tree.map(spread, tree, where) if several() else jax.device_put(tree, where)


def share(axes: Axes, tree: Any) -> Any:
    """Arguments of a step, the same numpy arrays on each of several processes, as `place` would have them.

    A process on its own hands them to the step as they are.
    """
    return place(axes, tree) if several() else tree


def made(axes: Axes, make: Callable[[], Any]) -> Any:
    """What `make` computes, as `place` would have it; of several processes, each makes its own devices' parts."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or not several():
        return place(axes, make())
    return jax.jit(make, out_shardings=shardings(axes, jax.eval_shape(make), mesh))()


def spread(x: Any, sharding: Any) -> jax.Array:
    """One array over several processes, the same on each: their devices get their parts.

    A part is a copy of its own, so that a step may be given it for good.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding.is_equivalent_to(sharding, x.ndim) else _moved(sharding)(x)
    host = np.asarray(x)
    parts = sharding.addressable_devices_indices_map(host.shape).items()
    arrays = [jax.device_put(np.array(host[index]), device) for device, index in parts]
    return jax.make_array_from_single_device_arrays(host.shape, sharding, arrays)


@functools.cache
def _moved(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def whole(tree: Any) -> Any:
    """`tree` with arrays that are spread over several processes made whole on each; all must ask."""
    if not several():
        return tree
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    spread = [i for i in spread if not leaves[i].is_fully_replicated]
    if spread:
        everywhere = _moved(NamedSharding(leaves[spread[0]].sharding.mesh, P()))
        for i, x in zip(spread, everywhere([leaves[i] for i in spread]), strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, leaves)


def fetch(tree: Any) -> Any:
    """`tree` as numpy arrays, whole on every process."""
    return jax.device_get(whole(tree))


def sharded(function: Callable[..., Any], axes: tuple[Axes, ...], out: Callable[[tuple[Any, ...]], Any]):
    """`function` on every shard's part of its arguments, divided by `axes`; without a mesh, `function` itself.

    `out` gives the partition specs of the results from those of the arguments.
    """

    def call(*args: Any) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args)
        specs = tuple(spec(axis, arg) for axis, arg in zip(axes, args, strict=True))
        return jax.shard_map(function, in_specs=specs, out_specs=out(specs), check_vma=False)(*args)

    return call
