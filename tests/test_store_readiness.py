"""pefx.store.readiness: weights first, then requests; what may follow what; nothing served that was not exposed."""

from concurrent.futures import Future
from dataclasses import replace

import pytest

from pefx.errors import PefxError
from pefx.store.readiness import Readiness
from pefx.store.records import Revision
from pefx.store.tiers import Tiers
from tests.serving_fakes import revision
from tests.store_fakes import SIZE, ByHand, Store, name_in

ONE, TWO = revision("alice", 1), revision("alice", 2)


class Server:
    """A readiness over tiers whose loads run by hand."""

    def __init__(self, room: int = 4, queue: int = 4):
        self.store, self.executor = Store(), ByHand()
        self.tiers = Tiers(self.store.load, room * SIZE, workers=1, queue=queue, executor=self.executor)
        self.foreign: set[str] = set()
        self.readiness = Readiness(self.tiers, self.admit)

    def admit(self, revision: Revision) -> None:
        if revision.key in self.foreign:
            raise PefxError(f"{revision.key} is of another base", "wrong_base")

    def prewarmed(self, revision: Revision) -> Future[None]:
        self.readiness.register(revision)
        done = self.readiness.prewarm(revision)
        while self.executor.jobs:
            self.executor.run()
        return done


def kind_of(call, *args) -> str:
    with pytest.raises(PefxError) as caught:
        call(*args)
    return caught.value.kind


def test_in_two_phases_and_the_first_request_reads_nothing() -> None:
    server = Server()
    ready, stages = server.readiness, [server.readiness.stage(ONE)]
    ready.register(ONE)
    stages.append(ready.stage(ONE))
    done = ready.prewarm(ONE)
    assert ready.prewarm(ONE) is done  # it goes on
    assert kind_of(ready.expose, ONE) == "wrong_stage"
    server.executor.run()
    assert done.result() is None
    stages.append(ready.stage(ONE))
    assert kind_of(ready.resolve, "alice") == "not_exposed"
    ready.expose(ONE)
    stages.append(ready.stage(ONE))
    for name in "bcdefg":  # others fill the cache meanwhile
        server.tiers.request(revision(name)).release()
        server.executor.run()
    with server.tiers.request(ready.resolve("alice")) as weights:
        assert name_in(weights) == "alice@1"
    assert server.store.read.count("alice@1") == 1
    ready.withdraw(ONE)
    assert [*stages, ready.stage(ONE)] == ["committed", "registered", "prewarmed", "exposed", "committed"]
    assert kind_of(ready.resolve, "alice") == "not_exposed"
    assert server.tiers.counts().host.pinned_bytes == 0


def test_a_policy_changes_at_expose_and_back_at_select() -> None:
    server = Server()
    ready = server.readiness
    server.prewarmed(ONE)
    ready.expose(ONE)
    server.prewarmed(TWO)
    assert ready.resolve("alice") == ONE
    with pytest.raises(PefxError, match="revision alice@2 is prewarmed on this server, only exposed ones are served"):
        ready.resolve("alice", 2)
    ready.expose(TWO)
    assert (ready.resolve("alice"), ready.resolve("alice", 1)) == (TWO, ONE)
    ready.select(ONE)
    assert ready.resolve("alice") == ONE
    ready.withdraw(TWO)
    assert ready.resolve("alice") == ONE
    ready.withdraw(ONE)  # nobody chose another: nothing takes its place
    assert kind_of(ready.resolve, "alice") == "not_exposed"
    assert kind_of(ready.resolve, "alice", 3) == "not_exposed"
    assert kind_of(ready.select, TWO) == "wrong_stage"


def test_what_does_not_fit_is_not_registered() -> None:
    server = Server()
    server.foreign.add(ONE.key)
    assert kind_of(server.readiness.register, ONE) == "wrong_base"
    assert server.readiness.stage(ONE) == "committed"


def test_other_content_under_a_registered_key_is_refused() -> None:
    ready = Server().readiness
    ready.register(ONE)
    other = replace(ONE, content_hash="sha256:other")
    for call in (ready.stage, ready.register, ready.prewarm, ready.expose, ready.select, ready.withdraw):
        assert kind_of(call, other) == "unknown_revision"


def test_a_prewarm_that_fails_leaves_it_registered() -> None:
    server = Server()
    server.store.broken.add(ONE.key)
    done = server.prewarmed(ONE)
    assert kind_of(done.result) == "damaged"
    assert server.readiness.stage(ONE) == "registered"
    server.store.broken.clear()
    again = server.readiness.prewarm(ONE)
    server.executor.run()
    assert again.result() is None
    assert server.readiness.stage(ONE) == "prewarmed"
    assert kind_of(server.readiness.prewarm, ONE) == "wrong_stage"


def test_a_prewarm_gives_way_to_requests() -> None:
    server = Server(queue=1)
    server.tiers.request(revision("bob"))
    server.readiness.register(ONE)
    done = server.readiness.prewarm(ONE)
    server.tiers.request(revision("carol"))
    assert kind_of(done.result) == "busy"
    server.readiness.register(TWO)
    assert kind_of(server.readiness.prewarm, TWO) == "busy"  # the queue is full of requests
    assert [server.readiness.stage(each) for each in (ONE, TWO)] == ["registered"] * 2


def test_without_room_beside_what_is_pinned_nothing_is_prewarmed() -> None:
    server = Server(room=1)
    held = server.tiers.request(revision("bob"))
    server.executor.run()
    assert kind_of(server.prewarmed(ONE).result) == "busy"
    assert server.readiness.stage(ONE) == "registered"
    held.release()
    done = server.readiness.prewarm(ONE)
    server.executor.run()
    assert done.result() is None


def test_retired_at_any_time_it_is_neither_served_nor_pinned_and_may_come_back() -> None:
    server = Server()
    ready = server.readiness
    ready.register(ONE)
    done = ready.prewarm(ONE)
    ready.withdraw(ONE)
    server.executor.run()
    assert kind_of(done.result) == "cancelled"
    assert ready.stage(ONE) == "committed"
    assert server.prewarmed(ONE).result() is None
    ready.withdraw(ONE)
    server.prewarmed(ONE)
    ready.expose(ONE)
    ready.withdraw(ONE)
    assert server.tiers.counts().host.pinned_bytes == 0
