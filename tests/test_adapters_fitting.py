"""pefx.adapters.fitting: adapters in a bank's shapes, what is missing, what is too large."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.adapters.bank import empty_bank
from pefx.adapters.fitting import memory_of, padded_factors
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.model_small import MODEL

SPEC = AdapterSpec(rank=3, targets=("q_proj", "o_proj"))
MEMORY = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
ROOM = empty_bank(MODEL, AdapterSpec(rank=8, targets=("q_proj", "o_proj")), 2, [MEMORY]).factors


def test_what_an_adapter_lacks_is_zero():
    adapter = init_adapter(MODEL, SPEC, 1)
    found = padded_factors(ROOM, adapter, SPEC)
    assert {site: set(own) for site, own in found.items()} == {site: set(own) for site, own in ROOM.items()}
    np.testing.assert_array_equal(found["q_proj"]["a"][:, :3], adapter["q_proj"]["a"])
    assert found["q_proj"]["a"].shape == (3, 8, 33)
    assert not found["q_proj"]["a"][:, 3:].any()
    assert not any(x.any() for x in found["memory"].values())


def test_a_memory_has_room_where_there_is_one_of_its_rank():
    assert memory_of(ROOM) == (1, 8)
    assert memory_of({"q_proj": ROOM["q_proj"]}) is None
    for spec in (replace(MEMORY, rank=16), replace(MEMORY, states=2)):
        with pytest.raises(PefxError, match=r"the adapter's memory has .*; the bank has room for 1 of rank 8"):
            padded_factors(ROOM, init_adapter(MODEL, spec, 1), spec)


def test_what_does_not_fit_is_named():
    adapter = init_adapter(MODEL, SPEC, 1)
    with pytest.raises(PefxError, match="the bank has no site 'v_proj'"):
        padded_factors(ROOM, adapter | {"v_proj": adapter["q_proj"]}, SPEC)
    with pytest.raises(PefxError, match="the adapter lacks site 'o_proj'"):
        padded_factors(ROOM, {"q_proj": adapter["q_proj"]}, SPEC)
    with pytest.raises(PefxError, match=r"q_proj.a has rank 3, its spec says 4"):
        padded_factors(ROOM, adapter, AdapterSpec(rank=4, targets=SPEC.targets))
