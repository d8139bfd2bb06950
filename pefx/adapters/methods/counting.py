"""How many numbers adapters learn on a base, and how many bytes a population of them is."""

from math import prod

from pefx.adapters.methods.table import leaf_shapes, rate_of
from pefx.config import AdapterSpec, ModelConfig


def parameters(config: ModelConfig, spec: AdapterSpec) -> int:
    """Numbers that an adapter learns. Raises PefxError where the spec does not fit the base."""
    shapes = leaf_shapes(config, spec).values()
    return sum(prod(shape) for leaves in shapes for name, shape in leaves.items() if rate_of(spec, name))


def stored_bytes(config: ModelConfig, spec: AdapterSpec, width: int = 2) -> int:
    """Bytes of an adapter's own numbers, `width` each, what is frozen with them; without what all of a base share."""
    return width * sum(prod(shape) for leaves in leaf_shapes(config, spec).values() for shape in leaves.values())
