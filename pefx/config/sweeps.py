"""Grids of adapters and rates; standard library only."""

from dataclasses import dataclass
from typing import Literal

from pefx.config.shapes import AdapterSpec
from pefx.config.training import TrainConfig

# How alpha goes with the rank, and the learning rate: `pefx.sweeping.transfer`.
AlphaRule = Literal["by_rank", "by_root", "constant"]
RateRule = Literal["unchanged", "first_step", "mu_a"]


@dataclass(frozen=True)
class Scaling:
    """How `alpha` and learning rate of an adapter go from one rank to another."""

    alpha: AlphaRule
    rate: RateRule


@dataclass(frozen=True)
class Record:
    """A learning rate as it is to be kept: with the adapter, and so rank and alpha, that it was found at, and with the
    rules by which it means something at other ranks.
    """

    adapter: AdapterSpec
    learning_rate: float
    scaling: Scaling


@dataclass(frozen=True)
class SweepConfig:
    """`pefx sweep`: what the one user of `run` learns, by each of `adapters` with each of `learning_rates`.

    `ranks` (none: its own) are what each adapter is trained at; alpha, and the learning rates, which are those of its
    own rank, follow by `scaling`. All cells are trained as one population, in the same steps, each `seeds` times. The
    best is chosen by the last measure of what is held out, on average over seeds.

    Successive halving: after each of `rungs`, in updates of a cell, the better `keep` of the cells, rounded up, go on
    as they would without, the others stop.
    """

    name: str
    run: TrainConfig
    adapters: tuple[AdapterSpec, ...]
    learning_rates: tuple[float, ...]
    scaling: Scaling
    ranks: tuple[int, ...] = ()
    seeds: int = 1
    rungs: tuple[int, ...] = ()
    keep: float = 0.5
