"""The cases of all kernels: each `cases_<kernel>.py` beside this file defines `CASES`."""

import importlib
from pathlib import Path

from benchmarks.tpu.case import Case


def all_cases() -> list[Case]:
    """Every case, in the order of the kernels' names. Raises ValueError where two have one name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    cases = [case for name in names for case in importlib.import_module(f"benchmarks.tpu.{name}").CASES]
    keys = [f"{case.kernel}/{case.name}" for case in cases]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"several cases are named {', '.join(twice)}")
    return cases


def one_of_each(cases: list[Case]) -> list[Case]:
    """The first case of each set of kernels that run together."""
    return list({(case.kernel, case.kernels): case for case in reversed(cases)}.values())[::-1]
