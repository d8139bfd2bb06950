"""The cases of all kernels: each `cases_<kernel>.py` beside this file defines `cases()`."""

import importlib
from pathlib import Path

from benchmarks.tpu.case import Case

# Compiled in about a minute for five chips; gradients hold the forward pass. The slowest ones for one chip only.
HANDFUL = {
    "delta_rule/four states prefill 2048 gradient",
    "delta_rule/one state decode 64 prefill 2048",
    "expert_lora/qwen3-30b-a3b down_proj per_expert rank 16 64 slots decode 64",
    "grouped_matmul/qwen3-30b-a3b down_proj prefill 4096 gradient",
    "lora_matmul/qwen3-30b-a3b k_proj rank 16 64 slots gradient",
    "paged_attention/qwen3-30b-a3b decode 64 x 4096",
}
ON_ONE_CHIP = "v5e"
SLOW = {
    "expert_lora/qwen3-30b-a3b down_proj per_expert rank 16 64 slots prefill 4096 gradient",
    "lora_matmul/qwen3-30b-a3b k_proj rank 16 64 slots decode 64 prefill 4096",
    "paged_attention/qwen3-30b-a3b gradient 4096 tiles of 32",
}
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


def handful(cases: list[Case], chip: str) -> list[Case]:
    """The cases chosen for a chip. Raises ValueError where one has another name now."""
    chosen = HANDFUL | SLOW if chip == ON_ONE_CHIP else HANDFUL
    found = {f"{case.kernel}/{case.name}": case for case in cases}
    if missing := chosen - found.keys():
        raise ValueError(f"no case is named {', '.join(sorted(missing))}")
    return [found[key] for key in sorted(chosen)]
