"""pefx.rl.sampler: trajectories are what their policy draws, whatever is beside them; what fails is its own error.

The device is a stand-in whose numbers follow from a sequence's tokens and adapter alone.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.rl.records import Rollout
from pefx.rl.sampler import Ask, Sampler
from pefx.serving.engine import Engine, Way
from pefx.serving.requests import Request
from pefx.serving.routes import MISSING
from tests.rl_small import same
from tests.serving_fakes import EOS, FakeCatalog, FakeDevice, FakeTokenizer, make_engine, revision, routes_of

POLICIES = ("alice", "bob", "carol")
CATALOG = FakeCatalog(*(revision(policy, 3) for policy in POLICIES))


def ask(sample: int = 0, policy: str | None = "alice", prompt: Any = "Say something nice.", **changes: Any) -> Ask:
    revision = None if policy is None else CATALOG.serving(policy)
    return replace(Ask(revision, "chat", 0, sample, prompt, seed=sample, max_tokens=9), **changes)


def make(device: FakeDevice | None = None, catalog: FakeCatalog = CATALOG, **sizes: Any) -> tuple[Engine, Sampler]:
    engine = make_engine(catalog, device, **sizes)
    return engine, Sampler(engine, FakeTokenizer())


def check(rollout: Rollout) -> None:
    """Every number of it is what the device says of those tokens."""
    device, tokens = FakeDevice(4), rollout.tokens.tolist()
    adapter = "base" if rollout.policy == "base" else f"{rollout.policy}@3"
    for place in np.flatnonzero(rollout.sampled):
        before = tokens[:place]
        assert tokens[place] == device.draw(before, adapter, rollout.seed)
        assert rollout.logprobs[place] == device.logprob(before, adapter, tokens[place])
    assert not rollout.logprobs[~rollout.sampled].any()
    assert rollout.routes is not None
    assert rollout.routed == len(tokens) - 1
    assert (rollout.routes[-1] == MISSING).all()
    for place in range(len(tokens) - 1):
        np.testing.assert_array_equal(rollout.routes[place], routes_of(tokens[: place + 1], adapter))


asks = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([None, *POLICIES]),
        "prompt": st.text("ab", min_size=1, max_size=14),
        "seed": st.integers(0, 3),
        "max_tokens": st.integers(1, 14),
    }
)


def twice(ask: Ask, texts: tuple[str, ...]) -> str | None:
    """Some asks have a second turn, some a third."""
    return f" {len(texts)} " if len(texts) <= ask.seed % 3 else None


@settings(max_examples=25)
@given(st.lists(asks, min_size=1, max_size=10), st.integers(6, 24), st.integers(1, 4), st.integers(1, 2))
def test_a_rollout_does_not_depend_on_its_company(asked: list[dict[str, Any]], pages: int, sequences: int, shards: int):
    some = [ask(**fields) for fields in asked]
    sizes: dict[str, Any] = {"pages": max(16, pages), "sequences": sequences, "shards": shards, "slots": 2}
    engine, sampler = make(FakeDevice(4, context=64), **sizes)
    together = sampler.sample(some, twice)
    assert engine.idle
    for one, rollout in zip(some, together, strict=True):
        assert rollout.error is None
        check(rollout)
        (alone,) = make()[1].sample([one], twice)
        assert same(rollout, alone)


def test_a_rollout_holds_what_was_asked_and_what_came():
    (rollout,) = make()[1].sample([ask(7, "bob", group=5, task="rhymes", seed=11)])
    assert (rollout.policy, rollout.task, rollout.group, rollout.sample) == ("bob", "rhymes", 5, 7)
    assert (rollout.revision, rollout.seed, rollout.turns, rollout.error) == (3, 11, 1, None)
    drawn = rollout.tokens[rollout.sampled].tolist()
    assert rollout.text == bytes(token for token in drawn if token != EOS).decode()
    assert rollout.transcript == ("Say something nice.", rollout.text)
    assert rollout.finish_reason == ("stop" if drawn[-1] == EOS else "length")
    assert np.isnan(rollout.reward)
    assert rollout.parts == {}
    by_tokens = make()[1].sample([ask(7, "bob", tuple(b"Say something nice."), group=5, task="rhymes", seed=11)])
    assert same(by_tokens[0], rollout)


def test_samples_of_one_prompt_have_it_computed_once():
    device = FakeDevice(page_size=4, context=128)
    engine, sampler = make(device, sequences=4, step_tokens=64)
    prompt, count = "x" * 41, 8
    rollouts = sampler.sample([ask(sample, prompt=prompt) for sample in range(count)])
    assert len({rollout.text for rollout in rollouts}) > 1
    fed = sum(rollout.drawn - 1 for rollout in rollouts)
    assert engine.state().batch_tokens == fed + 41 + (count - 1) * 1
    for rollout in rollouts:
        check(rollout)


def test_turns_go_on_from_all_tokens_so_far_which_are_not_computed_again():
    seen: list[tuple[str, ...]] = []

    def more(ask: Ask, texts: tuple[str, ...]) -> str | None:
        seen.append(texts)
        return " Go on: " if len(texts) < 3 else None

    device = FakeDevice(page_size=4, context=128)
    engine, sampler = make(device)
    one = ask(2, ignore_eos=True)
    (rollout,) = sampler.sample([one], more)
    check(rollout)
    assert rollout.turns == 3
    assert rollout.drawn == 27
    assert [len(texts) for texts in seen] == [1, 2, 3]
    texts = seen[-1]
    assert rollout.transcript == ("Say something nice.", texts[0], " Go on: ", texts[1], " Go on: ", texts[2])
    assert rollout.text == "".join(texts)
    said = [not sampled for sampled in rollout.sampled]
    assert bytes(rollout.tokens[said].tolist()) == b"Say something nice. Go on:  Go on: "
    assert engine.state().batch_tokens < len(rollout.tokens) + 2 * 4


def test_stop_strings_and_tokens_end_a_turn():
    free = make()[1].sample([ask(1, ignore_eos=True)])[0]
    (cut,) = make()[1].sample([ask(1, ignore_eos=True, stop=(free.text[2:4],))])
    assert (cut.text, cut.finish_reason, cut.drawn) == (free.text[:2], "stop", 4)
    (ended,) = make()[1].sample([ask(1, ignore_eos=True, stop_token_ids=(ord(free.text[3]),))])
    assert ended.finish_reason == "stop"
    assert ended.drawn <= 4


def test_where_no_further_turn_fits_that_is_the_end():
    engine, sampler = make(FakeDevice(page_size=4, context=48))
    rollouts = sampler.sample([ask(0, ignore_eos=True), ask(1, prompt="Hi", ignore_eos=True)], lambda a, texts: "y" * 9)
    for rollout in rollouts:
        check(rollout)
        assert (rollout.error, rollout.finish_reason) == (None, "length")
        assert 39 <= len(rollout.tokens) <= 48
        assert rollout.sampled[-1]
    assert engine.idle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"temperature": -1.0},
            "policy 'alice', task 'chat', prompt 0, sample 1, field 'temperature': must be a number",
        ),
        ({"max_tokens": 0}, "field 'max_tokens': must be an integer >= 1"),
        ({"seed": -1}, "field 'seed': must be an integer from 0"),
        ({"stop": ("",)}, "field 'stop': must be a list of non-empty strings"),
        ({"prompt": ""}, "field 'prompt': must be a non-empty string"),
        ({"prompt": (2**40,)}, "token id 1099511627776 at index 0 is out of range"),
        ({"prompt": "\ud800"}, "is no UTF-8 text"),
        ({"prompt": "x" * 64}, "has 64 tokens, at most 63 fit"),
    ],
)
def test_an_ask_that_cannot_be_is_an_error_and_others_go_on(changes: dict[str, Any], message: str):
    others = [ask(0), ask(2, "bob")]
    found = make()[1].sample([others[0], ask(1, **changes), others[1]])
    assert found[1].error is not None
    assert message in found[1].error
    assert (len(found[1].tokens), found[1].finish_reason, found[1].turns) == (0, "error", 0)
    assert all(same(one, alone) for one, alone in zip(found[::2], make()[1].sample(others), strict=True))


def test_a_policy_that_fails_leaves_the_others_untouched():
    catalog = FakeCatalog(*CATALOG.revisions.values())
    catalog.damaged.add("bob@3")
    found = make(catalog=catalog)[1].sample([ask(0), ask(1, "bob"), ask(2, None)])
    assert [rollout.error for rollout in found] == [None, "revision bob@3 is damaged", None]
    assert found[2].policy == "base"
    for rollout in found[::2]:
        check(rollout)


def test_trouble_of_what_follows_a_turn_is_that_of_its_rollout():
    def more(ask: Ask, texts: tuple[str, ...]) -> Any:
        if ask.sample == 0:
            raise ZeroDivisionError("by \udc80")
        return {1: 5, 2: "\ud800", 3: None}[ask.sample]

    found = make()[1].sample([ask(sample) for sample in range(4)], more)
    assert found[0].error == "what follows a turn: ZeroDivisionError: by \\udc80"
    assert "neither a string nor None, but int" in str(found[1].error)
    assert "no UTF-8 text" in str(found[2].error)
    assert found[3].error is None
    for rollout in found:
        check(rollout)  # what there was before is all there
        assert rollout.turns == 1


def test_rollouts_come_as_they_end_and_who_reads_no_further_leaves_nothing():
    engine, sampler = make()
    some = [ask(0, max_tokens=9, ignore_eos=True), ask(1, max_tokens=1), ask(2, temperature=-1.0)]
    stream = sampler.stream(some)
    assert [next(stream)[0], next(stream)[0]] == [2, 1]
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.idle
    assert engine.state().pages_used == 0
    assert len(sampler.sample(some)) == 3


def test_the_engine_is_left_idle_where_it_checks_itself():
    engine, sampler = make(how=Way(check_every=1))
    sampler.sample([ask(0), ask(1)])
    assert engine.idle
    assert (engine.state().audited, engine.state().mismatches) == (2, 0)


def test_without_routes_none_are_asked_for():
    engine = make_engine(CATALOG)
    (rollout,) = Sampler(engine, FakeTokenizer(), routes=False).sample([ask()])
    assert rollout.routes is None
    (again,) = Sampler(engine, FakeTokenizer()).sample([ask()])  # the pages that are there have none
    check(again)


def test_an_engine_that_can_serve_nothing_ends_it():
    catalog = FakeCatalog(*CATALOG.revisions.values())
    engine, sampler = make(catalog=catalog)

    def load(revision: Any) -> Any:
        raise PefxError("gone", "storage")

    catalog.load = load
    with pytest.raises(PefxError, match="gone"):
        sampler.sample([ask(0), ask(1)])
    assert engine.idle
    engine.submit(0, Request("a", (1,)), None)
