"""Items in order, and only in order."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.sorting import KIND, step


@given(index=st.integers(0, 10**6), level=st.integers(1, 5), seed=st.integers(0, 99))
def test_only_the_right_order_gets_one(index, level, seed):
    task = Generated(TaskConfig("sorting", level=level, options=(("order", "any"),)), KIND)
    problem = task.problem(index, "train")
    words = problem.prompt.split()[1:]
    down = words[0] == "down"
    items = words[down:]
    right = sorted(items, key=lambda item: (int(item) if item.isdigit() else 0, item), reverse=down)
    assert len(items) == level + 3
    assert task.step(problem, [" ".join(right) + "\n"]).reward == 1.0
    shuffled = Random(seed).sample(items, len(items))
    assert task.step(problem, [" ".join(shuffled)]).reward == float(shuffled == right)
    assert task.step(problem, [" ".join(right[:-1])]).reward == 0.0
    assert task.step(problem, ["  ".join(right)]).reward == 0.0


def test_closeness_is_counted_in_items():
    problem = KIND.draw(Random(0), 3, {"items": "numbers", "order": "up"})
    items = problem.data["answer"].split(" ")
    assert step(problem, [" ".join([*items[:-1], "0"])]).reward == pytest.approx(5 / 6)


@pytest.mark.parametrize(("items", "test"), [("numbers", str.isdigit), ("letters", str.isalpha)])
def test_an_option_chooses_the_items(items, test):
    task = Generated(TaskConfig("sorting", options=(("items", items),)), KIND)
    assert all(test(item) for i in range(20) for item in task.problem(i, "train").prompt.split()[1:])
