"""What a plan's steps must compute, read and send at least, and how long that takes at a device's published rates.

Operations are those of the products: 2 for each weight a token meets forwards, as many backwards for the gradient of
its input (weights of a base have none), once more where layers are computed again; 6 for each number of its adapter.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pefx.adapters.sites import SITES
from pefx.config import ModelConfig, PlanConfig
from pefx.huggingface import parameters
from pefx.model import abstract_base
from pefx.planning.abstract import Arguments
from pefx.planning.chips import Device
from pefx.planning.compiling import Compiled


@dataclass(frozen=True)
class Roofline:
    """One step: `tokens` of all devices; operations, bytes of HBM and bytes sent of one device; seconds for each."""

    step: str
    tokens: int
    operations: float
    moved: float
    sent: float
    device: Device

    @property
    def seconds(self) -> dict[str, float]:
        device = self.device
        return {
            "compute": self.operations / device.peak,
            "memory": self.moved / device.bandwidth,
            "links": self.sent / device.links,
        }

    @property
    def tokens_per_second(self) -> float:
        """Of all devices, if computing, moving and sending overlap perfectly."""
        return self.tokens / max(self.seconds.values())


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)
    )


def active_weights(model: ModelConfig) -> int:
    """Numbers of the base that a token meets in products: of routed experts those it chose, of embeddings one."""
    total = 0
    for name, variable in parameters(abstract_base(model)).items():
        size = int(np.prod(variable.shape))
        if ".experts." in name or name.startswith("experts."):
            size = size * model.experts_per_token // model.experts
        elif name == "embed":
            size = size if model.tied_embedding else 0
        total += size
    return total


def adapter_weights(config: PlanConfig, model: ModelConfig, bank: Any) -> int:
    """Numbers of one adapter that a token meets."""
    total = 0
    for site, pair in bank.factors.items():
        for factor in pair.values():
            size = int(np.prod(factor.shape)) // factor.shape[1]
            if factor.ndim == 5 and SITES[site].kind == "experts":
                size = size * model.experts_per_token // model.experts
            total += size
    return total


def attended(model: ModelConfig) -> int:
    """Operations of one token with one earlier token, forwards, in all layers."""
    if model.kv_rank:
        width = 2 * model.kv_rank + model.rope_head_size
    else:
        width = 2 * model.head_size
    return 2 * model.layers * model.heads * width


def rooflines(
    config: PlanConfig, model: ModelConfig, given: Arguments, compiled: list[Compiled], device: Device
) -> list[Roofline]:
    """The bounds of both steps. Of the base a device reads all its part, once for each time layers are computed."""
    devices, rows = config.mesh.rows * config.mesh.model, config.mesh.rows
    met, own, pair = active_weights(model), adapter_weights(config, model, given.bank), attended(model)
    base, bank = local_bytes(given.base), local_bytes(given.bank)
    again = 3 if config.remat == "full" else 2
    trained = rows * max(config.users * config.tokens_per_user, 64)
    keys = min(config.tokens_per_user, config.context) / 2
    each = 2 * again * met + 6 * own + (again + 1.5) * pair * keys
    served = rows * (config.sequences + config.step_tokens)
    decoded, read = rows * config.sequences, rows * config.step_tokens
    serving = served * (2 * met + 2 * own) + pair * (decoded * config.context + read * config.context / 2)
    sent = {step.step: sum((step.traffic or {}).values()) for step in compiled}
    return [
        Roofline(
            "train",
            trained,
            trained * each / devices,
            float(again * base + 2 * (bank + local_bytes(given.optimizer))),
            sent.get("train", 0.0),
            device,
        ),
        Roofline(
            "serve",
            served,
            serving / devices,
            float(base + bank + local_bytes(given.pool)),
            sent.get("serve", 0.0),
            device,
        ),
    ]
