"""pefx.serving.live: a policy is where it is said to be, as it is now, or it is refused (law 6)."""

import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.live import Held, LiveRevision, LiveSlots, LiveWeights
from pefx.serving.loading import Source
from pefx.store.residency import Placement, Slots


def live(policy: str, number: int = 0, run: str = "a") -> LiveRevision:
    return LiveRevision(policy, number, run, AdapterSpec(rank=2))


def test_it_is_what_an_engine_asks_for():
    weights = LiveWeights(2)
    assert isinstance(weights, Source)
    assert all(isinstance(slots, Slots) for slots in weights.slots)


def test_no_two_states_of_a_policy_have_one_name():
    made = [live("ann"), live("ann", 1), live("bob"), live("ann", run="b")]
    assert len({one.content_hash for one in made}) == 4
    assert live("ann", 12).key == "ann@live-12"


def test_a_policy_is_found_on_its_own_shard_alone():
    weights = LiveWeights(2)
    weights.hold([Held(live("ann"), 0, 1), Held(live("bob"), 1, 1)], ())
    first, second = weights.slots
    assert first.acquire("ann@live-0") == Placement(1, load=False)
    assert second.acquire("ann@live-0") is None
    assert (first.room("ann@live-0"), second.room("ann@live-0")) == (True, False)
    assert (first.slot("ann@live-0"), first.slot("bob@live-0")) == (1, None)
    assert weights.state(live("bob")) == "slot"
    assert weights.counts().slot_hits == 1


def test_what_a_policy_was_is_gone_with_its_next_update():
    weights = LiveWeights(1)
    weights.hold([Held(live("ann"), 0, 0)], ())
    weights.hold([Held(live("ann", 1), 0, 0)], ())
    assert weights.revision("ann").number == 1
    assert not weights.slots[0].room("ann@live-0")
    for ask in (weights.state, weights.request):
        with pytest.raises(PefxError, match="ann@live-0 is in no slot; its policy is ann@live-1 now") as caught:
            ask(live("ann"))
        assert caught.value.kind == "unknown_revision"
        with pytest.raises(PefxError, match="policy 'bob' is in no slot; there are ann") as caught:
            ask(live("bob"))
        assert caught.value.kind == "unknown_policy"
    with pytest.raises(PefxError, match="is in no slot"):
        weights.state(live("ann", 1, run="another"))


@pytest.mark.parametrize(
    "then",
    [
        [Held(live("ann", 1), 0, 0), Held(live("bob"), 0, 1)],
        [Held(live("bob"), 0, 1)],
        [Held(live("ann"), 0, 2), Held(live("bob"), 0, 1)],
        [Held(live("ann"), 1, 0), Held(live("bob"), 0, 1)],
    ],
)
def test_who_is_in_use_neither_goes_nor_moves(then: list[Held]):
    weights = LiveWeights(2)
    before = [Held(live("ann"), 0, 0), Held(live("bob"), 0, 1)]
    weights.hold(before, ())
    with pytest.raises(RuntimeError, match="ann@live-0 cannot leave its slot"):
        weights.hold(then, ["ann@live-0"])
    assert weights.slots[0].slot("ann@live-0") == 0
    weights.hold(then, ["bob@live-0"])
    weights.hold(before, ["bob@live-0"])


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([Held(live("ann"), 0, 0), Held(live("ann", 1), 0, 1)], "one slot only"),
        ([Held(live("ann"), 0, 0), Held(live("bob"), 0, 0)], "one policy only"),
        ([Held(live("ann"), 2, 0)], "there are 2 shards"),
    ],
)
def test_what_cannot_be_is_refused(held: list[Held], message: str):
    with pytest.raises(ValueError, match=message):
        LiveWeights(2).hold(held, ())


def test_pins_hold():
    slots = LiveSlots()
    slots.put("ann@live-0", 3)
    with pytest.raises(KeyError):
        slots.release("ann@live-0")
    slots.acquire("ann@live-0")
    with pytest.raises(ValueError, match="pinned 1 times"):
        slots.discard("ann@live-0")
    slots.release("ann@live-0")
    slots.discard("ann@live-0")
    assert slots.acquire("ann@live-0") is None
