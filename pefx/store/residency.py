"""Which revision sits in which slot of the bank: least recently used leaves first, pinned never. Plain Python."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Placement:
    """Where a revision is. `load`: its weights must be put into `slot` before the next step; `evicted`: who left it."""

    slot: int
    load: bool
    evicted: str | None = None


@runtime_checkable
class Slots(Protocol):
    """What a scheduler asks of a shard's slots: `Residency`, or slots that others fill (`pefx.serving.live`)."""

    def room(self, key: str) -> bool: ...

    def acquire(self, key: str) -> Placement | None: ...

    def release(self, key: str) -> None: ...

    def discard(self, key: str) -> None: ...

    def slot(self, key: str) -> int | None: ...


class Residency:
    """`slots` places for revisions, named by any string key (`Revision.key`).

    A key is in at most one slot and a slot holds at most one key. A key is pinned once per `acquire` until the
    `release` that answers it. Among unpinned keys the one released or acquired longest ago is evicted first.
    `hits`, `loads` and `evictions` count what acquires came to.
    """

    def __init__(self, slots: int):
        if slots < 1:
            raise ValueError(f"a residency needs at least one slot, not {slots}")
        self.slots = slots
        self.hits = self.loads = self.evictions = 0
        self._free = list(range(slots - 1, -1, -1))
        self._slot: OrderedDict[str, int] = OrderedDict()  # resident keys, least recently used first
        self._pins: dict[str, int] = {}

    def room(self, key: str) -> bool:
        """Whether `acquire` would find a slot for `key`."""
        return key in self._slot or len(self._pins) < self.slots

    def acquire(self, key: str) -> Placement | None:
        """Pin `key` in a slot, evicting if needed; None, and no change, when every slot is pinned by others."""
        if key in self._slot:
            self._slot.move_to_end(key)
            self._pins[key] = self._pins.get(key, 0) + 1
            self.hits += 1
            return Placement(self._slot[key], load=False)
        evicted = None
        if self._free:
            slot = self._free.pop()
        else:
            evicted = next((other for other in self._slot if other not in self._pins), None)
            if evicted is None:
                return None
            slot = self._slot.pop(evicted)
            self.evictions += 1
        self._slot[key] = slot
        self._pins[key] = 1
        self.loads += 1
        return Placement(slot, load=True, evicted=evicted)

    def release(self, key: str) -> None:
        """Undo one `acquire` of `key`; unpinned it stays resident until its slot is needed. KeyError if not pinned."""
        pins = self._pins[key]
        if pins == 1:
            del self._pins[key]
        else:
            self._pins[key] = pins - 1
        self._slot.move_to_end(key)

    def discard(self, key: str) -> None:
        """Forget `key` and its only pin because its load failed: the slot must not pass for `key`.

        KeyError if absent, ValueError if others have it pinned.
        """
        if self._pins.get(key, 0) > 1:
            raise ValueError(f"'{key}' is pinned {self._pins[key]} times: others rely on its slot")
        self._free.append(self._slot.pop(key))
        self._pins.pop(key, None)

    def slot(self, key: str) -> int | None:
        """The slot that holds `key`, or None."""
        return self._slot.get(key)

    def pins(self, key: str) -> int:
        """How many acquires of `key` are not yet released."""
        return self._pins.get(key, 0)

    def resident(self) -> list[str]:
        """The keys in slots, least recently used first."""
        return list(self._slot)
