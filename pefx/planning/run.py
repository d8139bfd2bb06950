"""What `pefx plan` does with a slice: plans, prints, draws, and says by its exit status whether all fits."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from pefx.config import MeshConfig, PlanConfig, ServeConfig, TrainConfig
from pefx.errors import PefxError
from pefx.planning.abstract import plan_of
from pefx.planning.report import DOES_NOT_FIT, FITS, compare, picture, plan, render


def plan_and_print(
    config: TrainConfig | ServeConfig | PlanConfig, topology: str | None, others: Sequence[str], drawn: Path | None
) -> int:
    """Plans `config` on `topology` (None: its own) and on `others`; exit code 0, or 3 where one does not fit."""
    jax.config.update("jax_platforms", "cpu")  # the slice is described, never looked for
    warnings.filterwarnings("ignore", "Some donated buffers were not usable")
    if not isinstance(config, PlanConfig):
        config = plan_of(config, topology or "")
    elif topology is not None:
        config = replace(config, topology=topology)
    planned = []
    for one in [config, *(beside(config, other) for other in others)]:
        planned.append(plan(one, lambda line: print(line, flush=True)))
        print(render(planned[-1]), end="\n\n", flush=True)
    if others:
        print(compare(planned))
    if drawn is not None:
        picture(planned, drawn)
    return FITS if all(one.fits for one in planned) else DOES_NOT_FIT


def beside(config: PlanConfig, other: str) -> PlanConfig:
    """The plan on another slice: `v5p:4x4x8`, its `data` as large as it becomes, or `v5p:4x4x8/1x32x4`, of that mesh.

    Raises PefxError where that is not three numbers.
    """
    topology, _, shape = other.partition("/")
    if not shape:
        return replace(config, topology=topology, mesh=replace(config.mesh, data=0))
    sides = shape.split("x")
    if len(sides) != 3 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise PefxError(f"{other!r}: a mesh is data x expert x model, as in {topology}/1x32x4")
    return replace(config, topology=topology, mesh=MeshConfig(*map(int, sides)))
