"""pefx.serving.scheduler: everybody finishes, nothing is exceeded, every token is processed once and in order."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.packing import whole_pages
from pefx.serving.generation import Generation
from pefx.serving.pages import PageAllocator
from pefx.serving.scheduler import SAMPLE, Sampling, Scheduler, Sequence, Shard, StepPlan
from pefx.store.residency import Residency
from tests.serving_fakes import revision

GREEDY = Sampling(0.0, 1.0, 0, 0)
END = 0


def make(
    tiles: int = 4, sequences: int = 4, pages: int = 32, slots: int = 2, patience: int = 64, shards: int = 1
) -> Scheduler:
    return Scheduler(
        shards=[Shard(PageAllocator(pages), Residency(slots)) for _ in range(shards)],
        sequences=sequences,
        tiles=tiles,
        tile=2,
        page_size=4,
        patience=patience,
    )


def sequence(
    handle: int, prompt: int, max_tokens: int = 1, policy: str | None = None, score_prompt: bool = False
) -> Sequence:
    return Sequence(
        handle=handle,
        prompt=[100 * handle + i + 1 for i in range(prompt)],
        revision=None if policy is None else revision(policy),
        sampling=GREEDY,
        generation=Generation(lambda ids: "x" * len(ids), max_tokens, (), frozenset([END])),
        max_tokens=max_tokens,
        score_prompt=score_prompt,
    )


def drive(scheduler: Scheduler, plan: StepPlan, token: int = 7) -> list[Sequence]:
    drawn = [row.target if row.target != SAMPLE else token for row in plan.wanted]
    return scheduler.commit(plan, drawn, [-1.0] * len(drawn))


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    scheduler.admit()
    plan = scheduler.plan()
    assert plan is not None
    drive(scheduler, plan, token)
    return plan


def test_decodes_and_prompt_chunks_share_a_step():
    scheduler = make(tiles=4)
    scheduler.submit(sequence(1, prompt=3, max_tokens=5))
    step(scheduler)
    scheduler.submit(sequence(2, prompt=12, max_tokens=2))
    scheduler.submit(sequence(3, prompt=1, max_tokens=2))
    plan = step(scheduler)
    assert [(list(s.tokens), s.start) for s in plan.spans] == [([7], 3), (list(range(201, 209)), 0)]
    assert [(w.span, w.offset) for w in plan.wanted] == [(0, 0)]
    plan = step(scheduler)
    assert [(list(s.tokens), s.start) for s in plan.spans] == [([7], 4), (list(range(209, 213)), 8), ([301], 0)]
    assert [(w.span, w.offset) for w in plan.wanted] == [(0, 0), (1, 3), (2, 0)]


def test_prompt_rows_are_scored_against_the_next_token():
    scheduler = make(tiles=1)
    scored = sequence(1, prompt=3, max_tokens=1, score_prompt=True)
    scheduler.submit(scored)
    assert [(w.offset, w.target) for w in step(scheduler).wanted] == [(0, 102), (1, 103)]
    assert [(w.offset, w.target) for w in step(scheduler).wanted] == [(0, SAMPLE)]
    assert scored.prompt_logprobs == [None, -1.0, -1.0]
    assert scored.over


def test_scoring_alone_samples_nothing():
    scheduler = make()
    scored = sequence(1, prompt=3, max_tokens=0, score_prompt=True)
    scheduler.submit(scored)
    assert [w.target for w in step(scheduler).wanted] == [102, 103]
    assert scored.over
    assert scored.generation.tokens == []
    scheduler.check_empty()


def test_end_token_frees_the_place_at_once():
    scheduler = make(sequences=1, pages=2)
    scheduler.submit(sequence(1, prompt=2, max_tokens=6))
    scheduler.submit(sequence(2, prompt=2, max_tokens=6))
    step(scheduler, token=END)
    assert step(scheduler).sequences[0].handle == 2


def test_request_larger_than_the_pool_is_refused():
    scheduler = make(pages=2)
    scheduler.submit(sequence(1, prompt=4, max_tokens=5))
    with pytest.raises(PefxError, match="9 tokens need 3 pages") as caught:
        scheduler.submit(sequence(2, prompt=4, max_tokens=6))
    assert caught.value.kind == "too_long"


def test_adapter_without_a_bank_is_refused():
    scheduler = make()
    scheduler.shards[0].residency = None
    with pytest.raises(PefxError, match="no bank"):
        scheduler.submit(sequence(1, prompt=1, policy="alice"))


def test_blocked_adapter_does_not_block_others():
    scheduler = make(slots=1)
    for handle, policy in enumerate(["a", "b", "a", None]):
        scheduler.submit(sequence(handle, prompt=2, max_tokens=3, policy=policy))
    loads = scheduler.admit()
    assert [load.revision.policy for load in loads] == ["a"]
    assert [s.handle for s in scheduler.running] == [0, 2, 3]
    assert [s.slot for s in scheduler.running] == [0, 0, -1]


def test_passed_over_too_often_all_wait():
    scheduler = make(slots=1, sequences=2, patience=3)
    scheduler.submit(sequence(0, prompt=1, max_tokens=4, policy="a"))
    scheduler.submit(sequence(1, prompt=1, max_tokens=1, policy="b"))
    for handle in range(2, 40):
        scheduler.submit(sequence(handle, prompt=1, max_tokens=4, policy="a"))
    served = []
    while scheduler.waiting or scheduler.running:
        scheduler.admit()
        plan = scheduler.plan()
        assert plan is not None
        served += [s.handle for s in drive(scheduler, plan)]
    assert served.index(1) <= 5


def test_large_request_is_not_starved_by_small_ones():
    scheduler = make(pages=4, sequences=4, patience=2)
    scheduler.submit(sequence(0, prompt=3, max_tokens=2))
    scheduler.submit(sequence(1, prompt=14, max_tokens=2))
    for handle in range(2, 30):
        scheduler.submit(sequence(handle, prompt=3, max_tokens=2))
    served = []
    while scheduler.waiting or scheduler.running:
        scheduler.admit()
        plan = scheduler.plan()
        assert plan is not None
        served += [s.handle for s in drive(scheduler, plan)]
    assert served.index(1) <= 4


def test_failed_load_frees_everything_and_the_slot_stands_for_nothing():
    scheduler = make(slots=1)
    for handle in (1, 2):
        scheduler.submit(sequence(handle, prompt=2, policy="a"))
    scheduler.submit(sequence(3, prompt=2))
    (load,) = scheduler.admit()
    error = PefxError("damaged")
    assert [(s.handle, s.error) for s in scheduler.refuse(load, error)] == [(1, error), (2, error)]
    assert [s.handle for s in scheduler.running] == [3]
    assert scheduler.shards[0].residency is not None
    assert scheduler.shards[0].residency.resident() == []
    step(scheduler)
    scheduler.check_empty()
    scheduler.submit(sequence(4, prompt=2, policy="a"))
    assert [again.slot for again in scheduler.admit()] == [load.slot]


def test_number_that_is_none_ends_the_request_with_an_error():
    scheduler = make()
    sick, well = sequence(1, prompt=2, max_tokens=4, policy="a"), sequence(2, prompt=2, max_tokens=4)
    scheduler.submit(sick)
    scheduler.submit(well)
    scheduler.admit()
    plan = scheduler.plan()
    assert plan is not None
    assert scheduler.commit(plan, [7, 7], [float("nan"), -1.0]) == [sick]
    assert sick.error is not None
    assert sick.error.kind == "not_finite"
    assert scheduler.running == [well]


@pytest.mark.parametrize("field", ["tiles", "sequences"])
def test_limits_below_one_are_refused(field: str):
    with pytest.raises(PefxError, match=field):
        make(**{field: 0})


def test_a_sequence_goes_where_its_adapter_is_and_else_where_there_is_most_room():
    scheduler = make(shards=2, sequences=3)
    for handle, policy in enumerate(["a", "b", "a", None, "b", "c"]):
        scheduler.submit(sequence(handle, prompt=2, max_tokens=3, policy=policy))
    loads = scheduler.admit()
    assert [(s.handle, s.slot) for s in scheduler.shards[0].running] == [(0, 0), (2, 0), (5, 1)]
    assert [(s.handle, s.slot) for s in scheduler.shards[1].running] == [(1, 0), (3, -1), (4, 0)]
    assert [(load.shard, load.slot, load.revision.policy) for load in loads] == [(0, 0, "a"), (1, 0, "b"), (0, 1, "c")]


def test_an_adapter_whose_shard_is_full_is_loaded_on_another():
    scheduler = make(shards=2, sequences=1)
    for handle in range(3):
        scheduler.submit(sequence(handle, prompt=2, max_tokens=1, policy="a"))
    assert [load.shard for load in scheduler.admit()] == [0, 1]
    assert len(scheduler.waiting) == 1
    step(scheduler)
    assert scheduler.running == []
    assert scheduler.admit() == []


@dataclass
class Asked:
    prompt: int
    max_tokens: int
    policy: str | None
    score_prompt: bool
    end_after: int


asked = st.builds(
    Asked,
    prompt=st.integers(1, 20),
    max_tokens=st.integers(1, 8),
    policy=st.sampled_from([None, "a", "b", "c", "d"]),
    score_prompt=st.booleans(),
    end_after=st.integers(1, 10),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(asked, min_size=1, max_size=25),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(7, 16),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_all_finish_within_limits(requests, tiles, sequences, pages, slots, patience, shards):
    scheduler = make(tiles, sequences, pages, slots, patience, shards)
    submitted = [sequence(i, a.prompt, a.max_tokens, a.policy, a.score_prompt) for i, a in enumerate(requests)]
    for one in submitted:
        scheduler.submit(one)
    processed: dict[int, list[int]] = {i: [] for i in range(len(requests))}
    bank: dict[tuple[int, int], str] = {}
    done: list[int] = []
    for _ in range(2000):
        for load in scheduler.admit():
            bank[load.shard, load.slot] = load.revision.key
        plan = scheduler.plan()
        if plan is None:
            break
        assert len({id(s) for s in plan.sequences}) == len(plan.sequences)
        for index, shard in enumerate(scheduler.shards):
            mine = [(s, span) for s, span in zip(plan.sequences, plan.spans, strict=True) if s.shard == index]
            assert len(mine) <= sequences
            assert sum(whole_pages(len(span.tokens), 2) for s, span in mine if not s.decoding) <= tiles
            held = [page for s in shard.running for page in s.pages]
            assert len(set(held)) == len(held) == pages - shard.pages.free
        for one, span in zip(plan.sequences, plan.spans, strict=True):
            assert span.start == len(processed[one.handle])
            assert whole_pages(span.start + len(span.tokens), 4) <= len(span.pages)
            assert (span.slot == -1) if one.revision is None else (bank[one.shard, span.slot] == one.revision.key)
            processed[one.handle] += list(span.tokens)
        drawn = []
        for row in plan.wanted:
            one = plan.sequences[row.span]
            last = len(one.generation.tokens) + 1 >= requests[one.handle].end_after
            drawn.append(row.target if row.target != SAMPLE else END if last else 1000 + len(one.generation.tokens))
        done += [s.handle for s in scheduler.commit(plan, drawn, [-1.0] * len(drawn))]
    assert sorted(done) == list(range(len(requests)))
    for one, a in zip(submitted, requests, strict=True):
        count = min(a.max_tokens, a.end_after)
        assert len(one.generation.tokens) == count
        assert processed[one.handle] == one.prompt + one.generation.tokens[:-1]  # the last one is never fed
        assert len(one.prompt_logprobs) == (a.prompt if a.score_prompt else 1)
    scheduler.check_empty()
    for shard in scheduler.shards:
        assert shard.residency is not None
        assert all(shard.residency.pins(key) == 0 for key in shard.residency.resident())
