"""Experts' projections with LoRA inside at the shapes of two public bases: decodes, a prefill and its gradient."""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.tpu.case import Case
from benchmarks.tpu.cases_grouped_matmul import BASES, LAYERS, STEPS, tiles_of
from kernels.expert_lora.api import expert_lora
from kernels.factors import Factors

# (rank, slots) as served and as trained.
SERVED, TRAINED = ((16, 64), (1, 1), (64, 256)), ((64, 16), (16, 64))
FORMS = ("per_expert", "shared_hidden")


def cases() -> list[Case]:
    """Both projections of both bases in both steps and forms, and the gradient of a prefill."""
    found = []
    for base, (d, f, *experts) in BASES.items():
        for site, size in {"up_proj": (d, f), "down_proj": (f, d)}.items():
            for form in FORMS:
                name = f"{base} {site} {form}"
                for bank in SERVED:
                    found += [_projection(name, (*size, *experts), bank, step, False) for step in STEPS]
                found += [_projection(name, (*size, *experts), bank, "prefill 4096", True) for bank in TRAINED]
    return found


def _projection(name: str, size, bank, step: str, gradient: bool) -> Case:
    """A projection at one step, perhaps with gradients."""
    (inner, outer, experts, copies), (rank, slots) = size, bank
    rows, adapters, sizes = STEPS[step]
    tiles = tiles_of(rows * copies, min(adapters, slots), experts, sizes)
    places = tiles.source.shape[0]
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    up, shared = "up_proj" in name, "shared_hidden" in name
    a = None if up and shared else shape((LAYERS * slots, experts, rank, inner))
    b = None if not up and shared else shape((LAYERS * slots, experts, rank, outer))
    z = shape((places, rank)) if a is None else None
    factors = Factors(a, b, jax.ShapeDtypeStruct((slots,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    w, x = shape((LAYERS * experts, inner, outer)), shape((places, inner))
    arguments = (x, z, w, factors, tiles, jax.ShapeDtypeStruct((), jnp.int32))
    name = f"{name} rank {rank} {slots} slots {step}"
    if not gradient:
        return Case("expert_lora", name, expert_lora, arguments, ("expert_lora",))
    kernels = ["expert_lora", "expert_lora_backward"]
    kernels += [f"expert_lora_sums_{key}" for key, factor in (("a", a), ("b", b)) if factor is not None]
    cotangents = shape((places, outer)), shape((places, rank)) if b is None else None
    return Case("expert_lora", f"{name} gradient", _gradient, (*arguments, cotangents), tuple(kernels))


def _gradient(x, z, w, factors, tiles, offset, cotangents):
    """The projection and its gradients of x, z, a and b; in float32, so that none takes the place of a donated operand
    that is still to be read.
    """

    def project(x, z, a, b):
        return expert_lora(x, z, w, factors._replace(a=a, b=b), tiles, offset)

    y, pull = jax.vjp(project, x, z, factors.a, factors.b)
    return jax.tree.map(lambda found: found.astype(jnp.float32), (y, pull(cotangents)))
