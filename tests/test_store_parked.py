"""Parked sessions come back to the bit, or with an error that says what is wrong; the audit looks at them."""

from pathlib import Path

import numpy as np
import pytest

from pefx.store.audit import audit
from pefx.store.keyspace import Write
from pefx.store.names import parked_key
from pefx.store.parked import Parked, discard, park, parked_keys, unpark
from tests.store_small import fresh, refused

ARRAYS = {
    "bank.factors.q_proj.a": np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32),
    "opt.count": np.asarray([7], np.int32),
    "odd": np.asarray([np.nan, -0.0, np.inf], np.float32),
}
KEY = parked_key("ann", 3, 12)


@pytest.mark.parametrize("luggage", [None, "text\nof two lines", {"rows": [1, 2.5]}])
def test_a_session_comes_back_to_the_bit(tmp_path: Path, luggage: object) -> None:
    space = fresh(tmp_path).space
    park(space, KEY, Parked({**ARRAYS, "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}, luggage))
    found = unpark(fresh(tmp_path).space, KEY)
    assert found.luggage == luggage
    assert {name: (x.dtype, x.shape, x.tobytes()) for name, x in found.arrays.items() if name != "turned"} == {
        name: (x.dtype, x.shape, x.tobytes()) for name, x in ARRAYS.items()
    }
    np.testing.assert_array_equal(found.arrays["turned"], [[0, 3], [1, 4], [2, 5]])


def test_moments_are_kept_apart_until_they_are_discarded(tmp_path: Path) -> None:
    space = fresh(tmp_path).space
    for policy, number, micro in (("ann", 3, 12), ("ann", 3, 9), ("ann", 4, 1), ("anna", 3, 1)):
        park(space, parked_key(policy, number, micro), Parked(ARRAYS, micro))
    assert parked_keys(space, "ann", 3) == [parked_key("ann", 3, 9), KEY]
    assert unpark(space, parked_key("ann", 3, 9)).luggage == 9
    discard(space, parked_keys(space, "ann", 3))
    assert parked_keys(space, "ann", 3) == []
    assert len(space.keys("parked/", "parked0")) == 2


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    catalog = fresh(tmp_path)
    assert KEY in refused("unknown_session", unpark, catalog.space, KEY)
    park(catalog.space, KEY, Parked(ARRAYS, None))
    assert audit(catalog).faults == []
    value = bytearray(catalog.space.read(KEY).value or b"")
    value[-1] ^= 1
    catalog.space.transact([Write(KEY, bytes(value)), Write("parked/odd", b"x")])
    assert KEY in refused("damaged", unpark, catalog.space, KEY)
    assert [fault.key for fault in audit(catalog).faults] == [KEY, "parked/odd"]
