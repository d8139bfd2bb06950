"""pefx.serving.loading: weights are asked for before their turn, and held no longer than somebody waits for them."""

from threading import Event
from typing import Any

import numpy as np
import pytest

from pefx.errors import PefxError
from pefx.serving.generation import Generation
from pefx.serving.loading import Loading
from pefx.serving.pages import PageAllocator
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.serving.sequence import Sampling, Sequence
from pefx.store.residency import Residency
from pefx.store.tiers import Tiers
from tests.serving_fakes import revision

PATIENCE = 60.0


class Store:
    """Weights that come when the gate is open; `fail` names those that do not."""

    def __init__(self):
        self.gate, self.read, self.fail = Event(), [], set()

    def load(self, revision: Any) -> Any:
        self.gate.wait(PATIENCE)
        self.read.append(revision.key)
        if revision.key in self.fail:
            raise PefxError("damaged", "damaged")
        return {"site": {"a": np.zeros(8, np.uint8)}}


def make(store: Store, policies: list[str], **way: Any) -> tuple[Loading, Scheduler, Tiers, list[Sequence]]:
    residency = Residency(4)
    scheduler = Scheduler(shards=[Shard(PageAllocator(9), residency)], size=StepSize(4, 4, 2, 4))
    tiers = Tiers(store.load, 1 << 20, slots=[residency], **way)
    sequences = []
    for handle, policy in enumerate(policies):
        generation = Generation(lambda ids: "", 1, (), frozenset())
        one = Sequence(handle, [1], revision(policy), Sampling(0.0, 1.0, 0.0, 0, 0), generation, 1)
        scheduler.submit(one)
        sequences.append(one)
    return Loading(tiers, scheduler), scheduler, tiers, sequences


def test_nothing_is_ready_until_it_has_arrived():
    store = Store()
    loading, scheduler, tiers, _ = make(store, ["a", "a"])
    loading.ask_ahead()
    assert scheduler.admit(loading.ready) == []
    store.gate.set()
    loading.wait(PATIENCE)
    assert loading.ready(revision("a"))
    (load,) = scheduler.admit(loading.ready)
    assert loading.take(load.revision)["site"]["a"].size == 8
    assert tiers.counts().host.pinned_bytes == 8
    loading.let_go([load.revision])
    assert tiers.counts().host.pinned_bytes == 0
    assert store.read == ["a@1"]


def test_what_is_in_a_slot_is_not_asked_for():
    store = Store()
    loading, scheduler, _, _ = make(store, ["a"])
    residency = scheduler.shards[0].residency
    assert residency is not None
    residency.acquire("a@1")
    loading.ask_ahead()
    assert not loading.ready(revision("a"))


def test_what_nobody_waits_for_any_more_is_let_go():
    store = Store()
    store.gate.set()
    loading, scheduler, tiers, (one,) = make(store, ["a"])
    loading.ask_ahead()
    loading.wait(PATIENCE)
    scheduler.cancel(one)
    loading.let_go()
    assert tiers.counts().host.pinned_bytes == 0
    assert not loading.ready(revision("a"))


def test_a_failure_is_ready_too_and_told_to_who_takes_it():
    store = Store()
    store.gate.set()
    store.fail.add("a@1")
    loading, _, _, _ = make(store, ["a"])
    loading.ask_ahead()
    loading.wait(PATIENCE)
    assert loading.ready(revision("a"))
    with pytest.raises(PefxError, match="damaged"):
        loading.take(revision("a"))


def test_a_full_queue_delays_and_loses_nothing():
    store = Store()
    policies = [f"p{i}" for i in range(9)]
    loading, _, _, _ = make(store, policies, workers=1, queue=1)
    loading.ask_ahead()
    store.gate.set()
    for _ in range(100):
        loading.wait(0.1)
        loading.ask_ahead()
        if all(loading.ready(revision(policy)) for policy in policies):
            break
    assert all(loading.ready(revision(policy)) for policy in policies)
    assert loading.take(revision("other"))  # not asked for ahead: waited for
