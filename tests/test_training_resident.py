"""Sessions come and go between slots, and take all that they are along; nobody else's numbers move."""

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.config import AdapterSpec, ModelConfig, TrainConfig, UserConfig
from pefx.model import Base
from pefx.training.resident import Resident, sessions_of
from pefx.training.sessions import make_sessions

MODEL = ModelConfig(
    hidden=16, layers=2, heads=2, kv_heads=1, head_size=8, dense_hidden=16, expert_hidden=8, experts=2,
    experts_per_token=1, context=64,
)  # fmt: skip
BASE = Base(MODEL, nnx.Rngs(0))
SPECS = [AdapterSpec(rank=rank, targets=("q_proj", "experts.up_proj")) for rank in (2, 4, 8)]


def resident(slots: int, users: int = 3) -> Resident:
    named = tuple(UserConfig(f"u{i}", "x.jsonl", adapter=SPECS[i % 3], seed=i) for i in range(users))
    sessions = make_sessions(TrainConfig("run", "out", users=named, slots=slots))
    return Resident(BASE, sessions, slots, 1, accumulate=True)


def disturb(found: Resident) -> None:
    """Every number of every slot another."""
    draw = np.random.default_rng(1)

    def other(x):
        return (np.asarray(x) + draw.integers(1, 9, x.shape)).astype(x.dtype)

    found.bank, found.opt = jax.tree.map(other, (found.bank, found.opt))


def bits(arrays) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in arrays.items()}


def test_who_begins_late_begins_as_who_began_at_once() -> None:
    all_at_once, late = resident(3), resident(1)
    disturb(late)
    late.leave(0)
    late.enter(2, 0, None)
    assert bits(late.leave(2)) == bits(all_at_once.leave(2))


def test_a_session_comes_back_to_another_slot_to_the_bit() -> None:
    found = resident(2)
    disturb(found)
    other = bits(next(iter(sessions_of(found.state(), 1))))
    gone = found.leave(1)
    before = bits(gone)
    assert other != before
    found.enter(2, 1, None)
    found.leave(0)
    found.enter(1, 0, gone)
    assert found.here == [1, 2]
    rows = [bits(row) for row in sessions_of(found.state(), 2)]
    assert rows[0] == before
    assert rows[1] == bits(resident(3).leave(2))


def test_swaps_take_free_slots_first_and_nobody_who_is_wanted() -> None:
    found = resident(2, users=5)
    assert list(found.swaps([0, 1])) == []
    found.leave(0)
    swaps = []
    for index, slot, other in found.swaps([1, 3]):
        swaps.append((index, slot, other))
        found.enter(index, slot, None)
    assert swaps == [(3, 0, None)]
    for index, slot, other in found.swaps([2, 3]):
        swaps.append((index, slot, other))
        assert other is not None
        found.leave(other)
        found.enter(index, slot, None)
    assert swaps[1:] == [(2, 1, 1)]
    with pytest.raises(ValueError, match="3 sessions want slots, of which a shard has 2"):
        list(found.swaps([2, 3, 4]))
