"""pefx.serving.engine: mixed requests, answered as each would be alone."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.engine import Engine
from pefx.serving.requests import Request, RequestError
from tests.serving_fakes import FakeCatalog, FakeDevice, make_engine, revision

PATIENCE = 60.0  # seconds until a test that hangs fails
POLICIES = ["alice", "bob", "carol", "dave"]


def catalog() -> FakeCatalog:
    return FakeCatalog(*(revision(policy) for policy in POLICIES))


def serve(engine: Engine, requests: list[Request], revisions: FakeCatalog) -> dict[int, dict[str, Any]]:
    for handle, request in enumerate(requests):
        engine.submit(handle, request, None if request.policy is None else revisions.serving(request.policy))
    rows = {}
    while not engine.idle:
        rows |= {answered.handle: answered.row for answered in engine.step()}
    return rows


fields_strategy = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(1, 255), min_size=1, max_size=30).map(tuple),
        "policy": st.sampled_from([None, *POLICIES]),
        "max_tokens": st.integers(1, 20),
        "stop": st.lists(st.sampled_from(["a", "bc", "q"]), max_size=2).map(tuple),
        "logprobs": st.booleans(),
        "prompt_logprobs": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(fields_strategy, min_size=1, max_size=12), st.integers(1, 16), st.integers(1, 5), st.integers(1, 3))
def test_an_answer_does_not_depend_on_its_company(asked, step_tokens, sequences, slots):
    revisions, requests = catalog(), [Request(f"r{i}", **fields) for i, fields in enumerate(asked)]
    engine = make_engine(revisions, step_tokens=step_tokens, sequences=sequences, slots=slots, pages=15)
    together = serve(engine, requests, revisions)
    for handle, request in enumerate(requests):
        alone = serve(make_engine(revisions, step_tokens=64), [request], revisions)[0]
        assert together[handle] == alone
        assert alone["policy"] == request.policy
        assert len(alone["prompt_logprobs"] or request.prompt) == len(request.prompt)


def test_generation_ends_where_the_context_does():
    device = FakeDevice(page_size=4, context=8)
    engine = make_engine(device=device)
    device.draw = lambda context, adapter, seed: 97
    row = serve(engine, [Request("a", (1,) * 5, max_tokens=50)], catalog())[0]
    assert (len(row["tokens"]), row["finish_reason"]) == (3, "length")


def test_damaged_adapter_fails_its_requests_and_no_others():
    revisions = catalog()
    revisions.damaged.add("bob@1")
    engine = make_engine(revisions)
    asked = [Request(f"{i}", (1, 2), policy=p) for i, p in enumerate(["alice", "bob", None, "bob"])]
    rows = serve(engine, asked, revisions)
    assert [rows[i].get("error", {}).get("type") for i in range(4)] == [None, "damaged", None, "damaged"]
    revisions.damaged.clear()
    assert "error" not in serve(engine, asked[1:2], revisions)[0]  # nothing of the failure stays


def test_catalog_out_of_reach_stops_everything():
    revisions = catalog()

    def load(revision: Any) -> Any:
        raise PefxError("gone", "storage")

    revisions.load = load
    engine = make_engine(revisions)
    engine.submit(0, Request("a", (1,), policy="alice"), revisions.serving("alice"))
    with pytest.raises(PefxError, match="gone"):
        engine.step()


def test_request_that_cannot_be_served_leaves_nothing_behind():
    engine = make_engine()
    with pytest.raises(RequestError, match="out of range"):
        engine.submit(0, Request("a", (999,)), None)
    assert engine.idle
    assert engine.step() == []


def test_revision_of_another_policy_is_never_served():
    revisions = catalog()
    engine = make_engine(revisions)
    for request, served in (("alice", "bob"), ("alice", None), (None, "bob")):
        with pytest.raises(RuntimeError, match="was given"):
            engine.submit(0, Request("a", (1,), policy=request), None if served is None else revisions.serving(served))


def test_room_is_for_what_the_next_places_need():
    engine = make_engine(sequences=2)
    taken = 0
    while engine.room:
        engine.submit(taken, Request(str(taken), (1,)), None)
        taken += 1
    assert taken == 4


def test_seed_of_the_request_decides_the_sample():
    revisions = catalog()
    asked = [Request("a", (1,), seed=1, max_tokens=9), Request("b", (1,), seed=1, max_tokens=9)]
    asked += [Request("c", (1,), max_tokens=9), Request("d", (1,), max_tokens=9)]
    rows = serve(make_engine(revisions), asked, revisions)
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert rows[2]["tokens"] != rows[3]["tokens"]


class Library(FakeCatalog):
    """Weights of eight bytes; remembers what was read."""

    def __init__(self):
        super().__init__(*(revision(policy, blob_bytes=8) for policy in POLICIES))
        self.read: list[str] = []

    def load(self, revision: Any) -> Any:
        self.read.append(revision.key)
        weights = super().load(revision)
        return {"key": {revision.key: np.zeros(8, np.uint8)}} if weights else weights


def in_turns(rounds: int) -> list[Request]:
    return [Request(f"{i}", (1, 2, 3), policy=POLICIES[i % 4], max_tokens=6, seed=i) for i in range(4 * rounds)]


def test_an_adapter_that_left_its_slot_is_not_read_again():
    revisions, device = Library(), FakeDevice(page_size=4)
    engine = make_engine(revisions, device, slots=1)
    for _ in range(3):
        assert all("error" not in row for row in serve(engine, in_turns(1), revisions).values())
    assert len(device.loads) == 3 * len(POLICIES)
    assert sorted(revisions.read) == sorted(f"{policy}@1" for policy in POLICIES)
    found = engine.adapters()
    assert found.slot_loads == len(device.loads) == found.host.hits + found.host.shared + found.host.misses
    assert (found.host.loads, found.host.pinned_bytes) == (4, 0)
    assert found.slot_evictions == found.slot_loads - 1


@pytest.mark.parametrize(("host_bytes", "workers", "queue"), [(8, 1, 0), (8, 2, 1), (20, 1, 9), (1 << 20, 3, 0)])
def test_a_narrow_way_to_the_store_changes_no_answer_and_no_order(host_bytes: int, workers: int, queue: int):
    wide, narrow = FakeDevice(page_size=4), FakeDevice(page_size=4)
    revisions = Library()
    expected = serve(make_engine(revisions, wide, slots=3, shards=2), in_turns(4), revisions)
    engine = make_engine(revisions, narrow, slots=3, shards=2, limit_bytes=host_bytes, workers=workers, queue=queue)
    assert serve(engine, in_turns(4), revisions) == expected
    assert (narrow.loads, [len(plan.spans) for plan in narrow.plans]) == (
        wide.loads,
        [len(plan.spans) for plan in wide.plans],
    )
    assert engine.adapters().host.bytes <= host_bytes
    engine.close()


def test_what_waits_is_read_ahead_of_its_step():
    revisions, reading = Library(), threading.Event()
    load = revisions.load
    revisions.load = lambda revision: reading.set() or load(revision)
    engine = make_engine(revisions)
    engine.submit(0, Request("a", (1,), policy="alice"), revisions.serving("alice"))
    assert reading.wait(PATIENCE)  # and no step was run


def test_an_adapter_beyond_host_memory_is_its_requests_error():
    revisions = Library()
    engine = make_engine(revisions, limit_bytes=7)
    rows = serve(engine, [Request("a", (1,), policy="alice"), Request("b", (1,))], revisions)
    assert rows[0]["error"]["type"] == "too_large"
    assert "host_cache_mb" in rows[0]["error"]["message"]
    assert "error" not in rows[1]


def test_weights_the_device_refuses_are_its_requests_error_and_stay_unpinned():
    class Picky(FakeDevice):
        def load(self, shard: int, slot: int, adapter: Any, spec: AdapterSpec) -> None:
            if "bob@1" in adapter["key"]:
                raise PefxError("does not fit", "bad_adapter")
            super().load(shard, slot, adapter, spec)

    revisions = Library()
    engine = make_engine(revisions, Picky(page_size=4))
    rows = serve(engine, in_turns(1), revisions)
    assert [row.get("error", {}).get("type") for _, row in sorted(rows.items())] == [None, "bad_adapter", None, None]
    assert engine.adapters().host.pinned_bytes == 0


def test_closed_amid_a_load_the_step_ends_and_holds_nothing():
    revisions, gate, reading = Library(), threading.Event(), threading.Event()
    load = revisions.load
    revisions.load = lambda revision: reading.set() or (gate.wait(PATIENCE) and load(revision))
    engine = make_engine(revisions)
    for handle, policy in enumerate(POLICIES):
        engine.submit(handle, Request(policy, (1,), policy=policy), revisions.serving(policy))
    closer = threading.Thread(target=lambda: reading.wait(PATIENCE) and engine.close())
    closer.start()
    with pytest.raises(PefxError, match="closed") as caught:
        engine.step()
    closer.join()
    gate.set()
    assert caught.value.kind == "closed"
    assert engine.adapters().host.pinned_bytes == 0
