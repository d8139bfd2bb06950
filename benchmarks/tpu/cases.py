"""The cases of all kernels: each `cases_<kernel>.py` beside this file defines `cases()`."""

import importlib
from pathlib import Path

from benchmarks.tpu.case import Case

LAYER = "layer"  # cases of this one are other kernels' again, at the shapes of one layer


def all_cases() -> list[Case]:
    """Every case, in the order of the kernels' names. Raises ValueError where two have one name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    cases = [case for name in names for case in importlib.import_module(f"benchmarks.tpu.{name}").cases()]
    keys = [f"{case.kernel}/{case.name}" for case in cases]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"several cases are named {', '.join(twice)}")
    return cases


def one_of_each(cases: list[Case]) -> list[Case]:
    """One case of each kernel, direction and model: of those that run the same calls, the one in the middle.

    Lists go from small to large; a case's name begins with its model's, and what calls it makes tells the direction.
    """
    alike: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        if case.kernel != LAYER:
            alike.setdefault((case.kernel, case.name.split()[0], *case.kernels), []).append(case)
    return [found[len(found) // 2] for found in alike.values()]
