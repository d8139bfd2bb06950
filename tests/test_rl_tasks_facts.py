"""Facts are a person's own; the context holds what is asked for, and held out are wordings, not facts."""

import pytest

from pefx.config import TaskConfig
from pefx.rl.tasks.facts import COLOURS, KIND, facts_of
from pefx.rl.tasks.generated import Generated


def task_of(user: int, level: int = 1) -> Generated:
    return Generated(TaskConfig("facts", level=level, options=(("user", user),)), KIND)


@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("user", [0, 7, 12345])
def test_the_context_answers_the_question(user, level):
    task, facts = task_of(user, level), facts_of(user, level)
    for index in range(50):
        problem = task.problem(index, "train")
        lines = dict(part.rsplit(" ", 1) for part in problem.context.removesuffix("\n").split(", "))
        right = problem.data["answer"]
        named = [
            place for place in lines if all(word in problem.prompt.rstrip("?\n").split() for word in place.split())
        ]
        assert [lines[place] for place in named] == [right]
        assert len(lines) == level
        assert lines.items() <= {" ".join(place): colour for place, colour in facts.items()}.items()
        assert task.step(problem, [right + "\n"]).reward == 1.0
        other = next(colour for colour in COLOURS if colour != right)
        assert task.step(problem, [other + "\n"]).reward == 0.0


def test_held_out_are_wordings_of_facts_that_are_trained_on():
    task = task_of(7)
    trained, heldout = ([task.problem(index, split) for index in range(600)] for split in ("train", "heldout"))
    assert not {problem.prompt for problem in trained} & {problem.prompt for problem in heldout}

    def facts(problems):
        return {" ".join(sorted(set(p.prompt.rstrip("?\n").split()) - {"of", "what", "has", "owns"})) for p in problems}

    assert facts(heldout) <= facts(trained)
    assert len(facts(trained)) == 12


def test_people_know_different_things():
    assert facts_of(1, 1) != facts_of(2, 1)
    assert facts_of(1, 1).items() <= facts_of(1, 2).items()
