"""Weights in host memory, bounded by bytes: the least recently used leave first, the pinned never. Plain Python.

What leaves is forgotten here and stays in the store. Not safe for threads by itself: `pefx.store.loads.Loads` owns one
and guards it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from pefx.errors import PefxError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def weights_bytes(weights: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of the arrays of `{site: {factor: array}}`."""
    return sum(array.nbytes for factors in weights.values() for array in factors.values())


class HostCache(Generic[K, V]):
    """Values by key, `weigh` giving the bytes of each, at most `limit_bytes` of them together.

    A key is pinned once per `pin` (and per pin of its `put`) until the `unpin` that answers it. Among unpinned keys the
    one put, pinned or unpinned longest ago is evicted first.
    """

    def __init__(self, limit_bytes: int, weigh: Callable[[Any], int] = weights_bytes):
        if limit_bytes < 1:
            raise ValueError(f"a host cache needs room for at least one byte, not {limit_bytes}")
        self.limit_bytes, self.weigh = limit_bytes, weigh
        self.hits = self.misses = self.evictions = self.bytes = self.pinned_bytes = 0
        self._held: dict[K, tuple[V, int]] = {}  # value and bytes
        self._idle: OrderedDict[K, None] = OrderedDict()  # unpinned keys, least recently used first
        self._pins: dict[K, int] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def pin(self, key: K) -> V | None:
        """The value of `key`, which then stays until it is unpinned; None if it is not here."""
        if key not in self._held:
            self.misses += 1
            return None
        self.hits += 1
        value, size = self._held[key]
        if key not in self._pins:
            del self._idle[key]
            self.pinned_bytes += size
        self._pins[key] = self._pins.get(key, 0) + 1
        return value

    def unpin(self, key: K) -> None:
        """Undo one pin of `key`; without pins it stays until room is needed. KeyError if not pinned."""
        pins = self._pins[key]
        if pins > 1:
            self._pins[key] = pins - 1
            return
        del self._pins[key]
        self._idle[key] = None
        self.pinned_bytes -= self._held[key][1]

    def put(self, key: K, value: V, pins: int = 0) -> list[K] | None:
        """Keep `value`, pinned `pins` times. Returns the keys evicted for it, or None, and no change, when what is
        pinned leaves no room.

        PefxError kind "too_large" (see `check`), ValueError if `key` is here already.
        """
        if key in self._held:
            raise ValueError(f"'{key}' is in the host cache already")
        size = self.check(key, value)
        if self.pinned_bytes + size > self.limit_bytes:
            return None
        evicted = []
        while self.bytes + size > self.limit_bytes:
            other, _ = self._idle.popitem(last=False)
            self.bytes -= self._held.pop(other)[1]
            evicted.append(other)
        self.evictions += len(evicted)
        self._held[key] = (value, size)
        self.bytes += size
        if pins:
            self._pins[key] = pins
            self.pinned_bytes += size
        else:
            self._idle[key] = None
        return evicted

    def check(self, key: K, value: V) -> int:
        """The bytes of `value`. PefxError kind "too_large" if it could never be kept."""
        size = self.weigh(value)
        if size > self.limit_bytes:
            message = f"{key} has {size:,} bytes, the host cache holds at most {self.limit_bytes:,} (host_cache_mb)"
            raise PefxError(message, "too_large")
        return size

    def touch(self, key: K) -> None:
        """Count `key`, if it is here, as used just now."""
        if key in self._idle:
            self._idle.move_to_end(key)

    def pins(self, key: K) -> int:
        """How many pins of `key` are not undone."""
        return self._pins.get(key, 0)

    def keys(self) -> list[K]:
        """The unpinned keys, least recently used first, then the pinned."""
        return [*self._idle, *self._pins]
