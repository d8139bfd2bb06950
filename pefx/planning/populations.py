"""What adapters of each method take on a base: numbers, bytes, and the bytes of a million users."""

from dataclasses import replace

from rich.table import Table

from pefx.adapters.methods.counting import stored_bytes
from pefx.adapters.methods.table import METHODS
from pefx.adapters.sites import SITES, has_site
from pefx.config import AdapterSpec, ModelConfig
from pefx.printed import text_of

USERS = 1_000_000
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def render_population(model: ModelConfig, spec: AdapterSpec) -> str:
    """A row for each method at the spec's rank and targets, less those that a method has no place at: what is kept of
    an adapter, 16 bits a number.
    """
    title = f"adapters of a {model.family} base, 16 bits a number"
    table = Table("method", "rank", "numbers", "bytes", "a million users", "not at", title=title)
    for name in METHODS:
        own = _fitting(model, spec, name)
        size, numbers = stored_bytes(model, own), stored_bytes(model, own, width=1)
        left = sorted(target for target in set(spec.targets) - set(own.targets) if has_site(model, target))
        table.add_row(name, str(own.rank), f"{numbers:,}", shown(size), shown(size * USERS), ", ".join(left) or "-")
    return text_of(table, width=160)


def _fitting(model: ModelConfig, spec: AdapterSpec, name: str) -> AdapterSpec:
    """The spec with that method: where it has a place; TinyLoRA of rank 2, 13 numbers for all; memories of rank 8."""
    method = METHODS[name]
    targets = tuple(target for target in spec.targets if method.refuses(SITES[target]) is None)
    form = "per_expert" if method.derive is not None else spec.expert_form
    own = replace(spec, method=name, targets=targets, expert_form=form, init="default", frozen="none", tied=False)
    if "memory" not in spec.targets and method.refuses(SITES["memory"]) is None:
        return replace(own, rank=8, targets=("memory",))
    return replace(own, rank=2, units=13, tied="all") if name == "tiny_lora" else own


def shown(size: int | float) -> str:
    """Bytes as people say them."""
    unit, name = next((unit, name) for unit, name in UNITS if size >= unit or unit == 1)
    return f"{size / unit:,.3g} {name}"
