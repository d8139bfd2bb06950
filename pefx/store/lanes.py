"""Who waits for a worker: a bounded queue of two lanes. Background work gives way to what a request waits for."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lanes(Generic[K]):
    """At most `limit` keys in a foreground and a background lane, each in order of arrival."""

    def __init__(self, limit: int):
        if limit < 0:
            raise ValueError(f"a queue cannot hold {limit} loads")
        self.limit = limit
        self._front: OrderedDict[K, None] = OrderedDict()
        self._back: OrderedDict[K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._front) + len(self._back)

    def __contains__(self, key: K) -> bool:
        return key in self._front or key in self._back

    def room(self, background: bool) -> bool:
        """Whether one more may wait: a foreground key may push out the newest background one."""
        return len(self) < self.limit or (bool(self._back) and not background)

    def add(self, key: K, background: bool) -> K | None:
        """Let `key` wait; returns the key it pushed out. ValueError without room, or if it waits already."""
        if key in self or not self.room(background):
            raise ValueError(f"'{key}' waits already, or there is no room for it")
        pushed = self._back.popitem()[0] if len(self) >= self.limit else None
        (self._back if background else self._front)[key] = None
        return pushed

    def promote(self, key: K) -> None:
        """Move `key`, if it waits in the background, to the end of the foreground."""
        if key in self._back:
            del self._back[key]
            self._front[key] = None

    def remove(self, key: K) -> None:
        """`key` waits no more. KeyError if it does not wait."""
        del (self._front if key in self._front else self._back)[key]

    def pop(self) -> K:
        """The next key: the oldest in the foreground, or else in the background. KeyError if none waits."""
        return (self._front or self._back).popitem(last=False)[0]
