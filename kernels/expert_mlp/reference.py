"""The obvious form of a gated expert layer with LoRA, row by row: the oracle."""

import jax
from jaxtyping import Array, Float, Int32

from kernels.expert_lora.reference import expert_lora
from kernels.factors import Factors
from kernels.grouped_matmul.reference import grouped_matmul


def expert_mlp(
    x: Float[Array, "M D"],
    matrices: dict[str, Float[Array, "E I O"]],
    adapters: dict[str, Factors],
    expert: Int32[Array, "M"],
    slots: Int32[Array, "M"],
) -> Float[Array, "M D"]:
    """`(silu(x gate) * (x up)) down` for matrices and adapters named gate, up and down; factors may be shared by the
    experts. Zeros where the expert is -1. Float32; adapters' offset is 0.
    """

    def project(y, name):
        base = grouped_matmul(y, matrices[name], expert)
        if name not in adapters:
            return base
        return base + expert_lora(y, None, adapters[name], expert, slots)[0]

    return project(jax.nn.silu(project(x, "gate")) * project(x, "up"), "down")
