"""A person's rules are hidden, differ between people, can all be kept, and each counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.preference import KIND, rules_of, step
from pefx.rl.tasks.protocol import Problem

RULES = {"closing": "hey", "case": "lower", "words": 3, "without": "e"}
PROBLEM = Problem("say cat\n", {"topic": "cat", "rules": RULES})


@pytest.mark.parametrize(
    ("said", "broken"),
    [
        ("cat so wow", {"closing"}),
        ("cat so hey", {"without"}),
        ("CAT SO WOW", {"closing", "case"}),
        ("so my wow", {"closing", "topic"}),
        ("cat", {"closing", "words"}),
        ("cats so hey", {"topic", "without"}),
        ("...", {"closing", "case", "words", "topic"}),
        ("", {"closing", "case", "words", "without", "topic"}),
        ("  \ncat so wow", {"closing", "case", "words", "without", "topic"}),
    ],
)
def test_each_rule_counts(said, broken):
    turn = step(PROBLEM, [said])
    assert {name for name, kept in turn.parts.items() if not kept} == broken
    assert turn.reward == pytest.approx(1 - len(broken) / 5)


@given(user=st.integers(0, 2**32 - 1), level=st.integers(1, 5), index=st.integers(0, 10**6))
def test_every_user_can_be_pleased_on_both_sides(user, level, index):
    task = Generated(TaskConfig("preference", level=level, options=(("user", user),)), KIND)
    for split in ("train", "heldout"):
        problem = task.problem(index, split)
        answer = task.answer(problem)
        assert task.step(problem, [answer]).reward == 1.0
        assert len(answer) <= 24
        off = answer.lower().replace(problem.data["topic"], "")
        assert 0 <= task.step(problem, [off]).reward < 1


def test_users_differ_and_stay_as_they_are():
    rules = [str(rules_of(user, 3)) for user in range(50)]
    assert len(set(rules)) > 30
    assert rules == [str(rules_of(user, 3)) for user in range(50)]
    assert {len(rules_of(user, level)) for user in range(50) for level in (1,)} == {2}
    assert {len(rules_of(user, level)) for user in range(50) for level in (3, 4, 5)} == {4}


def test_a_topic_is_on_the_same_side_for_everyone():
    tasks = [Generated(TaskConfig("preference", seed=u, options=(("user", u),)), KIND) for u in range(20)]
    train = {task.problem(index, "train").prompt for task in tasks for index in range(40)}
    assert not train & {task.problem(index, "heldout").prompt for task in tasks for index in range(40)}
