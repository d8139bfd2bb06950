"""Grids of adapters and rates; standard library only."""

from dataclasses import dataclass

from pefx.config.shapes import AdapterSpec
from pefx.config.training import TrainConfig


@dataclass(frozen=True)
class SweepConfig:
    """`pefx sweep`: what the one user of `run` learns, by each of `adapters` with each of `learning_rates`.

    All cells are trained as one population, in the same steps, each `seeds` times. The best is chosen by the last
    measure of what is held out, on average over seeds.
    """

    name: str
    run: TrainConfig
    adapters: tuple[AdapterSpec, ...]
    learning_rates: tuple[float, ...]
    seeds: int = 1
