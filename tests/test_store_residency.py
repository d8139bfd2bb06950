"""Residency as a state machine against an obvious model: one key a slot, pins hold, least recently used leaves."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pefx.store.residency import Placement, Residency

KEYS = st.sampled_from([f"user{i}@1" for i in range(7)])


class ResidencyMachine(RuleBasedStateMachine):
    """The model: what the bank holds in each slot, how often a key is pinned, when it was last touched."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.residency = Residency(slots)
        self.bank: list[str | None] = [None] * slots
        self.pins: dict[str, int] = {}
        self.touched: dict[str, int] = {}
        self.clock = self.hits = self.loads = self.evictions = 0

    def touch(self, key: str) -> None:
        self.clock += 1
        self.touched[key] = self.clock

    @rule(key=KEYS)
    def acquire(self, key: str) -> None:
        before = (list(self.bank), self.residency.resident())
        room = self.residency.room(key)
        placement = self.residency.acquire(key)
        if key in self.bank:
            assert placement == Placement(self.bank.index(key), load=False, evicted=None)
        elif None in self.bank:
            assert placement is not None
            assert placement.load
            assert placement.evicted is None
            assert self.bank[placement.slot] is None
        elif all(self.pins.get(other or "", 0) for other in self.bank):
            assert placement is None
            assert not room
            assert (self.bank, self.residency.resident()) == before
            return
        else:
            idle = [other for other in self.bank if other is not None and not self.pins.get(other)]
            oldest = min(idle, key=self.touched.__getitem__)
            assert placement == Placement(self.bank.index(oldest), load=True, evicted=oldest)
        assert placement is not None
        assert room
        self.hits, self.loads = self.hits + (not placement.load), self.loads + placement.load
        self.evictions += placement.evicted is not None
        self.bank[placement.slot] = key
        self.pins[key] = self.pins.get(key, 0) + 1
        self.touch(key)

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, count in self.pins.items() if count)))
        self.residency.release(key)
        self.pins[key] -= 1
        self.touch(key)

    @precondition(lambda self: any(self.bank))
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key in self.bank if key)))
        if self.pins.get(key, 0) > 1:
            with pytest.raises(ValueError, match="pinned"):
                self.residency.discard(key)
            return
        self.residency.discard(key)
        self.bank[self.bank.index(key)] = None
        self.pins[key] = 0

    @invariant()
    def agrees_with_the_bank(self) -> None:
        counts = (self.residency.hits, self.residency.loads, self.residency.evictions)
        assert counts == (self.hits, self.loads, self.evictions)
        held = [key for key in self.bank if key is not None]
        assert len(held) == len(set(held))
        assert self.residency.resident() == sorted(held, key=self.touched.__getitem__)
        for key in {*held, *self.pins}:
            assert self.residency.slot(key) == (self.bank.index(key) if key in held else None)
            assert self.residency.pins(key) == self.pins.get(key, 0)


ResidencyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestResidency = ResidencyMachine.TestCase


def test_slots_fill_from_zero() -> None:
    residency = Residency(3)
    assert [residency.acquire(key) for key in "abc"] == [Placement(0, True), Placement(1, True), Placement(2, True)]


def test_full_of_pins_refuses_until_a_release() -> None:
    residency = Residency(2)
    residency.acquire("a")
    residency.acquire("b")
    assert residency.acquire("c") is None
    residency.release("a")
    assert residency.acquire("c") == Placement(0, load=True, evicted="a")
    assert residency.slot("a") is None


def test_misuse_raises() -> None:
    residency = Residency(1)
    with pytest.raises(KeyError):
        residency.release("a")
    with pytest.raises(KeyError):
        residency.discard("a")
    residency.acquire("a")
    residency.release("a")
    with pytest.raises(KeyError):
        residency.release("a")
    assert residency.resident() == ["a"]
    with pytest.raises(ValueError, match="at least one slot"):
        Residency(0)
