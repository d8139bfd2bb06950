"""pefx.store.tiers: host cache, loads, slots and readiness together as a state machine, with loads that end when told.

The model is plain dicts and lists: what is in host memory and when it was used, which loads run and which wait, who
holds what, which stage each revision is in, what the bank holds.
"""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pefx.errors import PefxError
from pefx.store.readiness import Readiness
from pefx.store.residency import Residency
from pefx.store.stages import TRANSITIONS, Action
from pefx.store.tickets import Ticket
from pefx.store.tiers import Content, Tiers
from tests import serving_fakes
from tests.store_fakes import ByHand, Store, name_in

SIZES = {"a@1": 8, "a@2": 8, "b@1": 16, "c@1": 24, "d@1": 5, "e@1": 70}
REVISIONS = {key: serving_fakes.revision(key[0], int(key[2:]), blob_bytes=size) for key, size in SIZES.items()}
KEYS = st.sampled_from(sorted(SIZES))


@dataclass(eq=False)
class Claim:
    """A ticket as the model sees it: waiting, pinned, loose, handed or over. Without `ticket` it is readiness's."""

    key: str
    ticket: Ticket[Any] | None
    state: str = "waiting"
    error: str | None = None


class TiersMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(16, 60), workers=st.integers(1, 2), queue=st.integers(0, 3), slots=st.integers(1, 2))
    def start(self, limit: int, workers: int, queue: int, slots: int) -> None:
        self.limit, self.workers, self.queue = limit, workers, queue
        self.store, self.executor, self.slots = Store(), ByHand(), Residency(slots)
        self.store.sizes = SIZES
        self.tiers = Tiers(
            self.store.load, limit, slots=[self.slots], workers=workers, queue=queue, executor=self.executor
        )
        self.readiness = Readiness(self.tiers, lambda revision: None)
        self.clock = 0
        self.used: dict[str, int] = {}  # what is in host memory, and when it was last used
        self.running: list[str] = []
        self.front: list[str] = []
        self.back: list[str] = []
        self.hinted: set[str] = set()  # loads under way that a hint began
        self.fresh: dict[str, int] = {}
        self.claims: list[Claim] = []
        self.count = dict.fromkeys(["requests", "prefetched", "prefetch_hits", "reads"], 0)
        self.stage = dict.fromkeys(SIZES, "committed")
        self.warming: dict[str, tuple[Claim, Future[None]]] = {}
        self.kept: dict[str, Claim] = {}
        self.current: dict[str, str] = {}
        self.bank: dict[int, str] = {}
        self.in_use: list[str] = []

    # What the model knows.

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def waiters(self, key: str) -> list[Claim]:
        return [claim for claim in self.claims if claim.key == key and claim.state == "waiting"]

    def pinned(self, key: str) -> int:
        return sum(claim.key == key and claim.state in ("pinned", "handed") for claim in self.claims)

    def pinned_bytes(self) -> int:
        return sum(SIZES[key] for key in self.used if self.pinned(key))

    def under_way(self) -> list[str]:
        return self.running + self.front + self.back

    def room(self, background: bool) -> bool:
        if len(self.running) < self.workers or len(self.front) + len(self.back) < self.queue:
            return True
        return bool(self.back) and not background

    def begin(self, key: str, background: bool) -> None:
        if len(self.running) < self.workers:
            self.running.append(key)
            return
        if len(self.front) + len(self.back) == self.queue:
            pushed = self.back.pop()
            self.hinted.discard(pushed)
            self.fresh.pop(pushed, None)
            self.settle(self.waiters(pushed), "loose", "busy")
        (self.back if background else self.front).append(key)

    def settle(self, claims: list[Claim], state: str, error: str | None = None) -> None:
        for claim in claims:
            claim.state, claim.error = state, error
        for key, (claim, done) in list(self.warming.items()):
            if claim in claims:
                del self.warming[key]
                if state == "pinned":
                    self.stage[key], self.kept[key] = "prewarmed", claim
                    assert done.result() is None
                else:
                    claim.state = "over"
                    assert isinstance(done.exception(), PefxError)

    def give_back(self, claim: Claim) -> None:
        before, claim.state = claim.state, "over"
        if before == "waiting":
            claim.error = "cancelled"
            if claim.key not in self.running and not self.waiters(claim.key) and claim.key not in self.hinted:
                (self.front if claim.key in self.front else self.back).remove(claim.key)
        elif before in ("pinned", "handed") and not self.pinned(claim.key):
            self.used[claim.key] = self.now()

    def ask(self, key: str, background: bool, call: Any) -> Claim | None:
        """Request `key` through `call`, and see that what comes of it is what the model says."""
        self.count["requests"] += 1
        if key not in self.under_way() and key not in self.used and not self.room(background):
            with pytest.raises(PefxError) as caught:
                call()
            assert (caught.value.kind, caught.value.retryable) == ("busy", True)
            return None
        claim = Claim(key, None)
        if key in self.under_way():
            if key in self.back and not background:
                self.back.remove(key)
                self.front.append(key)
        elif key in self.used:
            claim.state = "pinned"
            for other in self.claims:
                if other.key == key and other.state == "handed":
                    other.state = "over"
        else:
            self.begin(key, background)
        self.count["prefetch_hits"] += key in self.fresh
        self.fresh.pop(key, None)
        self.claims.append(claim)
        return claim

    # What may happen.

    @rule(key=KEYS, background=st.booleans())
    def request_any(self, key: str, background: bool) -> None:
        self.request(key, background)

    def request(self, key: str, background: bool) -> None:
        tickets: list[Ticket[Any]] = []
        call = lambda: tickets.append(self.tiers.request(REVISIONS[key], background))  # noqa: E731
        before = len(self.claims)
        if self.room(background) or key in self.used or key in self.under_way():
            call()
        claim = self.ask(key, background, call)
        assert (claim is None) == (len(self.claims) == before)
        if claim is not None:
            claim.ticket = tickets[0]

    @rule(key=KEYS)
    def prefetch(self, key: str) -> None:
        self.tiers.prefetch(REVISIONS[key])
        if self.slots.slot(key) is not None or key in self.under_way():
            return
        if key in self.used:
            if not self.pinned(key):
                self.used[key] = self.now()
            return
        if self.room(True) and self.pinned_bytes() + sum(self.fresh.values()) + SIZES[key] <= self.limit:
            self.begin(key, True)
            self.hinted.add(key)
            self.fresh[key] = SIZES[key]
            self.count["prefetched"] += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data(), breaks=st.sampled_from([False, False, False, True]))
    def end_a_load(self, data: st.DataObject, breaks: bool) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        key = self.running[index]
        self.store.broken = {key} if breaks else set()
        self.executor.run(index)
        assert self.store.read.pop() == key
        self.count["reads"] += 1
        del self.running[index]
        claims, size = self.waiters(key), SIZES[key]
        if breaks or size > self.limit:
            self.fresh.pop(key, None)
            self.settle(claims, "loose", "damaged" if breaks else "too_large")
        elif self.pinned_bytes() + size > self.limit:
            self.fresh.pop(key, None)
            self.settle(claims, "loose")
        else:
            while sum(SIZES[k] for k in self.used) + size > self.limit:
                gone = min((k for k in self.used if not self.pinned(k)), key=self.used.__getitem__)
                del self.used[gone]
                self.fresh.pop(gone, None)
            self.used[key] = self.now()
            self.settle(claims, "pinned")
        self.hinted.discard(key)
        if self.front or self.back:
            self.running.append((self.front or self.back).pop(0))

    @precondition(lambda self: any(claim.ticket for claim in self.claims))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from([claim for claim in self.claims if claim.ticket]))
        assert claim.ticket is not None
        claim.ticket.release()
        self.give_back(claim)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """The next action for one of the revisions that are furthest on their way to be served."""
        following: dict[str, Action] = {"prewarmed": "expose", "registered": "prewarm", "committed": "register"}
        for stage, action in following.items():
            keys = [key for key in SIZES if self.stage[key] == stage and key not in self.warming]
            if keys:
                self.ready(data.draw(st.sampled_from(keys)), action)
                return

    @precondition(lambda self: any(claim.state == "handed" for claim in self.claims))
    @rule(data=st.data())
    def request_what_was_exposed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([claim.key for claim in self.claims if claim.state == "handed"]))
        self.request(key, False)
        assert self.claims[-1].state == "pinned"  # nothing was read for it

    @rule(key=KEYS, action=st.sampled_from(sorted(set(TRANSITIONS) - {"retire"})))
    def any_action(self, key: str, action: Action) -> None:
        self.ready(key, action)

    def ready(self, key: str, action: Action) -> None:
        revision, call = REVISIONS[key], getattr(self.readiness, action)
        if action == "prewarm" and key in self.warming:
            assert call(revision) is self.warming[key][1]
            return
        if self.stage[key] not in TRANSITIONS[action].before:
            with pytest.raises(PefxError, match=f"revision {key} is {self.stage[key]}: to {action} it"):
                call(revision)
            return
        if action == "prewarm":
            self.prewarm(key)
            return
        call(revision)
        self.stage[key] = TRANSITIONS[action].after
        if action == "expose" and self.kept[key].state == "pinned":
            self.kept[key].state = "handed"
        if action == "withdraw":
            if key in self.warming:
                claim, done = self.warming.pop(key)
                self.give_back(claim)
                assert done.exception() is not None
            elif key in self.kept:
                self.give_back(self.kept.pop(key))
            if self.current.get(revision.policy) == key:
                del self.current[revision.policy]
        elif action in ("expose", "select"):
            self.current[revision.policy] = key

    def prewarm(self, key: str) -> None:
        made: list[Future[None]] = []
        call = lambda: made.append(self.readiness.prewarm(REVISIONS[key]))  # noqa: E731
        if self.room(True) or key in self.used or key in self.under_way():
            call()
        claim = self.ask(key, True, call)
        if claim is not None:
            self.warming[key] = (claim, made[0])
            if claim.state == "pinned":
                self.settle([claim], "pinned")

    @precondition(lambda self: any(claim.ticket and claim.state == "pinned" for claim in self.claims))
    @rule(data=st.data())
    def into_a_slot(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from([c for c in self.claims if c.ticket and c.state == "pinned"]))
        placement = self.slots.acquire(claim.key)
        if placement is None:
            return
        self.in_use.append(claim.key)
        if placement.load:
            assert claim.ticket is not None
            self.bank[placement.slot] = name_in(claim.ticket.result())
        assert self.bank[placement.slot] == claim.key

    @precondition(lambda self: self.in_use)
    @rule(data=st.data())
    def out_of_use(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.in_use))
        self.in_use.remove(key)
        self.slots.release(key)

    # What must hold.

    @invariant()
    def loads_are_those_of_the_model(self) -> None:
        assert [key.removeprefix("revision ") for key in self.executor.under_way()] == self.running
        assert len(set(self.under_way())) == len(self.under_way())
        assert len(self.running) <= self.workers
        assert len(self.front) + len(self.back) <= self.queue
        assert self.running or not (self.front or self.back)  # who waits waits for a load that runs

    @invariant()
    def memory_is_bounded_and_what_is_pinned_is_there(self) -> None:
        host = self.tiers.counts().host
        assert host.bytes == sum(SIZES[key] for key in self.used) <= self.limit
        assert host.pinned_bytes == self.pinned_bytes()
        for key, revision in REVISIONS.items():
            slot = self.slots.slot(key)
            assert self.tiers.state(revision) == (
                "slot" if slot is not None else "warm" if key in self.used else "cold"
            )
            assert key in self.used or not self.pinned(key)

    @invariant()
    def every_ticket_is_as_the_model_says(self) -> None:
        for claim in self.claims:
            if claim.ticket is None:
                continue
            assert claim.ticket.done() == (claim.state != "waiting")
            assert claim.state != "waiting" or claim.key in self.under_way()
            assert claim.ticket.pinned == (claim.state == "pinned")
            if claim.state in ("pinned", "loose") and claim.error is None:
                assert name_in(claim.ticket.result()) == claim.key  # never another's
            elif claim.error is not None and claim.state == "loose":
                with pytest.raises(PefxError) as caught:
                    claim.ticket.result()
                assert caught.value.kind == claim.error

    @invariant()
    def counters_add_up(self) -> None:
        host = self.tiers.counts().host
        assert host.hits + host.shared + host.misses + host.refused == self.count["requests"]
        assert host.loads + host.failures == self.count["reads"]
        assert host.prefetched == self.count["prefetched"]
        assert host.prefetch_hits == self.count["prefetch_hits"]
        ended = host.loads + host.failures + host.dropped
        assert host.misses + host.prefetched == ended + len(self.under_way())

    @invariant()
    def a_policy_resolves_to_what_was_exposed_last(self) -> None:
        for key, revision in REVISIONS.items():
            assert self.readiness.stage(revision) == self.stage[key]
            for number in (None, revision.number):
                found = self.current.get(revision.policy) if number is None else key
                if found is None or self.stage[found] != "exposed":
                    with pytest.raises(PefxError) as caught:
                        self.readiness.resolve(revision.policy, number)
                    assert caught.value.kind == "not_exposed"
                else:
                    assert self.readiness.resolve(revision.policy, number).key == found

    @invariant()
    def no_revision_is_in_two_slots(self) -> None:
        assert len(set(self.bank.values())) == len(self.bank)
        assert {self.slots.slot(key): key for key in self.slots.resident()} == self.bank

    def teardown(self) -> None:
        if not hasattr(self, "tiers"):
            return
        self.tiers.close()
        for claim in self.claims:
            assert claim.ticket is None or claim.ticket.done()
        assert all(done.done() for _, done in self.warming.values())
        while self.executor.jobs:
            self.executor.run()
        host = self.tiers.counts().host
        assert host.misses + host.prefetched == host.loads + host.failures + host.dropped
        for claim in self.claims:
            if claim.ticket is not None:
                claim.ticket.release()


TiersMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50)
TestTiers = TiersMachine.TestCase


def test_host_memory_tells_contents_apart() -> None:
    """A revision of other content under the same name is not what is in memory."""
    executor, store = ByHand(), Store()
    tiers = Tiers(store.load, 100, executor=executor)
    one = REVISIONS["a@1"]
    other = replace(one, content_hash="sha256:other")
    tiers.request(one).release()
    executor.run()
    assert (tiers.state(one), tiers.state(other)) == ("warm", "cold")
    assert not tiers.request(other).done()
    assert Content("a@1", "x", one) == Content("a@1", "x", other)


def test_what_sits_in_a_slot_is_not_read_ahead() -> None:
    executor, slots = ByHand(), Residency(2)
    tiers = Tiers(Store().load, 100, slots=[slots], executor=executor)
    for key in ("a@1", "a@1", "b@1"):
        slots.acquire(key)
    for revision in REVISIONS.values():
        tiers.prefetch(revision)
    assert executor.under_way() == ["revision a@2", "revision c@1", "revision d@1"]
    counts = tiers.counts()
    assert (counts.slot_hits, counts.slot_loads, counts.slot_evictions) == (1, 2, 0)
    tiers.wait_for_room()
