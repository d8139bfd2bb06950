"""What an adapter of any method comes to on its base: the factors that would be in its slot of a bank."""

from dataclasses import replace

import numpy as np

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.derivation import FACTORS
from pefx.adapters.methods.recipe import check_exchangeable, check_no_memory, needs_room, rank_in_bank
from pefx.adapters.methods.table import Adapter, scale
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec
from pefx.mesh import fetch
from pefx.model import Base


def applied(base: Base, adapter: Adapter, spec: AdapterSpec, digest: str = "") -> Adapter:
    """`a [L, (E,) R, in]` and `b [L, (E,) R, out]`, and `gains [L, 1, out]` where the method has them, by site.

    With the base's `digest` by its kept directions. Raises PefxError (kind "bad_adapter") where the adapter does not
    fit its spec.
    """
    if not needs_room(spec):
        return adapter
    base = with_shared(base, [spec], digest)
    bank = empty_bank(base.config, replace(spec, method="lora"), 2, [spec])
    factors = fetch(load_adapter(bank, 0, adapter, spec, base).factors)
    return {
        site: {name: np.asarray(leaves[name])[:, 0] for name in FACTORS if name in leaves}
        for site, leaves in factors.items()
    }


def as_lora(base: Base, adapter: Adapter, spec: AdapterSpec, digest: str = "") -> tuple[Adapter, AdapterSpec]:
    """An adapter whose factors are made of other numbers, as those factors: the same product, exactly. One of LoRA, as
    it is. Of a shifted start the rank is twice its own.

    Raises PefxError (kind "bad_adapter") where the method has gains or a memory, which no factors hold.
    """
    if not needs_room(spec):
        return adapter, spec
    check_no_memory(spec)
    factors = applied(base, adapter, spec, digest)
    if any("gains" in own for own in factors.values()):
        check_exchangeable(spec)
    rank = rank_in_bank(spec)
    cut = {site: {name: own[name][..., :rank, :] for name in ("a", "b")} for site, own in factors.items()}
    return cut, AdapterSpec("lora", rank, scale(spec) * rank, spec.targets, spec.expert_form)
