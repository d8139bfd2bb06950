"""Policies that are in the bank while it is trained: nothing is loaded, and who is in which slot is for others to say.

A policy after each update is a revision of its own, so that nothing that was computed with its weights before one, a
page of keys and values least of all, passes for what they are after it (law 6).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.loads import LoadCounts
from pefx.store.residency import Placement
from pefx.store.tickets import Ticket
from pefx.store.tiers import Tier, TierCounts


@dataclass(frozen=True)
class LiveRevision:
    """A policy as it is after `number` updates in `run`, a name that no other run has whose pages may be about."""

    policy: str
    number: int
    run: str
    spec: AdapterSpec

    @property
    def key(self) -> str:
        return f"{self.policy}@live-{self.number}"

    @property
    def content_hash(self) -> str:
        """A name of the weights: the same run gives a policy after as many updates the same bits."""
        return f"live:{self.run}:{self.key}"


@dataclass(frozen=True)
class Held:
    """`revision` is in `slot` of shard `shard`."""

    revision: LiveRevision
    shard: int
    slot: int


class LiveSlots:
    """One shard's slots, as `LiveWeights` says who is in them: a `Slots` in which everybody has a place or has none."""

    def __init__(self):
        self.hits = 0
        self._slot: dict[str, int] = {}
        self._pins: Counter[str] = Counter()

    def put(self, key: str, slot: int) -> None:
        """`slot` is the place of `key`."""
        self._slot[key] = slot

    def room(self, key: str) -> bool:
        """Whether this shard has `key`."""
        return key in self._slot

    def acquire(self, key: str) -> Placement | None:
        """Pin `key` where it is; None where this shard does not have it."""
        if key not in self._slot:
            return None
        self._pins[key] += 1
        self.hits += 1
        return Placement(self._slot[key], load=False)

    def release(self, key: str) -> None:
        """Undo one `acquire` of `key`. KeyError if it is not pinned."""
        if not self._pins[key]:
            raise KeyError(key)
        self._pins[key] -= 1

    def discard(self, key: str) -> None:
        """`key` has no place any more. KeyError if it had none, ValueError where it is pinned."""
        if self._pins[key]:
            raise ValueError(f"'{key}' is pinned {self._pins[key]} times: others rely on its slot")
        del self._slot[key]

    def slot(self, key: str) -> int | None:
        """The slot of `key`, or None."""
        return self._slot.get(key)


class LiveWeights:
    """A `Source` whose revisions are in slots already, or cannot be had. `slots[s]` are those of shard s."""

    def __init__(self, shards: int):
        self.slots = [LiveSlots() for _ in range(shards)]
        self._held: dict[str, Held] = {}  # by policy

    def hold(self, held: Iterable[Held], in_use: Iterable[str]) -> None:
        """From now on these are in the slots, and nobody else.

        Raises ValueError where a policy or a slot is named twice, or there is no such shard; RuntimeError where a
        revision of the keys `in_use` would go, or move. Then nothing has changed.
        """
        held = list(held)
        if len({one.revision.policy for one in held}) < len(held):
            raise ValueError("a policy is in one slot only")
        if len({(one.shard, one.slot) for one in held}) < len(held):
            raise ValueError("a slot holds one policy only")
        if any(not 0 <= one.shard < len(self.slots) for one in held):
            raise ValueError(f"there are {len(self.slots)} shards")
        stay, kept = set(held), {one.revision.key for one in self._held.values() if one in held}
        for key in sorted(in_use):
            if key not in kept:
                raise RuntimeError(f"revision {key} cannot leave its slot: sequences of it are on their way")
        for one in self._held.values():
            if one not in stay:
                self.slots[one.shard].discard(one.revision.key)
        for one in held:
            self.slots[one.shard].put(one.revision.key, one.slot)
        self._held = {one.revision.policy: one for one in held}

    def revision(self, policy: str) -> LiveRevision:
        """A policy as it is now. Raises PefxError (kind "unknown_policy") where it is in no slot."""
        if policy not in self._held:
            raise PefxError(f"policy '{policy}' is in no slot; there are {self._names()}", "unknown_policy")
        return self._held[policy].revision

    def state(self, revision: Any) -> Tier:
        """Always "slot". Raises PefxError where `revision` is not what its policy is now."""
        now = self._held.get(revision.policy)
        if now is None or now.revision.content_hash != revision.content_hash:
            self._refuse(revision)
        return "slot"

    def prefetch(self, revision: Any) -> None:
        """Nothing comes nearer."""

    def request(self, revision: Any) -> Ticket[Any]:
        """Raises PefxError: what is in no slot is nowhere."""
        self._refuse(revision)

    def wait_for_room(self) -> None:
        """Nothing is waited for."""

    def counts(self) -> TierCounts:
        return TierCounts(sum(slots.hits for slots in self.slots), 0, 0, LoadCounts())

    def close(self) -> None:
        """Nothing goes on in the background."""

    def _names(self) -> str:
        return ", ".join(sorted(self._held)) or "none"

    def _refuse(self, revision: Any) -> NoReturn:
        now = self.revision(revision.policy)
        raise PefxError(f"revision {revision.key} is in no slot; its policy is {now.key} now", "unknown_revision")
