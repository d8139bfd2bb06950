"""pefx.serving.scheduler: everybody finishes, nothing is exceeded, every token is processed once and in order."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.packing import whole_pages
from pefx.serving.generation import Generation, Outcome
from pefx.serving.pages import PageAllocator
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.serving.sequence import SAMPLE, Sampling, Sequence, StepPlan
from pefx.store.residency import Residency
from tests.serving_fakes import revision

GREEDY = Sampling(0.0, 1.0, 0.0, 0, 0)
END = 0


def make(
    tiles: int = 4, sequences: int = 4, pages: int = 32, slots: int = 2, patience: int = 64, shards: int = 1
) -> Scheduler:
    return Scheduler(
        shards=[Shard(PageAllocator(pages), Residency(slots)) for _ in range(shards)],
        size=StepSize(sequences, tiles, 2, 4),
        patience=patience,
    )


def sequence(
    handle: int,
    prompt: int,
    max_tokens: int = 1,
    policy: str | None = None,
    score_prompt: bool = False,
    text: int | None = None,
    **more: Any,
) -> Sequence:
    """Prompts of the same `text` begin alike; each has its own unless it is said."""
    return Sequence(
        handle=handle,
        prompt=[100 * (handle if text is None else text) + i + 1 for i in range(prompt)],
        revision=None if policy is None else revision(policy),
        sampling=GREEDY,
        generation=Generation(lambda ids: "x" * len(ids), max_tokens, (), frozenset([END])),
        max_tokens=max_tokens,
        score_prompt=score_prompt,
        **more,
    )


def drive(scheduler: Scheduler, plan: StepPlan, token: int = 7) -> list[Sequence]:
    return scheduler.commit(plan, [Outcome(row.target if row.target != SAMPLE else token, -1.0) for row in plan.wanted])


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
    assert [(list(s.tokens), s.start) for s in plan.spans] == [([7], 4), ([301], 0), (list(range(209, 213)), 8)]
    assert [(w.span, w.offset) for w in plan.wanted] == [(0, 0), (1, 0), (2, 3)]


def test_prompt_rows_are_scored_against_the_next_token():
    scheduler = make(tiles=1)
    scored = sequence(1, prompt=3, max_tokens=1, score_prompt=True)
    scheduler.submit(scored)
    assert [(w.offset, w.target) for w in step(scheduler).wanted] == [(0, 102), (1, 103)]
    assert [(w.offset, w.target) for w in step(scheduler).wanted] == [(0, SAMPLE)]
    assert scored.prompt_logprobs == [None, -1.0, -1.0]
    assert scored.ended


def test_scoring_alone_samples_nothing():
    scheduler = make()
    scored = sequence(1, prompt=3, max_tokens=0, score_prompt=True)
    scheduler.submit(scored)
    assert [w.target for w in step(scheduler).wanted] == [102, 103]
    assert scored.ended
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
    assert {s.handle: s.slot for s in scheduler.running} == {0: 0, 2: 0, 3: -1}


def test_passed_over_too_often_all_wait():
    scheduler = make(slots=1, sequences=2, patience=3)
    scheduler.submit(sequence(0, prompt=1, max_tokens=4, policy="a"))
    scheduler.submit(sequence(1, prompt=1, max_tokens=1, policy="b"))
    for handle in range(2, 40):
        scheduler.submit(sequence(handle, prompt=1, max_tokens=4, policy="a"))
    served = []
    while not scheduler.idle:
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
    while not scheduler.idle:
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
    assert isinstance(scheduler.shards[0].residency, Residency)
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
    assert scheduler.commit(plan, [Outcome(7, float("nan")), Outcome(7, -1.0)]) == [sick]
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
    assert all(len(shard.running) == 3 for shard in scheduler.shards)
    at = {s.handle: (s.shard, s.slot) for s in scheduler.running}
    assert at[0] == at[2]
    assert at[1] == at[4]
    assert at[0][0] != at[1][0]
    assert [load.revision.policy for load in loads] == ["a", "b", "c"]


def test_an_adapter_whose_shard_is_full_is_loaded_on_another():
    scheduler = make(shards=2, sequences=1)
    for handle in range(3):
        scheduler.submit(sequence(handle, prompt=2, max_tokens=1, policy="a"))
    assert [load.shard for load in scheduler.admit()] == [0, 1]
    assert len(scheduler.waiting) == 1
    step(scheduler)
    assert scheduler.running == []
    assert scheduler.admit() == []


def run_out(scheduler: Scheduler, token: Callable[[Sequence], int] = lambda s: 7) -> list[StepPlan]:
    """All steps until nothing is left."""
    plans = []
    while not scheduler.idle:
        scheduler.admit()
        plan = scheduler.plan()
        assert plan is not None
        plans.append(plan)
        targets = [(row.target, plan.sequences[row.span]) for row in plan.wanted]
        scheduler.commit(plan, [Outcome(token(s) if target == SAMPLE else target, -1.0) for target, s in targets])
    scheduler.check_empty()
    return plans


def computed(plans: list[StepPlan], handle: int) -> int:
    """Tokens that were computed for a sequence."""
    rows = (zip(plan.sequences, plan.spans, strict=True) for plan in plans)
    return sum(len(span.tokens) for row in rows for one, span in row if one.handle == handle)


def test_a_prompt_that_was_computed_is_found_again_under_its_own_weights_alone():
    scheduler = make(sequences=1)
    for handle, policy, length in ((0, "a", 10), (1, "a", 10), (2, "b", 10), (3, None, 10), (4, "a", 9), (5, "a", 8)):
        scheduler.submit(sequence(handle, length, 3, policy, text=0))
    plans = run_out(scheduler)
    # Whole pages of four are found; of a prompt one token at least is computed. Two answer tokens are fed.
    assert [computed(plans, handle) for handle in range(6)] == [12, 4, 12, 12, 3, 6]


def test_an_answer_is_found_again_as_part_of_a_longer_prompt():
    scheduler = make(sequences=1)
    first = sequence(0, 6, 7, "a")
    scheduler.submit(first)
    run_out(scheduler, token=lambda s: 900 + len(s.generation.tokens))
    longer = sequence(1, 1, 2, "a")
    longer.prompt = [*first.prompt, *first.generation.tokens, 5]
    scheduler.submit(longer)
    run_out(scheduler)
    assert longer.cached == 12


def test_revisions_of_the_same_weights_share_and_others_never():
    scheduler = make(sequences=1)
    twin = replace(revision("b"), content_hash=revision("a").content_hash)
    for handle, served in enumerate([revision("a"), twin, revision("a", 2)]):
        one = sequence(handle, 9, text=0)
        one.revision = served
        scheduler.submit(one)
    plans = run_out(scheduler)
    assert [computed(plans, handle) for handle in range(3)] == [9, 1, 9]


def test_further_choices_wait_for_the_first_to_bring_their_prompt():
    scheduler = make(tiles=2)
    first = sequence(0, 13, 3)
    others = [sequence(i, 13, 3, text=0, leader=first, choice=i) for i in (1, 2)]
    for one in (first, *others):
        scheduler.submit(one)
    plans = run_out(scheduler)
    assert [computed(plans, handle) for handle in range(3)] == [15, 3, 3]


def test_a_prompt_that_fills_no_page_is_not_waited_for():
    scheduler = make(tiles=8)
    first = sequence(0, 4, 3)
    for one in (first, sequence(1, 4, 3, text=0, leader=first)):
        scheduler.submit(one)
    assert [s.handle for s in step(scheduler).sequences] == [0, 1]


def test_who_finds_no_slot_costs_nobody_a_page():
    scheduler = make(slots=1, pages=4)
    scheduler.submit(sequence(0, 5, 1, "b"))
    run_out(scheduler)
    kept = scheduler.shards[0].pages.kept
    assert kept
    scheduler.submit(sequence(1, 4, 4, "a"))
    step(scheduler)
    scheduler.submit(sequence(2, 12, 1, "c"))
    for _ in range(2):
        step(scheduler)
        assert scheduler.shards[0].pages.kept == kept
    run_out(scheduler)


class Elsewhere(Residency):
    """Slots of a shard that will never have a revision."""

    def room(self, key: str) -> bool:
        return False


def test_a_sequence_enters_where_its_weights_can_be():
    scheduler = make(shards=2, sequences=1)
    scheduler.shards[0].residency = Elsewhere(1)
    for handle in range(2):
        scheduler.submit(sequence(handle, 2, 1, "a"))
    plans = run_out(scheduler)
    assert [[s.handle for s in plan.sequences] for plan in plans] == [[0], [1]]


def test_where_pages_run_out_the_last_comer_is_computed_again():
    scheduler = make(pages=5, sequences=3)
    early, late = sequence(0, 4, 12), sequence(1, 4, 12)
    for one in (early, late):
        scheduler.submit(one)
    plans = run_out(scheduler)
    assert scheduler.preemptions > 0
    assert computed(plans, 0) == 15  # never it
    assert computed(plans, 1) > 15
    assert len(early.generation.tokens) == len(late.generation.tokens) == 12


def test_the_higher_priority_comes_first_and_keeps_its_pages():
    scheduler = make(pages=5, sequences=2)
    low, high = sequence(0, 4, 12), sequence(1, 4, 12, priority=1)
    for one in (low, high):
        scheduler.submit(one)
    plans = run_out(scheduler)
    assert computed(plans, 1) == 15
    assert plans[0].sequences[0] is high


def test_a_flood_of_one_does_not_keep_another_waiting():
    scheduler = make(sequences=2, slots=4)
    for handle in range(40):
        scheduler.submit(sequence(handle, 4, 4, "flood"))
    for _ in range(5):
        step(scheduler)
    scheduler.submit(sequence(99, 4, 4, "quiet"))
    steps = 0
    while not any(s.handle == 99 for s in step(scheduler).sequences):
        steps += 1
    assert steps <= 4  # until a place is free: an answer takes four


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_who_is_cancelled_is_gone_at_once(steps: int):
    scheduler = make(slots=1)
    gone, stays = sequence(0, 6, 9, "a"), sequence(1, 6, 9, "a")
    scheduler.submit(gone)
    scheduler.submit(stays)
    for _ in range(steps):
        step(scheduler)
    scheduler.cancel(gone)
    scheduler.cancel(gone)
    assert gone.pages == []
    run_out(scheduler)
    assert len(stays.generation.tokens) == 9
    assert len(gone.generation.tokens) == steps
    assert scheduler.wanted == {}


def test_what_is_not_ready_is_passed_by_any_number_and_comes_when_it_is():
    scheduler = make(patience=1)
    scheduler.submit(sequence(0, 2, 1, "cold"))
    for handle in range(1, 9):
        scheduler.submit(sequence(handle, 2, 1))
    ready = False
    while len(scheduler.waiting) > 1:
        scheduler.admit(lambda revision: ready)
        plan = scheduler.plan()
        assert plan is not None
        assert all(s.handle for s in drive(scheduler, plan) or [])
    assert list(scheduler.wanted) == ["cold@1"]
    ready = True
    assert [load.revision.policy for load in scheduler.admit(lambda revision: ready)] == ["cold"]


@dataclass
class Asked:
    prompt: int
    max_tokens: int
    policy: str | None
    score_prompt: bool
    end_after: int
    text: int
    priority: int
    cancel_at: int


asked = st.builds(
    Asked,
    prompt=st.integers(1, 20),
    max_tokens=st.integers(1, 8),
    policy=st.sampled_from([None, "a", "b", "c", "d"]),
    score_prompt=st.booleans(),
    end_after=st.integers(1, 10),
    text=st.integers(0, 2),
    priority=st.integers(-1, 1),
    cancel_at=st.sampled_from([-1, -1, -1, 0, 2, 5]),
)


@dataclass
class Memory:
    """What a pool would hold: who reads a page that is not its own, or not yet written, is found."""

    written: dict[tuple[int, int, int], tuple[Any, int, int]] = field(default_factory=dict)

    def take(self, plan: StepPlan) -> None:
        size = 4
        for one, span in zip(plan.sequences, plan.spans, strict=True):
            tokens = one.tokens(0, span.start + len(span.tokens))
            for p, token in enumerate(tokens):
                place, content = (one.shard, span.pages[p // size], p % size), (one.root, p, token)
                if p < span.start:
                    assert self.written[place] == content
                else:
                    self.written[place] = content


@settings(max_examples=150, deadline=None)
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
    submitted = [
        sequence(i, a.prompt, a.max_tokens, a.policy, a.score_prompt, a.text, priority=a.priority)
        for i, a in enumerate(requests)
    ]
    for one in submitted:
        scheduler.submit(one)
    memory, bank, done = Memory(), {}, []
    for turn in range(3000):
        for load in scheduler.admit():
            bank[load.shard, load.slot] = load.revision.key
        plan = scheduler.plan()
        if plan is None:
            break
        assert len({id(s) for s in plan.sequences}) == len(plan.sequences)
        for index, shard in enumerate(scheduler.shards):
            mine = [span for s, span in zip(plan.sequences, plan.spans, strict=True) if s.shard == index]
            assert len(mine) <= len(shard.running) <= sequences
            assert sum(whole_pages(len(span.tokens), 2) for span in mine if len(span.tokens) > 1) <= tiles
            assert len({page for s in shard.running for page in s.pages}) == pages - shard.pages.free
        for one, span in zip(plan.sequences, plan.spans, strict=True):
            assert (span.slot == -1) if one.revision is None else (bank[one.shard, span.slot] == one.revision.key)
        memory.take(plan)
        drawn = []
        for row in plan.wanted:
            one = plan.sequences[row.span]
            last = len(one.generation.tokens) + 1 >= requests[one.handle].end_after
            drawn.append(row.target if row.target != SAMPLE else END if last else 1000 + len(one.generation.tokens))
        done += [s.handle for s in scheduler.commit(plan, [Outcome(token, -1.0) for token in drawn])]
        for one, a in zip(submitted, requests, strict=True):
            if a.cancel_at == turn:
                scheduler.cancel(one)
    kept = [one for one, a in zip(submitted, requests, strict=True) if a.cancel_at < 0 or one.handle in done]
    assert sorted(done) == [one.handle for one in kept]
    for one in kept:
        a = requests[one.handle]
        assert len(one.generation.tokens) == min(a.max_tokens, a.end_after)
        assert len(one.prompt_logprobs) == (a.prompt if a.score_prompt else 1)
    assert scheduler.idle
    assert scheduler.wanted == {}
    scheduler.check_empty()
    for shard in scheduler.shards:
        assert isinstance(shard.residency, Residency)
        assert all(shard.residency.pins(key) == 0 for key in shard.residency.resident())
