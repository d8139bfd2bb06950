"""What waits for a slot is kept as long as a checkpoint names it, and is gone when its session is over."""

from pathlib import Path

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.names import parked_key
from pefx.store.parked import Parked
from pefx.training.parking import PLACE, Parking


def parked(number: int) -> Parked:
    return Parked({"x": np.full(3, number, np.float32)}, {"left": number})


def kept(place: Path) -> list[int]:
    return [int(key.rsplit("@")[-1]) for key in Catalog.open(place, read_only=True).space.keys("parked/", "parked0")]


def test_moments_stay_as_long_as_a_checkpoint_names_them(tmp_path: Path) -> None:
    place = tmp_path / PLACE
    parking = Parking(None, str(tmp_path), keep=2)
    assert not place.exists()
    keys = [parking.put("ann", 1, 0, parked(0))]
    for step in range(1, 5):
        parking.named(step, keys[-1:])
        keys.append(parking.put("ann", 1, step, parked(step)))  # goes on while the checkpoint is written
        parking.checkpointed(step, keys[-1:])
    assert kept(place) == [2, 3, 4]  # named by the two newest checkpoints, and what waits now
    assert parking.take(keys[3]).luggage == {"left": 3}
    with pytest.raises(PefxError, match="does not hold"):
        parking.take(keys[0])
    parking.put("bob", 1, 9, parked(9))
    parking.end([("ann", 1)])
    assert kept(place) == [9]


def test_what_an_older_checkpoint_of_another_process_may_name_stays(tmp_path: Path) -> None:
    catalog = str(tmp_path / "catalog")
    Catalog.open(catalog, create=True)
    first = Parking(catalog, str(tmp_path), keep=2)
    first.put("ann", 1, 1, parked(1))
    again = Parking(catalog, str(tmp_path), keep=2)
    again.named(8, [parked_key("ann", 1, 5)])
    again.checkpointed(8, [])
    again.checkpointed(9, [])  # nothing is known of it
    assert kept(tmp_path / "catalog") == [1]
    assert not (tmp_path / PLACE).exists()
