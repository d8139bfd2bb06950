"""delta-mem: how an adapter begins, and where it has no place."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import leaf_shapes
from pefx.adapters.shared import fresh_adapter
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from tests.method_cases import BASE, weights
from tests.model_small import MODEL

SPEC = AdapterSpec("delta_mem", 8, 16.0, ("memory",), states=2)


def test_what_steers_begins_from_the_bases_columns():
    fresh = fresh_adapter(BASE, SPEC, 3)["memory"]
    assert {name: x.shape for name, x in fresh.items()} == leaf_shapes(MODEL, SPEC)["memory"]
    for name, site in (("steer_query", "q_proj"), ("steer_output", "o_proj")):
        columns = weights(site)[..., :8]
        want = 0.05 * columns / np.linalg.norm(columns, axis=-2, keepdims=True)
        np.testing.assert_allclose(fresh[name][:, :8], np.swapaxes(want, -1, -2), rtol=0, atol=1e-6)
        assert not fresh[name][:, 8:].any()
    assert not fresh["gates"].any()
    assert (fresh["bias"] == -1.5).all()
    assert 0 < np.abs(fresh["projections"]).max() <= 33**-0.5


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (replace(SPEC, targets=("memory", "q_proj")), "'delta_mem' cannot adapt 'q_proj': its only target is 'memory'"),
        (AdapterSpec(targets=("memory",)), "method 'lora' cannot adapt 'memory': only memories have a place there"),
        (AdapterSpec("ia3", targets=("memory",)), "method 'ia3' cannot adapt 'memory'"),
        (replace(SPEC, rank=12), "the rank of a memory must be a multiple of 8, got 12"),
    ],
)
def test_what_has_no_place_is_named(spec, match):
    with pytest.raises(PefxError, match=match):
        leaf_shapes(MODEL, spec)


def test_fewer_states_have_room_smaller_ones_have_not():
    wide, own = replace(SPEC, states=4), fresh_adapter(BASE, SPEC, 3)
    bank = empty_bank(MODEL, bank_spec([wide]), 2, [wide])
    assert bank.memory == (4, 8)
    held = load_adapter(bank, 0, own, SPEC, BASE).factors["memory"]
    np.testing.assert_array_equal(held["bias"][:, 0, :2], own["memory"]["bias"])
    assert (np.asarray(held["bias"][:, 0, 2:]) == np.float32(-1e30)).all()
    double = replace(SPEC, rank=16)
    with pytest.raises(PefxError, match="2 states of rank 16; the bank has room for 4 of rank 8"):
        load_adapter(bank, 0, fresh_adapter(BASE, double, 3), double, BASE)
    with pytest.raises(PefxError, match="memories in one bank must have one rank, got 8 and 16"):
        empty_bank(MODEL, bank_spec([SPEC, double]), 2, [SPEC, double])
