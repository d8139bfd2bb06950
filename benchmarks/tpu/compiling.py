"""Compiles kernels at real shapes for one kind of TPU that is not there, and reports what became of them.

    python -m benchmarks.tpu.compiling --chip v5e --cases 'lora_matmul/.*' --json v5e.json

One process per kind of chip. libtpu (the `test` extra) does the work; it runs on any machine.
"""

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.tpu.case import Case
from benchmarks.tpu.cases import all_cases, handful
from benchmarks.tpu.chips import CHIPS, Chip
from benchmarks.tpu.schedule import read_dump
from kernels.implementation import implementation
from pefx.planning.compiling import QUIET

DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
# A kernel's name as a program holds it, in a gradient too.
WRAPPED = re.compile(r"(?:(?:transpose|jvp)_)*(.*?)_*")
BIG = 4 << 20  # bytes; a copy of as much is no longer small change
SMALLEST_PINNED = 1 << 12  # bytes


@contextmanager
def on_chip(chip: Chip, dump: Path | None = None) -> Iterator[Mesh]:
    """A mesh of one device of that kind; schedules of all that is compiled are written to `dump`.

    What libtpu reads of the environment it reads once: a process serves one kind of chip and one dump.
    """
    os.environ.update(QUIET)
    if dump is not None:
        os.environ["LIBTPU_INIT_ARGS"] = DUMP.format(dump)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
    mesh = Mesh(np.array(topology.devices[:1]), ("device",))
    with jax.sharding.set_mesh(mesh):
        yield mesh


@contextmanager
def operands_in_hbm() -> Iterator[None]:
    """Arrays go to kernels from HBM. XLA may otherwise bring a small one to VMEM, and the kernel then moves nothing.

    Not so an operand whose place the only result takes: the compiler refuses that.
    """
    plain = pl.pallas_call

    def pinned(array: jax.Array) -> Any:
        if array.ndim < 2 or array.size * array.dtype.itemsize < SMALLEST_PINNED:
            return array
        return pltpu.with_memory_space_constraint(array, pltpu.HBM)

    def pallas_call(*args: Any, **kwargs: Any) -> Any:
        call = plain(*args, **kwargs)
        results = jax.tree.leaves(kwargs["out_shape"])
        free = kwargs.get("input_output_aliases", {}) if len(results) == 1 else {}
        return lambda *operands: call(*(x if i in free else pinned(x) for i, x in enumerate(operands)))

    with patch.object(pl, "pallas_call", pallas_call):
        yield


def compile_case(case: Case, mesh: Mesh) -> Any:
    """The compiled program of a case. Raises what the compiler raises, ValueError where a kernel is not in it once."""
    here = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), case.arguments)
    everything = tuple(range(len(arguments)))  # as steps donate their state: a copy that is left is the kernel's doing
    with implementation("pallas_tpu"), operands_in_hbm(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        compiled = jax.jit(case.function, donate_argnums=everything).lower(*arguments).compile()
    found = kernel_names(compiled.as_text() or "")
    if sorted(found) != sorted(case.kernels):
        raise ValueError(f"kernels in the program are {sorted(found)}; the case names {sorted(case.kernels)}")
    return compiled


def kernel_names(text: str) -> list[str]:
    """Names of the Pallas kernels a compiled program calls, as often as it does."""
    calls = re.findall(r"%(\S+) = .* custom-call\(.*custom_call_target=\"tpu_custom_call\"", text)
    return [WRAPPED.fullmatch(re.sub(r"\.\d+$", "", name))[1] for name in calls]  # pyright: ignore[reportOptionalSubscript]


def name_of(array: jax.ShapeDtypeStruct) -> str:
    """A shape as a compiled program writes it."""
    kind = {"bfloat16": "bf16", "float32": "f32", "int32": "s32"}[array.dtype.name]
    return f"{kind}[{','.join(map(str, array.shape))}]"


def big_copies(text: str) -> list[str]:
    """Shapes of at least `BIG` bytes that a compiled program copies, transposes or pads on their way to a kernel."""
    found = []
    for kind, shape in re.findall(r" = ([a-z]+\d+)\[([\d,]+)\]\S* (?:copy|transpose|pad)\(", text):
        size = int(np.prod([int(n) for n in shape.split(",")])) * int(re.sub(r"\D", "", kind)) // 8
        if size >= BIG:
            found.append(f"{kind}[{shape}]")
    return found


def report(case: Case, mesh: Mesh, chip: Chip, dump: Path | None) -> dict[str, Any]:
    """What became of one case, as JSON holds it."""
    start = time.perf_counter()
    compiled = compile_case(case, mesh)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    # Banks, matrices and pools, which must reach a kernel as they are; rows of a step have two dimensions.
    leaves = jax.tree.leaves(case.arguments)
    arrays = {name_of(x) for x in leaves if x.ndim > 2 and x.size * x.dtype.itemsize > BIG}
    result: dict[str, Any] = {
        "seconds": round(time.perf_counter() - start, 2),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "big_copies": big_copies(text),
        "copied": sorted(arrays & set(big_copies(text))),
    }
    if not case.kernels:  # XLA knows what its own operations cost
        cost = compiled.cost_analysis()
        result |= {"flops": cost.get("flops", 0.0), "bytes_accessed": cost["bytes accessed"]}
    if dump is not None:
        result["schedules"] = {
            name: asdict(schedule) for name, schedule in read_dump(dump, case.kernels, chip.delay).items()
        }
        folder = dump / case.kernel / case.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in dump.iterdir():
            if file.is_file():
                file.rename(folder / file.name)
    return result


def run(cases: list[Case], chip: Chip, dump: Path | None) -> dict[str, Any]:
    """All cases, by "kernel/name"; one that fails is `{"error": ...}`."""
    results = {}
    with on_chip(chip, dump) as mesh:
        for case in cases:
            key = f"{case.kernel}/{case.name}"
            try:
                results[key] = report(case, mesh, chip, dump)
            except Exception as error:  # noqa: BLE001 a compiler's errors are of many kinds, and all are to be listed
                results[key] = {"error": f"{type(error).__name__}: {error}"}
    return results


def main() -> int:
    """Exit status 1 where a case failed; all failures are listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, required=True)
    parser.add_argument("--cases", default=".*", help='regular expression of whole "kernel/name"s')
    parser.add_argument("--handful", action="store_true", help="a chosen few only, of every kernel and direction")
    parser.add_argument("--schedules", type=Path, help="read the schedules too; libtpu's files stay in this new folder")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    cases = [case for case in all_cases() if re.fullmatch(asked.cases, f"{case.kernel}/{case.name}")]
    if asked.handful:
        cases = handful(cases, asked.chip)
    if not cases:
        print(f"no case matches {asked.cases!r}", file=sys.stderr)
        return 1
    if asked.schedules:
        asked.schedules.mkdir(parents=True)
    results = run(cases, CHIPS[asked.chip], asked.schedules)
    asked.json.write_text(json.dumps(results, indent=1))
    failed = {key: result["error"] for key, result in results.items() if "error" in result}
    for key, error in failed.items():
        print(f"{asked.chip}: {key} does not compile: {error[:2000]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
