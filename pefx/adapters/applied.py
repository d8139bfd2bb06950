"""What an adapter of any method comes to on its base: the factors that would be in its slot of a bank."""

from dataclasses import replace

import numpy as np

from pefx.adapters.bank import empty_bank, load_adapter
from pefx.adapters.derivation import FACTORS
from pefx.adapters.methods.recipe import needs_room
from pefx.adapters.methods.table import Adapter
from pefx.adapters.shared import with_shared
from pefx.config import AdapterSpec
from pefx.mesh import fetch
from pefx.model import Base


def applied(base: Base, adapter: Adapter, spec: AdapterSpec) -> Adapter:
    """`a [L, (E,) R, in]` and `b [L, (E,) R, out]`, and `gains [L, 1, out]` where the method has them, by site.

    Raises PefxError (kind "bad_adapter") where the adapter does not fit its spec.
    """
    if not needs_room(spec):
        return adapter
    base = with_shared(base, [spec])
    bank = empty_bank(base.config, replace(spec, method="lora"), 2, [spec])
    factors = fetch(load_adapter(bank, 0, adapter, spec, base).factors)
    return {
        site: {name: np.asarray(leaves[name])[:, 0] for name in FACTORS if name in leaves}
        for site, leaves in factors.items()
    }
