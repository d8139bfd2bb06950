"""LoRA factors as kernels read them, in place in a bank of many slots and layers."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int32


class Factors(NamedTuple):
    """One site's factors: slot s is row `offset + s`; `scales[s]` is folded per slot.

    `a [G, R, in]`, `b [G, R, out]`; at an expert site `[G, E, R, .]`, or without E where the layer's experts share it
    (`shared_hidden`). A bank of all layers folded to `G = L * N` is read in place with `offset = layer * N`. An
    operation that reads one factor only is given None for the other. `gains [G, out]` are of the whole row that comes
    out; None where the site has none.
    """

    a: Any
    b: Any
    scales: Float[Array, "N"]
    offset: Int32[Array, ""]
    gains: Any = None
