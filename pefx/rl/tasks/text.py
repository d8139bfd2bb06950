"""Text of the built-in tasks to train a base on, so that it can do a little of each before it is rewarded.

`python -m pefx.rl.tasks.text --out DIR` writes `train.jsonl` and `heldout.jsonl`, one `{"text": ...}` line a problem
with its completion. Neither holds a held-out problem of any task; nor are their own problems the same.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from pefx.errors import PefxError
from pefx.program import run
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import HELDOUT_PLACES, PLACES, place_of
from pefx.rl.tasks.kind import ANY, Kind
from pefx.rl.tasks.protocol import END, Problem

# Of the places of `place_of`, those whose problems are in `heldout.jsonl`.
EXAM_PLACES = range(HELDOUT_PLACES, HELDOUT_PLACES + PLACES // 16)
MANY = 100  # values of an option: they are users, not settings
CONTEXTS = 0.25  # of all lines, those that begin with a context, as long as a task has one
TRAIN_PLACES = range(EXAM_PLACES.stop, PLACES)


def lines(
    seed: int,
    count: int,
    right: float,
    levels: Sequence[int] = (1,),
    exam: bool = False,
    tasks: Sequence[str] = (),
    contexts: float = CONTEXTS,
) -> Iterator[str]:
    """Yields `count` texts: prompt, completion and, of tasks with several turns, what comes between.

    Tasks (all, unless some are named), levels and users are drawn evenly, but for a share `contexts` of the lines:
    those are of tasks whose problems have a context, which they begin with. A completion is right with probability
    `right`, else a plausible wrong one; behind a context it is always right. `exam`: of the problems kept for
    `heldout.jsonl`. A pure function.
    """
    for text, _ in islice(examples(seed, right, levels, exam, tasks or tuple(TASKS), contexts), count):
        yield text


def examples(
    seed: int, right: float, levels: Sequence[int], exam: bool, tasks: Sequence[str], contexts: float = CONTEXTS
) -> Iterator[tuple[str, bool]]:
    """Texts as of `lines`, and whether each is right, without end."""
    random = Random(f"text {seed} {exam}")
    places = EXAM_PLACES if exam else TRAIN_PLACES
    told = [name for name in tasks if drawn(Random(0), name, levels[0], places).context]
    before: dict[str, str] = {}
    while True:
        is_told = bool(told) and random.random() < contexts
        name, level = random.choice(told if is_told else tasks), random.choice(levels)
        problem = drawn(random, name, level, places)
        context, last = worked(TASKS[name], level, problem)
        is_right = is_told or random.random() < right
        said = last if is_right else wrong(random, last, before.get(name, last))
        before[name] = last
        yield (problem.context if is_told else "") + context + said, is_right


def drawn(random: Random, name: str, level: int, places: range) -> Problem:
    """A problem whose place is one of `places`; raises PefxError if there seems to be none."""
    for _ in range(1000):
        options = {option: _value(random, values) for option, values in TASKS[name].options.items()}
        problem = TASKS[name].draw(random, level, options)
        if place_of(problem) in places:
            return problem
    raise PefxError(f"{name} has too few problems at level {level}: none for one of the two files")


def _value(random: Random, values: Sequence[str] | range) -> int | str:
    """What is drawn for each problem, where an option has that; of numbers any user, or else the default."""
    if isinstance(values, tuple):
        return ANY if ANY in values else values[0]
    return random.choice(values) if len(values) >= MANY else values[0]


def worked(kind: Kind, level: int, problem: Problem) -> tuple[str, str]:
    """The last right completion of a problem, and before it the prompt and all turns until then."""
    texts: list[str] = []
    context = problem.prompt
    while len(texts) < kind.turns(level) - 1:
        texts.append(kind.answer(problem, texts))
        context += texts[-1] + kind.step(problem, texts).observation
    return context, kind.answer(problem, texts)


def wrong(random: Random, right: str, other: str) -> str:
    """Another completion than the right one: that of another problem, or a digit off by one, or two places swapped."""
    line = right.removesuffix(END)
    for _ in range(20):
        place = random.randrange(len(line))
        before, here, after = line[:place], line[place], line[place + 1 :]
        way = random.randrange(3)
        if way == 0:
            said = other.removesuffix(END)
        elif way == 1 and here.isdigit():
            said = f"{before}{(int(here) + random.choice((1, 9))) % 10}{after}"
        else:
            said = before[:-1] + here + before[-1:] + after
        if said != line:
            return said + END
    return line + line[-1] + END


def build(out: Path, count: int = 200_000, right: float = 0.5, levels: Sequence[int] = (1, 2)) -> dict[str, int]:
    """Writes both files under `out`, the held-out one a fiftieth as long; returns the lines of each."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"train.jsonl": count, "heldout.jsonl": max(1, count // 50)}
    for name, size in sizes.items():
        partial = out / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            for text in lines(0, size, right, levels, exam=name == "heldout.jsonl"):
                file.write(json.dumps({"text": text}) + "\n")
        partial.replace(out / name)
    return sizes


def main(out: Path, count: int = 200_000, right: float = 0.5, levels: tuple[int, ...] = (1, 2)) -> None:
    """Writes text of all tasks under OUT.

    Args:
        out: folder to write to.
        count: lines of `train.jsonl`.
        right: the share of right completions.
        levels: levels of the problems.
    """
    if count < 1 or not 0 <= right <= 1:
        raise PefxError(f"count must be above 0 and right from 0 to 1, got {count} and {right}")
    for name, size in build(out, count, right, levels).items():
        print(f"{size:>12,} lines  {out / name}")


if __name__ == "__main__":
    run(main)
