"""From rewarded answers to lessons: what each target is given, and who is left out."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.config import PolicyLossConfig
from pefx.errors import PefxError
from pefx.losses.rows import LOSSES
from pefx.rl.lessons import Passes, by_token, learnable, pieces_of, plain_lesson
from pefx.serving.routes import MISSING
from tests.rl_examples import STALE, plan_of, rollout

GROUPS = [[rollout(0, 0, 1.0), rollout(0, 1, 0.0, drawn=2)], [rollout(1, 0, 0.5), rollout(1, 1, 0.25)]]


def test_an_answer_to_be_scored_has_its_drawn_tokens_as_targets() -> None:
    one = rollout(0, 0, 1.0)
    plain = plain_lesson(one, replayed=False)
    np.testing.assert_array_equal(plain.tokens, one.tokens[:-1])
    np.testing.assert_array_equal(plain.targets, [-1, -1, *one.tokens[3:]])
    np.testing.assert_array_equal(plain.weights, [0, 0, 1, 1, 1, 1])
    assert plain.terms is None
    assert one.routes is not None
    routes = one.routes.copy()
    routes[2] = MISSING
    replayed = plain_lesson(replace(one, routes=routes), replayed=True)
    assert replayed.terms is not None
    np.testing.assert_array_equal(replayed.terms.routes, [*one.routes[:2], np.full((2, 2), -1), *one.routes[3:-1]])


def test_grpo_by_hand() -> None:
    (piece,) = pieces_of(plan_of(PolicyLossConfig()), GROUPS, {}, 7, {"draws": 4.0})
    assert (piece.position, piece.facts, piece.denominator) == (7, {"draws": 4.0}, 4.0)
    sides = [1.0, -1.0, 1.0, -1.0]
    for one, lesson, side in zip([*GROUPS[0], *GROUPS[1]], piece.lessons, sides, strict=True):
        terms, drawn = lesson.terms, one.sampled[1:]
        assert terms is not None
        np.testing.assert_allclose(terms.advantages, side, rtol=1e-4)
        np.testing.assert_allclose(lesson.weights[drawn], 1 / one.drawn, rtol=1e-6)
        assert not lesson.weights[~drawn].any()
        np.testing.assert_array_equal(terms.old_logprobs, one.logprobs[1:])
        assert terms.routes is None


def test_what_cannot_be_learned_from_leaves_its_group() -> None:
    groups = [[*GROUPS[0], rollout(0, 2, np.nan, error="reward: timeout: late"), rollout(0, 3, 1.0, drawn=0)]]
    (with_them,) = pieces_of(plan_of(PolicyLossConfig()), groups, {}, 0, {})
    (without,) = pieces_of(plan_of(PolicyLossConfig()), GROUPS[:1], {}, 0, {})
    assert len(learnable(groups[0])) == len(with_them.lessons) == 2
    assert with_them.denominator == without.denominator
    for a, b in zip(with_them.lessons, without.lessons, strict=True):
        assert a.terms is not None
        assert b.terms is not None
        np.testing.assert_array_equal(a.terms.advantages, b.terms.advantages)
        np.testing.assert_array_equal(a.weights, b.weights)


def test_corrections_weigh_by_the_trainers_pass_and_rejected_tokens_leave_the_denominator() -> None:
    one, other = GROUPS[0]
    trainer = one.logprobs.copy()
    trainer[4] += np.float32(np.log(100.0))  # beyond icepop's bound
    trainer[5] += np.float32(np.log(2.0))
    loss = PolicyLossConfig("dapo", correction="icepop")
    (piece,) = pieces_of(plan_of(loss, sampler=STALE), GROUPS[:1], {id(one): Passes(trainer=trainer)}, 0, {})
    np.testing.assert_allclose(piece.lessons[0].weights, [0, 0, 1, 0, 2, 1], rtol=1e-5)
    assert piece.denominator == one.drawn - 1 + other.drawn
    terms = piece.lessons[0].terms
    assert terms is not None
    np.testing.assert_array_equal(terms.old_logprobs, trainer[1:])
    assert piece.lessons[0].targets[3] == one.tokens[4]  # still scored, for the counters


@pytest.mark.parametrize("replay", ["sampler", "trainer"])
def test_routes_are_those_that_are_asked_for(replay) -> None:
    own = np.full((7, 2, 2), 3, np.uint16)
    passes = {id(one): Passes(routes=own[: len(one.tokens)]) for group in GROUPS for one in group}
    (piece,) = pieces_of(plan_of(PolicyLossConfig(replay=replay)), GROUPS, passes, 0, {})
    for one, lesson in zip([*GROUPS[0], *GROUPS[1]], piece.lessons, strict=True):
        assert lesson.terms is not None
        assert one.routes is not None
        wanted = one.routes if replay == "sampler" else own[: len(one.tokens)]
        np.testing.assert_array_equal(lesson.terms.routes, wanted[:-1].astype(np.int32))


def test_tokens_without_routes_can_be_left_out() -> None:
    one, other = GROUPS[0]
    assert one.routes is not None
    routes = one.routes.copy()
    routes[3] = MISSING  # token 4 was drawn there
    groups = [[replace(one, routes=routes), other]]
    kept, left = (
        pieces_of(plan_of(PolicyLossConfig("dapo", replay="sampler", drop_unrouted=drop)), groups, {}, 0, {})[0]
        for drop in (False, True)
    )
    assert (kept.denominator, left.denominator) == (6.0, 5.0)
    assert left.lessons[0].weights[3] == 0


def test_pairs_stand_beside_each_other() -> None:
    groups = [[rollout(0, s, r) for s, r in enumerate((0.5, 1.0, 0.0))], [rollout(1, 0, 1.0), rollout(1, 1, 1.0)]]
    (piece,) = pieces_of(plan_of(PolicyLossConfig("dpo")), groups, {}, 0, {})
    assert LOSSES["dpo"].advantage == "preference"
    terms = [lesson.terms for lesson in piece.lessons]
    assert [t.partner for t in terms if t] == [1, 0]
    assert [float(t.advantages[0]) for t in terms if t] == [1.0, -1.0]


def test_groups_are_dealt_out_to_micro_batches_in_order() -> None:
    plan = plan_of(PolicyLossConfig("dr_grpo"), accumulate=2)
    first, second = pieces_of(plan, GROUPS, {}, 0, {})
    assert [one.group for one in (*first.seen, *second.seen)] == [0, 0, 1, 1]
    short, empty = pieces_of(plan, GROUPS[:1], {}, 0, {})
    assert (len(short.lessons), len(empty.lessons), empty.denominator) == (2, 0, 0.0)


def test_longer_answers_lose_reward() -> None:
    groups = [[rollout(0, 0, 1.0, drawn=8), rollout(0, 1, 1.0, drawn=2)]]
    loss, how = PolicyLossConfig("dr_grpo", overlong=4), replace(plan_of(PolicyLossConfig()).rollout, max_tokens=8)
    (piece,) = pieces_of(plan_of(loss, rollout=how), groups, {}, 0, {})
    advantages = [float(one.terms.advantages[0]) for one in piece.lessons if one.terms]
    np.testing.assert_allclose(advantages, [-0.5, 0.5])


def test_a_correction_that_does_not_fit_is_told_with_its_policy() -> None:
    with pytest.raises(
        PefxError, match="user 'ann': the correction 'tis' weighs tokens for a ratio against the trainer"
    ):
        pieces_of(plan_of(PolicyLossConfig("dro", correction="tis")), GROUPS, {}, 0, {})


def test_numbers_of_targets_as_numbers_of_tokens() -> None:
    np.testing.assert_array_equal(by_token(np.asarray([1.5, 2.5], np.float32)), np.asarray([0, 1.5, 2.5], np.float32))
