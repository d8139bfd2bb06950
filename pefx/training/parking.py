"""Where sessions wait for a slot: in the run's catalog, or without one in a key space of its output directory."""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from pefx.distributed import barrier, owner
from pefx.store.keyspace import Keyspace
from pefx.store.names import parked_key
from pefx.store.parked import Parked, discard, park, parked_keys, unpark

PLACE = "parked"


class Parking:
    """Of one run, in `catalog` or under `output`. Of several processes one writes, all read: the place is shared.

    What a checkpoint names stays as long as the checkpoint, of which there are `keep`.
    """

    def __init__(self, catalog: str | None, output: str, keep: int):
        self._location = catalog or str(Path(output) / PLACE)
        self._opened: Keyspace | None = None
        self._written: set[str] = set()
        self._named: dict[int, set[str]] = {}  # by step, of checkpoints that are on their way
        self._kept: deque[set[str]] = deque(maxlen=keep)

    def put(self, policy: str, number: int, micro: int, parked: Parked) -> str:
        """Keep session `number` of a policy as it is after `micro` micro-batches; the key to it."""
        key = parked_key(policy, number, micro)
        if key not in self._written and owner():
            park(self._space(), key, parked)
        self._written.add(key)
        return key

    def take(self, key: str) -> Parked:
        """What is under `key`. PefxError kinds "unknown_session", "damaged"."""
        barrier("parked")
        return unpark(self._space(), key)

    def named(self, step: int, keys: Iterable[str]) -> None:
        """The checkpoint of `step`, which is being written, names these."""
        self._named[step] = set(keys)
        self._written |= self._named[step]

    def checkpointed(self, step: int, waiting: Iterable[str]) -> None:
        """The checkpoint of `step` is complete, and an older one gone: so is what only that one named, but for what is
        `waiting` now.
        """
        if step not in self._named:
            return
        self._kept.append(self._named.pop(step))
        dead = self._written.difference(waiting, *self._kept, *self._named.values())
        self._written -= dead
        if dead and owner():
            discard(self._space(), sorted(dead))

    def end(self, sessions: Iterable[tuple[str, int]]) -> None:
        """These sessions, policies and numbers, are over: nothing of them waits any more."""
        if owner():
            for policy, number in sessions:
                discard(self._space(), parked_keys(self._space(), policy, number))

    def _space(self) -> Keyspace:
        if self._opened is None:
            self._opened = Keyspace.open(self._location, create=owner(), read_only=not owner())
        return self._opened
