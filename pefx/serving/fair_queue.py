"""Whose turn it is among many tenants: who got the least so far (virtual token counter, Sheng et al. 2024).

Within a tenant the higher priority comes first, then who came first; and a higher priority comes before any lower one.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Protocol, runtime_checkable

from pefx.serving.sequence import Sequence

KEPT = 16  # one in so many places is kept for newcomers
PROMPT, ANSWER = 1.0, 2.0  # what a token of a prompt and one of an answer count (section 3.1)


@runtime_checkable
class Queue(Protocol):
    """What a scheduler asks of those that wait: here, and in `pefx.serving.local_queue`."""

    def push(self, sequence: Sequence) -> None: ...

    def push_back(self, sequence: Sequence) -> None: ...

    def remove(self, sequence: Sequence) -> None: ...

    def turns(self, resident: Callable[[Any], bool], crowded: Callable[[], bool]) -> Iterator[Sequence]: ...

    def newcomer(self, sequence: Sequence) -> bool: ...

    def kept(self, places: int) -> int: ...

    def order(self, running: list[Sequence]) -> list[Sequence]: ...

    def enter(self, sequence: Sequence, tokens: int) -> None: ...

    def charge(self, sequence: Sequence, tokens: int) -> None: ...

    def leave(self, sequence: Sequence) -> None: ...

    def __len__(self) -> int: ...


@dataclass(eq=False)
class Tenant:
    """Service a tenant got, what it has waiting (in order), and how many of its sequences run."""

    service: float
    waiting: list[Sequence] = field(default_factory=list)
    running: int = 0


class FairQueue:
    """Waiting sequences of many tenants. One that comes back after a while has no credit for the time it was away."""

    def __init__(self):
        self._tenants: dict[str, Tenant] = {}
        self._count = 0
        self._floor = 0.0  # the most that any tenant had got when it went

    def __len__(self) -> int:
        return self._count

    def push(self, sequence: Sequence) -> None:
        """One more waits."""
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            least = min((other.service for other in self._tenants.values()), default=self._floor)
            tenant = self._tenants[sequence.tenant] = Tenant(least)
        insort(tenant.waiting, sequence, key=_rank)
        self._count += 1

    def push_back(self, sequence: Sequence) -> None:
        """One that ran waits again; it came before all that came later."""
        self.leave(sequence, gone=False)
        self.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It waits no more and will not run."""
        tenant = self._tenants[sequence.tenant]
        tenant.waiting.remove(sequence)
        self._count -= 1
        self._tidy(sequence.tenant, tenant)

    def turns(self, resident: Callable[[Any], bool], crowded: Callable[[], bool]) -> Iterator[Sequence]:
        """The waiting in the order of their turns, as what enters meanwhile changes it; while it is `crowded`, of
        newcomers only.
        """
        left = {name: iter(list(tenant.waiting)) for name, tenant in self._tenants.items() if tenant.waiting}
        heap = [self._turn(next(own), name) for name, own in left.items()]
        heapify(heap)
        while heap:
            *_, name, sequence = heappop(heap)
            if crowded() and not self.newcomer(sequence):
                continue
            yield sequence
            following = next(left[name], None)
            if following is not None:
                heappush(heap, self._turn(following, name))

    def newcomer(self, sequence: Sequence) -> bool:
        """Whether nothing of its tenant runs."""
        return not self._tenants[sequence.tenant].running

    def kept(self, places: int) -> int:
        """How many of a shard's places only newcomers take."""
        return places // KEPT

    def order(self, running: list[Sequence]) -> list[Sequence]:
        """Those that run in the order in which their prompts are computed: who got least comes first."""
        return sorted(running, key=lambda s: (-s.priority, self._tenants[s.tenant].service, s.arrival))

    def _turn(self, sequence: Sequence, name: str) -> tuple[int, float, int, str, Sequence]:
        return -sequence.priority, self._tenants[name].service, sequence.arrival, name, sequence

    def enter(self, sequence: Sequence, tokens: int) -> None:
        """It has a place now; `tokens` of its prompt are to be computed."""
        tenant = self._tenants[sequence.tenant]
        tenant.waiting.remove(sequence)
        tenant.running += 1
        tenant.service += PROMPT * tokens
        self._count -= 1

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """It got `tokens` more of its answer."""
        self._tenants[sequence.tenant].service += ANSWER * tokens

    def leave(self, sequence: Sequence, gone: bool = True) -> None:
        """It has its place no more."""
        tenant = self._tenants[sequence.tenant]
        tenant.running -= 1
        if gone:
            self._tidy(sequence.tenant, tenant)

    def _tidy(self, name: str, tenant: Tenant) -> None:
        if not tenant.waiting and not tenant.running:
            self._floor = max(self._floor, tenant.service)
            del self._tenants[name]


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival
