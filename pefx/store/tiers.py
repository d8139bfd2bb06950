"""Where a revision's weights are (store, host memory, slot) and how they come nearer: the three tiers in one object."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from pefx.store.host_cache import HostCache
from pefx.store.loads import LoadCounts, Loads
from pefx.store.residency import Residency
from pefx.store.tickets import Ticket

WORKERS = 8  # reads at once: more than one disk or bucket needs to be busy, few enough to hold in memory
QUEUE = 64  # distinct loads that may wait beyond them

Tier = Literal["cold", "warm", "slot"]


@runtime_checkable
class Stored(Protocol):
    """What is asked of a revision: `pefx.store.records.Revision`, or a stand-in."""

    @property
    def key(self) -> str: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def blob_bytes(self) -> int: ...


@dataclass(frozen=True)
class Content:
    """A revision as a key of host memory. The hash is part of it: weights of other content never pass for these."""

    name: str
    content_hash: str
    revision: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"revision {self.name}"


@dataclass(frozen=True)
class TierCounts:
    """Of the slots of all shards: requests that found their revision in one, loads, evictions. And of host memory."""

    slot_hits: int
    slot_loads: int
    slot_evictions: int
    host: LoadCounts


class Tiers:
    """`load(revision)` reads verified weights from the store; `limit_bytes` of them stay in host memory.

    `slots` are those of each shard, for `state` and `counts` only: who is in them is the scheduler's to decide.
    """

    def __init__(
        self,
        load: Callable[[Any], Any],
        limit_bytes: int,
        *,
        slots: Sequence[Residency] = (),
        workers: int = WORKERS,
        queue: int = QUEUE,
        executor: Executor | None = None,
    ):
        self._slots = tuple(slots)
        cache: HostCache[Content, Any] = HostCache(limit_bytes)
        self._loads = Loads(lambda content: load(content.revision), cache, workers, queue, executor)

    def request(self, revision: Stored, background: bool = False) -> Ticket[Any]:
        """A ticket for the weights of `revision`, at once; see `Loads.request`."""
        return self._loads.request(_content(revision), background)

    def prefetch(self, revision: Stored) -> None:
        """A hint that `revision` will be requested; see `Loads.prefetch`. In a slot it needs no load."""
        if self._slot(revision) is None:
            self._loads.prefetch(_content(revision), revision.blob_bytes)

    def state(self, revision: Stored) -> Tier:
        """Where the weights of `revision` are, nearest first."""
        if self._slot(revision) is not None:
            return "slot"
        return "warm" if self._loads.cached(_content(revision)) else "cold"

    def wait_for_room(self) -> None:
        """Return when a request would not be refused as "busy"."""
        self._loads.wait_for_room()

    def counts(self) -> TierCounts:
        return TierCounts(
            slot_hits=sum(slots.hits for slots in self._slots),
            slot_loads=sum(slots.loads for slots in self._slots),
            slot_evictions=sum(slots.evictions for slots in self._slots),
            host=self._loads.counts(),
        )

    def close(self) -> None:
        """End all loads; see `Loads.close`."""
        self._loads.close()

    def _slot(self, revision: Stored) -> int | None:
        found = (slots.slot(revision.key) for slots in self._slots)
        return next((slot for slot in found if slot is not None), None)


def _content(revision: Stored) -> Content:
    return Content(revision.key, revision.content_hash, revision)
