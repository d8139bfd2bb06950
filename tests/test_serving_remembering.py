"""pefx.serving.remembering: states that sequences begin with, those that cannot be had, and what is kept of them."""

from dataclasses import replace
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving import remembering as module
from pefx.serving.generation import Generation
from pefx.serving.jobs import Answered, Job
from pefx.serving.memory import Keep, Kept, Memory
from pefx.serving.pages import PageAllocator
from pefx.serving.policies import Policies
from pefx.serving.remembering import Remembering
from pefx.serving.requests import Request, RequestError
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.serving.sequence import Sampling, Sequence
from pefx.store.records import Revision
from pefx.store.residency import Residency
from tests.serving_fakes import BASE, SPEC, FakeCatalog, revision

MEMORY = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
WEIGHTS = revision("team", spec=MEMORY)
STATE = revision("amy", 3, spec=replace(MEMORY, method="delta_state", over="team@1"))


class Device:
    """Notes what begins where."""

    def __init__(self):
        self.begun: list[tuple[int, float]] = []

    def begin(self, shard: int, page: int, state: np.ndarray) -> None:
        self.begun.append((page, float(state[0])))

    def recall(self, where: tuple[int, int], spec: AdapterSpec) -> np.ndarray:
        return np.asarray(where, np.float32)


def scheduler() -> Scheduler:
    return Scheduler(shards=[Shard(PageAllocator(8), Residency(2))], size=StepSize(4, 4, 4, 4))


def sequence(state: Revision | None = STATE) -> Sequence:
    return Sequence(
        handle=1,
        prompt=[1, 2],
        revision=WEIGHTS,
        sampling=Sampling(0.0, 1.0, 0.0, 0, 0),
        generation=Generation(lambda ids: "", 1, (), frozenset()),
        max_tokens=1,
        memory=Memory(MEMORY, "prompt", 1, state, place=(1, 6)),
    )


def made(keep: Keep | None = None, sequences: Scheduler | None = None) -> tuple[Remembering, Device]:
    device = Device()
    policies = Policies(FakeCatalog(WEIGHTS, STATE, revision("ann")), BASE, SPEC, others=(MEMORY,))
    return Remembering(device, sequences or scheduler(), policies, keep, frozenset({"storage"})), device


def test_a_state_is_served_by_what_it_is_over():
    remembering, _ = made()
    assert remembering.served_by(Request("a", "x", policy="amy"), STATE) == (WEIGHTS, STATE)
    assert remembering.served_by(Request("a", "x", policy="ann"), revision("ann")) == (revision("ann"), None)
    with pytest.raises(PefxError, match="policy 'gone'"):
        remembering.served_by(Request("a", "x"), replace(STATE, spec=replace(STATE.spec, over="gone@1")))
    with pytest.raises(RequestError, match="field 'remember': nothing can be kept here"):
        remembering.served_by(Request("a", "x", policy="team", remember="amy"), WEIGHTS)


def test_sequences_begin_with_their_states_and_one_whose_state_is_gone_is_over():
    sequences, bad = scheduler(), revision("bad", spec=STATE.spec)
    remembering, device = made(None, sequences)
    first, second, empty = sequence(), sequence(bad), sequence(None)
    for one in (first, second, empty):
        sequences.submit(one)
    sequences.admit()
    assert [one.memory for one in sequences.begun] == [first.memory, second.memory]

    def weights(state: Revision) -> Any:
        if state is bad:
            raise PefxError("it is damaged", "damaged")
        return {"memory": {"state": np.ones(2)}}

    assert remembering.begin(weights) == [second]
    assert str(second.error) == "it is damaged"
    assert device.begun == [(first.pages[0], 1.0)]
    assert sequences.begun == []
    assert sequences.running == [first, empty]


def test_trouble_with_the_catalog_ends_everything():
    sequences = scheduler()
    remembering, _ = made(None, sequences)
    sequences.submit(sequence())
    sequences.admit()

    def weights(state: Revision) -> Any:
        raise PefxError("the disk is gone", "storage")

    with pytest.raises(PefxError, match="the disk is gone"):
        remembering.begin(weights)


def test_what_is_kept_is_told_and_what_cannot_be_is_the_answers_error():
    def keep(kept: Kept) -> str:
        if kept.policy == "taken":
            raise PefxError("policy 'taken' is of another", "wrong_spec")
        assert kept.state.tolist() == [1.0, 6.0]
        assert (kept.revision, kept.before, kept.tokens) == (WEIGHTS, STATE, [1, 2])
        return f"{kept.policy}@4"

    remembering, _ = made(keep)

    def kept(policy: str, row: dict[str, Any]) -> dict[str, Any]:
        assert remembering.keeps(*over(policy, row))
        assert remembering.busy
        remembering.wait(10.0)
        (answered,) = remembering.kept()
        assert not remembering.busy
        return answered.row

    assert kept("amy", {"id": "a"}) == {"id": "a", "remembered": "amy@4"}
    assert kept("taken", {"id": "a"})["error"]["type"] == "wrong_spec"
    assert not remembering.keeps(*over(None, {"id": "a"}))
    assert not remembering.keeps(*over("amy", {"error": 1}))
    assert remembering.kept() == []


def over(policy: str | None, row: dict[str, Any]) -> tuple[Job, Answered]:
    job = Job(1, Request("a", "x", policy="amy", remember=policy), [sequence()], 0.0, "slot")
    return job, Answered(1, row, 1, 1, 0, 0.0, 0.0, "slot")


def test_others_do_not_wait_for_what_is_being_kept_and_of_one_policy_all_is_kept_in_order():
    free, order = Event(), []

    def keep(kept: Kept) -> str:
        free.wait(10.0)
        order.append(kept.policy)
        return f"{kept.policy}@{len(order)}"

    remembering, _ = made(keep)
    for _ in range(5):
        remembering.keeps(*over("amy", {"id": "a"}))
    remembering.wait(0.01)
    assert remembering.kept() == []
    free.set()
    remembering.close()
    assert [answered.row["remembered"] for answered in remembering.kept()] == [f"amy@{n}" for n in range(1, 6)]


def test_no_more_wait_to_be_kept_than_may(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    free, begun = Event(), []

    def keep(kept: Kept) -> str:
        begun.append(kept.policy)
        assert free.wait(10.0)
        return "amy@1"

    remembering, _ = made(keep)
    for _ in range(2):
        remembering.keeps(*over("amy", {"id": "a"}))
    third = Thread(target=lambda: remembering.keeps(*over("amy", {"id": "a"})))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    free.set()
    third.join(10.0)
    assert not third.is_alive()
    remembering.close()
    assert len(begun) == len(remembering.kept()) == 3


def test_trouble_with_the_catalog_while_it_keeps_ends_everything():
    def keep(kept: Kept) -> str:
        raise PefxError("the disk is gone", "storage")

    remembering, _ = made(keep)
    remembering.keeps(*over("amy", {"id": "a"}))
    remembering.wait(10.0)
    with pytest.raises(PefxError, match="the disk is gone"):
        remembering.kept()
