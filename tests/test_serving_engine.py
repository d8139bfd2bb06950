"""pefx.serving.engine: mixed requests, answered as each would be alone."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.serving.engine import Engine, Way
from pefx.serving.requests import Request, RequestError, seed_of
from pefx.serving.routes import MISSING
from tests.serving_fakes import FakeCatalog, FakeDevice, make_engine, revision, routes_of

PATIENCE = 60.0  # seconds until a test that hangs fails
POLICIES = ["alice", "bob", "carol", "dave"]


def catalog() -> FakeCatalog:
    return FakeCatalog(*(revision(policy) for policy in POLICIES))


def serve(engine: Engine, requests: list[Request], revisions: FakeCatalog) -> dict[int, dict[str, Any]]:
    for handle, request in enumerate(requests):
        engine.submit(handle, request, None if request.policy is None else revisions.serving(request.policy))
    return run_out(engine)


def run_out(engine: Engine) -> dict[int, dict[str, Any]]:
    """All rows until nothing is left."""
    rows = {}
    while not engine.idle:
        rows |= {answered.handle: answered.row for answered in engine.step()}
        engine.wait(PATIENCE)
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
        run_out(engine)


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
    wide, narrow, alike = FakeDevice(page_size=4), FakeDevice(page_size=4), Way(lockstep=True)
    revisions = Library()
    expected = serve(make_engine(revisions, wide, slots=3, shards=2, how=alike), in_turns(4), revisions)
    way: dict[str, Any] = {"limit_bytes": host_bytes, "workers": workers, "queue": queue}
    engine = make_engine(revisions, narrow, slots=3, shards=2, how=alike, **way)
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
        run_out(engine)
    closer.join()
    gate.set()
    assert caught.value.kind == "closed"
    assert engine.adapters().host.pinned_bytes == 0


def test_choices_differ_and_each_is_what_its_seed_gives_alone():
    revisions = catalog()
    asked = Request("a", (1, 2, 3, 4, 5), policy="bob", max_tokens=9, n=4, seed=3)
    row = serve(make_engine(revisions), [asked], revisions)[0]
    texts = [choice["text"] for choice in row["choices"]]
    assert len(set(texts)) > 1
    for choice, text in enumerate(texts):
        alone = replace(asked, n=1, seed=seed_of(asked, 0, choice))
        assert serve(make_engine(revisions), [alone], revisions)[0]["text"] == text


def test_a_stream_tells_what_the_answer_says():
    revisions, told = catalog(), []
    engine = make_engine(revisions)
    asked = Request("a", (1, 2), policy="bob", max_tokens=12, n=2, stop=("q", "zz"), logprobs=True, top_logprobs=3)
    engine.submit(0, asked, revisions.serving("bob"), listen=told.append)
    row = run_out(engine)[0]
    for number, choice in enumerate(row["choices"]):
        own = [piece for piece in told if piece.choice == number]
        assert "".join(piece.text for piece in own) == choice["text"]
        assert [token for piece in own for token in piece.tokens] == choice["tokens"]
        assert [x for piece in own for x in piece.logprobs] == choice["logprobs"]
        assert [list(top) for piece in own for top in piece.top] == choice["top_logprobs"]
        assert own[-1].finish_reason == choice["finish_reason"]


def test_cancelled_is_gone_and_others_go_on():
    revisions = catalog()
    engine = make_engine(revisions, pages=12)
    for handle in range(6):
        asked = Request(f"{handle}", (1, 2), policy=POLICIES[handle % 4], max_tokens=20, ignore_eos=True)
        engine.submit(handle, asked, revisions.serving(POLICIES[handle % 4]))
    engine.cancel(5)
    for _ in range(3):
        engine.step()
        engine.wait(PATIENCE)
    for handle in (0, 4, 99):
        engine.cancel(handle)
    assert sorted(run_out(engine)) == [1, 2, 3]
    assert engine.state().pages_used == 0
    assert engine.adapters().host.pinned_bytes == 0


def test_past_its_time_a_request_is_over():
    now, revisions = [0.0], catalog()
    engine = make_engine(revisions, how=Way(clock=lambda: now[0]))
    for handle, deadline in enumerate((5.0, 50.0, None)):
        asked = Request(f"{handle}", (1, 2), max_tokens=30, ignore_eos=True)
        engine.submit(handle, asked, None, deadline=deadline)
    engine.step()
    now[0] = 6.0
    assert [(a.handle, a.row["error"]["type"]) for a in engine.step()] == [(0, "timeout")]
    rows = run_out(engine)
    assert [len(rows[handle]["tokens"]) for handle in (1, 2)] == [30, 30]


def test_cold_adapters_come_while_others_decode():
    revisions, gate = Library(), threading.Event()
    load = revisions.load
    revisions.load = lambda revision: (revision.policy == "bob" and not gate.wait(PATIENCE)) or load(revision)
    engine = make_engine(revisions)
    engine.submit(0, Request("cold", (1,), policy="bob", max_tokens=2), revisions.serving("bob"))
    engine.submit(2, Request("base", (1,), max_tokens=9, ignore_eos=True), None)
    rows = {}
    while 2 not in rows:
        rows |= {answered.handle: answered for answered in engine.step()}
    assert set(rows) == {2}
    gate.set()
    while not engine.idle:
        rows |= {answered.handle: answered for answered in engine.step()}
        engine.wait(PATIENCE)
    assert (rows[0].where, rows[2].where) == ("cold", "base")


def test_trouble_with_the_catalog_may_be_its_requests_own():
    revisions = catalog()
    revisions.load = lambda revision: (_ for _ in ()).throw(PefxError("gone", "storage"))
    engine = make_engine(revisions, how=Way(unavailable=frozenset()))
    rows = serve(engine, [Request("a", (1,), policy="alice"), Request("b", (1,))], revisions)
    assert rows[0]["error"]["type"] == "storage"
    assert "error" not in rows[1]


class Vowels:
    """Answers of three vowels."""

    def __init__(self):
        self.drawn: list[int] = []

    def mask(self) -> np.ndarray:
        words = np.zeros(8, np.uint32)
        for token in b"aeiou":
            words[token // 32] |= np.uint32(1 << token % 32)
        return words

    def push(self, token: int) -> None:
        self.drawn.append(token)

    @property
    def over(self) -> bool:
        return len(self.drawn) == 3


class VowelGrammars:
    def start(self, request: Request) -> Vowels | None:
        return Vowels() if request.constrained else None


def test_an_answer_that_must_have_a_form_ends_when_it_has_it():
    engine = make_engine(grammars=VowelGrammars())
    rows = serve(engine, [Request("a", (1,), regex="[aeiou]{3}", n=2), Request("b", (1,), max_tokens=9)], catalog())
    for choice in rows[0]["choices"]:
        assert len(choice["text"]) == 3
        assert set(choice["text"]) <= set("aeiou")
        assert choice["finish_reason"] == "stop"
    with pytest.raises(PefxError, match="json_schema"):
        make_engine().submit(0, Request("a", (1,), regex="a"), None)


def test_the_numbers_of_an_engine_add_up():
    revisions = catalog()
    engine = make_engine(revisions)
    serve(engine, in_turns(3), revisions)
    state = engine.state()
    assert state.prompt_tokens == 12 * 3
    assert state.batch_tokens >= state.prompt_tokens - state.cached_tokens
    assert (state.waiting, state.running, state.pages_used, state.pages, state.seats) == (0, 0, 0, 64, 4)
    assert state.steps == len(engine._device.plans)  # pyright: ignore[reportAttributeAccessIssue]
    assert state.batch_rows == state.batch_tokens


class Stubborn(Vowels):
    """A form that cannot be followed beyond one token."""

    def mask(self) -> np.ndarray:
        if self.drawn:
            raise PefxError("field 'regex': nothing can follow", "invalid_request")
        return super().mask()


def test_a_form_that_cannot_be_followed_is_its_requests_error():
    class Grammars(VowelGrammars):
        def start(self, request: Request) -> Vowels | None:
            return Stubborn() if request.constrained else None

    rows = serve(
        make_engine(grammars=Grammars()), [Request("a", (1,), regex="x"), Request("b", (1,), max_tokens=9)], catalog()
    )
    assert rows[0]["error"]["type"] == "invalid_request"
    assert "error" not in rows[1]


def test_routes_are_of_every_token_that_was_fed_whoever_computed_it():
    revisions, device = catalog(), FakeDevice(page_size=4)
    engine = make_engine(revisions, device, pages=14, sequences=3)
    prompt = tuple(range(1, 12))
    plain = Request("a", prompt, policy="bob", max_tokens=4)
    serve(engine, [plain], revisions)  # its pages have no routes
    asked = [replace(plain, id=f"{n}", max_tokens=18, routes=True, ignore_eos=True, n=1 + n % 2) for n in range(3)]
    for handle, request in enumerate(asked):
        engine.submit(handle, request, revisions.serving("bob"), behind=0)
    choices = []
    while not engine.idle:
        choices += [choice for answered in engine.step() for choice in answered.choices]
        engine.wait(PATIENCE)
    assert engine.state().preemptions > 0
    assert engine.state().cached_tokens > 0
    assert len(choices) == 4
    for choice in choices:
        tokens = [*choice.prompt, *choice.generation.tokens]
        assert choice.routes is not None
        found = choice.routes.of(0, len(tokens))
        for place in range(len(tokens) - 1):
            np.testing.assert_array_equal(found[place], routes_of(tokens[: place + 1], "bob@1"))
        assert (found[-1] == MISSING).all()


def test_a_request_waits_for_the_one_of_the_same_prompt_before_it():
    revisions, device = catalog(), FakeDevice(page_size=4)
    engine = make_engine(revisions, device)
    for handle in range(3):
        asked = Request(f"{handle}", tuple(range(1, 11)), policy="bob", max_tokens=3, seed=handle, ignore_eos=True)
        engine.submit(handle, asked, revisions.serving("bob"), behind=0 if handle else None)
    engine.submit(3, replace(asked, id="late"), revisions.serving("bob"), behind=99)  # nobody's handle any more
    assert engine.in_use() == {"bob@1"}
    run_out(engine)
    assert engine.in_use() == set()
    assert engine.state().batch_tokens == 2 * (10 + 2) + 2 * (2 + 2)


def test_where_nobody_records_no_routes_are_kept():
    revisions = catalog()
    engine = make_engine(revisions)
    engine.submit(0, Request("a", (1,)), None)
    (answered,) = (one for _ in iter(lambda: engine.idle, True) for one in engine.step())
    assert [choice.routes for choice in answered.choices] == [None]
