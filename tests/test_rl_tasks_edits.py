"""Each edit is what its word says; every other text is less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import TaskConfig
from pefx.rl.tasks.edits import EDITS, KIND, REPLACE
from pefx.rl.tasks.generated import Generated

EXPECTED = {"reverse": "ananab", "upper": "BANANA", "double": "bananabanana", "ends": "ba", "consonants": "bnn"}


@pytest.mark.parametrize(("edit", "answer"), [*EXPECTED.items(), ("sorted", "aaabnn")])
def test_an_edit(edit, answer):
    assert EDITS[edit]("banana") == answer


@pytest.mark.parametrize("edit", [*EDITS, REPLACE])
def test_an_option_chooses_the_edit(edit):
    task = Generated(TaskConfig("edits", options=(("edit", edit),)), KIND)
    for index in range(20):
        problem = task.problem(index, "train")
        words = problem.prompt.split()
        assert words[0] == edit
        want = words[4].replace(words[1], words[2]) if edit == REPLACE else EDITS[edit](words[1])
        assert problem.data["answer"] == want != ""


@given(
    index=st.integers(0, 10**6), level=st.integers(1, 5), said=st.text("abcdefgh", max_size=6), place=st.integers(0, 99)
)
def test_only_the_right_text_gets_one(index, level, said, place):
    task = Generated(TaskConfig("edits", level=level, partial=1.0), KIND)
    problem = task.problem(index, "train")
    right = problem.data["answer"]
    place %= len(right)
    for text in (said, right[:place] + "!" + right[place + 1 :], right + "a", right[:-1], " " + right):
        assert (task.step(problem, [text]).reward == 1.0) == (text == right)
