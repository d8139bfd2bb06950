"""`pefx plan --topology`: what of a plan lies on each device, how long a step must take, and what to change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from pefx.config import PlanConfig
from pefx.errors import PefxError
from pefx.mesh import check_divides
from pefx.planning.abstract import arguments, model_of
from pefx.planning.chips import Device, device_of
from pefx.planning.compiling import Compiled, compile_step, devices_of, slice_of
from pefx.planning.roofline import Roofline, local_bytes, rooflines
from pefx.printed import text_of
from pefx.training.curves import save, style

GIB = 2**30
FITS, DOES_NOT_FIT = 0, 3
# The kind of state that a step does without.
ABSENT = {"train": "keys and values", "serve": "optimizer"}


@dataclass(frozen=True)
class Planned:
    """A plan on one slice. `held` are bytes of one device by kind; each step is compiled, or what it lacks is known."""

    config: PlanConfig
    device: Device
    devices: int
    held: dict[str, int]
    steps: list[Compiled]
    bounds: list[Roofline]

    @property
    def capacity(self) -> int:
        """Bytes that the compiler lets a program have, where it said so, else those of the chip."""
        return min([step.capacity for step in self.steps if step.capacity] or [int(self.device.memory)])

    def needed(self, step: Compiled) -> int:
        """Bytes of one device in one step, with what lies beside it: training and serving share the base and a bank."""
        if step.total is not None:
            return step.total
        return step.temporary + sum(size for kind, size in self.held.items() if kind != ABSENT[step.step])

    @property
    def fits(self) -> bool:
        return all(step.fits and self.needed(step) <= self.capacity for step in self.steps)

    @property
    def more_adapters(self) -> dict[str, int]:
        """How many adapters of this spec fit on the whole slice, training or serving."""
        found, config = {}, self.config
        for step in self.steps:
            kinds = ("bank", "optimizer") if step.step == "train" else ("bank",)
            each = sum(self.held[kind] for kind in kinds) / config.slots
            free = self.capacity - self.needed(step)
            found[step.step] = max(0, int(config.slots + free // each)) * config.mesh.rows
        return found


def plan(config: PlanConfig, say: Callable[[str], None] = lambda _: None) -> Planned:
    """Compiles both steps of `config` for its topology, and says so. Raises PefxError for a bad base, slice or mesh."""
    device, model = device_of(config.topology), model_of(config)
    config = replace(config, mesh=_filled(config))
    check_divides(model, config.mesh)
    with slice_of(config.topology, config.mesh) as mesh:
        given = arguments(config, model, mesh)
        say(f"{config.name}: compiling the training and the serving step for {config.topology}")
        # The compiler leaves Python alone, and takes one core for each.
        with ThreadPoolExecutor(2) as pool:
            steps = list(pool.map(lambda step: compile_step(step, config, given, mesh), ("train", "serve")))
    shared = local_bytes(given.base.shared)
    held = {
        "base": local_bytes(given.base) - shared,
        **({"shared by adapters": shared} if shared else {}),
        "bank": local_bytes(given.bank),
        "optimizer": local_bytes(given.optimizer),
        "keys and values": local_bytes(given.pool),
    }
    bounds = rooflines(config, model, given, steps, device)
    return Planned(config, device, config.mesh.rows * config.mesh.model, held, steps, bounds)


def _filled(config: PlanConfig):
    """The mesh with a `data` of 0 replaced by what the slice has room for."""
    mesh, count = config.mesh, devices_of(config.topology)
    others = mesh.expert * mesh.model
    if mesh.data == 0 and count % others:
        raise PefxError(
            f"config field 'mesh': expert x model is {others}, which does not divide the {count} devices of "
            f"{config.topology}"
        )
    return mesh if mesh.data else replace(mesh, data=count // others)


def advice(planned: Planned) -> list[str]:
    """What to change where it does not fit, by what takes most."""
    found, config, mesh = [], planned.config, planned.config.mesh
    for step in planned.steps:
        over = planned.needed(step) - planned.capacity
        if over <= 0:
            continue
        found.append(
            f"{step.step} needs {over / GIB:.2f} GiB more than a device has ({planned.capacity / GIB:.2f} GiB)"
        )
    if not found:
        return found
    most = max(planned.held, key=lambda kind: planned.held[kind])
    changes = {
        "base": "a larger slice with a larger mesh.expert or mesh.model"
        + ("" if config.base_weights != "plain" else ", or --base-weights int8"),
        "shared by adapters": "a lower rank or fewer targets of adapter and others",
        "bank": "a lower adapter.rank, adapter.expert_form shared_hidden, fewer targets or slots",
        "optimizer": "a lower adapter.rank, adapter.expert_form shared_hidden, fewer targets or slots",
        "keys and values": "fewer sequences or a shorter context",
    }
    found.append(f"most is held by the {most} ({planned.held[most] / GIB:.2f} GiB): {changes[most]}")
    largest = max(step.temporary for step in planned.steps)
    if largest > planned.held[most] // 2:
        found.append(
            f"a step's temporaries take {largest / GIB:.2f} GiB: fewer tokens_per_user or step_tokens"
            + ("" if config.remat == "full" else ", or --remat full")
            + ("" if mesh.model > 1 else ", or a larger mesh.model")
        )
    return found


def render(planned: Planned) -> str:
    """The tables that `pefx plan` prints."""
    config, mesh, steps = planned.config, planned.config.mesh, planned.steps
    shape = f"{mesh.data} x {mesh.expert} x {mesh.model} (data, expert, model)"
    title, table = f"{config.name}: {config.base} on {config.topology}, {planned.devices} devices, {shape}", Table()
    for column in ("GiB of each device", "train", "serve"):
        table.add_column(column, justify="left" if column.startswith("GiB") else "right")
    for kind, size in planned.held.items():
        table.add_row(kind, *["" if kind == ABSENT[s.step] else f"{size / GIB:.2f}" for s in steps])
    table.add_row("temporaries", *[f"{s.temporary / GIB:.2f}" if s.total is None else "" for s in steps])
    table.add_row("in all", *[f"{planned.needed(s) / GIB:.2f}" for s in steps])
    table.add_row("a device has", *[f"{planned.capacity / GIB:.2f}"] * 2)
    table.add_section()
    rates = planned.bounds
    table.add_row("tokens a step", *[f"{r.tokens:,}" for r in rates])
    table.add_row("Tflop of a device", *[f"{r.operations / 1e12:.2f}" for r in rates])
    table.add_row("GB of HBM moved", *[f"{r.moved / 1e9:.2f}" for r in rates])
    table.add_row("GB sent", *[f"{r.sent / 1e9:.3f}" for r in rates])
    for name in rates[0].seconds:
        table.add_row(f"ms by {name}", *[f"{1e3 * r.seconds[name]:.2f}" for r in rates])
    table.add_row("tokens/s at most", *[f"{r.tokens_per_second:,.0f}" for r in rates])
    table.add_row("adapters that fit", *[f"{planned.more_adapters[s.step]:,}" for s in steps])
    table.add_row("compiled in, s", *[f"{s.seconds:.0f}" for s in steps])
    lines = [title, text_of(table)]
    sent = {s.step: s.traffic for s in steps if s.traffic}
    for step, kinds in sent.items():
        lines.append(
            f"{step} sends " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sorted(kinds.items()))
        )
    lines += advice(planned) or [
        f"compiled, and fits: {config.adapter.expert_form} adapters of rank {config.adapter.rank}"
    ]
    return "\n".join(lines)


def shape_of(planned: Planned) -> str:
    """Data, expert and model shards."""
    mesh = planned.config.mesh
    return f"{mesh.data}x{mesh.expert}x{mesh.model}"


def compare(planned: list[Planned]) -> str:
    """Several slices or meshes beside each other."""
    table = Table()
    heads = (
        "topology",
        "mesh",
        "train GiB",
        "serve GiB",
        "a device has",
        "train tok/s",
        "serve tok/s",
        "adapters",
        "fits",
    )
    for head in heads:
        table.add_column(head, justify="left" if head in ("topology", "mesh", "fits") else "right")
    for one in planned:
        table.add_row(
            one.config.topology,
            shape_of(one),
            *[f"{one.needed(step) / GIB:.1f}" for step in one.steps],
            f"{one.capacity / GIB:.1f}",
            *[f"{bound.tokens_per_second:,.0f}" for bound in one.bounds],
            f"{one.more_adapters['train']:,}",
            "yes" if one.fits else "no",
        )
    return text_of(table)


def picture(planned: list[Planned], path: Path) -> None:
    """Memory of each device by kind, training left and serving right of each slice, as PNG; whole or not at all."""
    figure = Figure(figsize=(2 + 2 * len(planned), 4), layout="constrained")
    axes = figure.subplots()
    style(axes)
    kinds, drawn = (*planned[0].held, "temporaries"), set()
    for index, one in enumerate(planned):
        for side, step in enumerate(one.steps):
            parts, bottom = one.held | {"temporaries": step.temporary}, 0.0
            parts[ABSENT[step.step]] = 0
            for color, kind in enumerate(kinds):
                height, label = parts[kind] / GIB, None if kind in drawn or not parts[kind] else kind
                axes.bar(index + 0.4 * side, height, 0.35, bottom, color=f"C{color}", label=label)
                drawn |= {kind} if label else set()
                bottom += height
        axes.hlines(one.capacity / GIB, index - 0.25, index + 0.65, color="black", linestyle="dashed")
    names = [f"{one.config.topology}\n{shape_of(one)}" for one in planned]
    axes.set_xticks([index + 0.2 for index in range(len(planned))], names)
    axes.set(ylabel="GiB of a device", title=f"{planned[0].config.base}: train (left), serve (right)")
    axes.legend(fontsize="small")
    save(figure, path)
