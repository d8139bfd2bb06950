"""What kernels and one layer of a mixed step must take on TPUs at least, from schedules and arithmetic, without one.

    python -m benchmarks.tpu_static

It writes docs/tpu-static.md.

Each kernel is compiled for each chip by libtpu (the `test` extra); nothing runs on a TPU, and nothing here is a time
that was measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tpu.bound import Term, total
from benchmarks.tpu.chips import CHIPS, Chip
from benchmarks.tpu.layer import FORMS, STEPS, Step, layer_terms
from benchmarks.tpu.schedule import Schedule, part_of

ROOT = Path(__file__).resolve().parent.parent
# The mixed layer's bound over the bare base's that the design asks for, by form and adapters of a step.
TARGETS = {
    ("per_expert", "decode"): 1.16,
    ("shared_hidden", "decode"): 1.10,
    ("per_expert", 1): 1.10,
    ("per_expert", 2): 1.10,
    ("shared_hidden", 1): 1.10,
    ("shared_hidden", 2): 1.10,
    ("shared_hidden", 8): 1.12,
}
# Steps whose kernels are listed.
SHOWN = (STEPS[0], *(step for step in STEPS if step.adapters in (2, 8)))
METHOD = """\
Bounds, not measurements: no TPU ran anything.

Read from schedules: the cycles of LoRA at q, k, v and o, of shrink and expand beside the experts, and of the experts'
products, bare and with LoRA inside. A kernel's cycles are counted in the schedule that libtpu wrote for that chip:
bundles of one step of its grid (branches with matrix products as often as they are taken, all other branches as if
always taken), or the matrix units' time if that is longer, times the steps.

Arithmetic: all bytes; the products that XLA computes (q, k, v, o, router: their operations at the chip's peak); paged
attention, in both the same (its kernel can only take longer, which lowers the ratios); rows to the experts, the gated
activation and back. Experts hit, live tiles, and runs of one (expert, slot) in a tile are not averages: routes are
drawn evenly with a fixed seed and go through the layer's own grouping. Prefills are sequences of 64 tokens, where
attention is least.

The buffer of the experts' rows is as long as evenly drawn routes never need: what XLA does to it and the steps of the
kernels' grids are counted whole, dead or not, the same in base and mixed.

Within an operation moving and computing overlap perfectly; operations follow each other. Each takes max(cycles / clock,
operations / peak, bytes / bandwidth).

Not in these bounds: the latency of a transfer and what of it a kernel does not hide; waiting for matrix units beyond
their throughput (loading them is not counted); the start of a kernel; of the roughly 0.35 us that a grid step is said
to cost at least, what is not bundles; norms, rotary embedding, residual sums, softmax of the router and sorting; what
XLA moves around the experts beyond the least. These are nearly the same with and without adapters, but for the steps
of a grid. Real routes are less even than drawn ones. A v5p device has two cores: XLA's products are counted on both, a
kernel on one.
"""


def compiled(chip: Chip, folder: Path) -> dict[str, Schedule]:
    """Schedules of the layer's kernels on one chip, by case. Raises RuntimeError where one does not compile."""
    found = folder / f"{chip.name}.json"
    command = [sys.executable, "-m", "benchmarks.tpu.compiling", "--chip", chip.name, "--cases", "layer/.*"]
    command += ["--schedules", str(folder / chip.name), "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    schedules = {}
    for key, result in json.loads(found.read_text()).items():
        (schedule,) = result["schedules"].values()
        name = key.removeprefix("layer/")
        schedules[name] = Schedule(part_of(schedule["whole"]), schedule["matrix_slots"])
    return schedules


def kernel_rows(step: Step, chip: Chip, schedules: dict[str, Schedule]) -> list[str]:
    """A line of the table of kernels for each one the step runs, in any form."""
    terms: dict[str, Term] = {}
    for form in FORMS:
        for term in layer_terms(step, form, schedules):
            if term.turns and term.turns != getattr(terms.get(term.name), "turns", None):
                terms[f"{term.name}, {form}" if term.name.startswith("experts") else term.name] = term
    rows = []
    for name, term in terms.items():
        turns = term.turns
        assert turns
        moving, computing = term.moving(chip) * 1e6, term.computing(chip) * 1e6
        rows.append(
            f"| {name} | {chip.name} | {turns.steps:,.0f} | {turns.turn.bundles:,.0f} | "
            f"{100 * turns.matrix_use:.0f} % | {turns.turn.spill:.0f} | {term.bytes / 1e6:,.1f} | {computing:,.1f} | "
            f"{moving:,.1f} | {term.seconds(chip) * 1e6:,.1f} |"
        )
    return rows


def ratio_row(step: Step, chip: Chip, schedules: dict[str, Schedule]) -> str:
    """A line of the table of layers: the base's bound, and each form's over it with what dominates the difference."""
    base = layer_terms(step, "base", schedules)
    seconds = total(base, chip)
    cells = [step.name, chip.name, f"{seconds * 1e6:,.0f}"]
    for form in FORMS[1:]:
        mixed = layer_terms(step, form, schedules)
        ratio = total(mixed, chip) / seconds
        target = TARGETS.get((form, "decode" if step.decode else step.adapters))
        missed = target is not None and ratio > target + 5e-4
        cells.append(f"{ratio:.3f}" + ("" if target is None else f" ({'above' if missed else 'within'} {target:.2f})"))
        own = {term.name: term.seconds(chip) for term in base}
        more = {term.name: term.seconds(chip) - own.pop(term.name, 0.0) for term in mixed}
        worst = sorted(more.items(), key=lambda pair: -pair[1])[:3]
        cells.append(", ".join(f"{name} +{extra / seconds:.3f}" for name, extra in worst))
    return "| " + " | ".join(cells) + " |"


def table(chips: list[Chip], schedules: dict[str, dict[str, Schedule]]) -> str:
    """The whole page."""
    lines = ["# Static bounds on TPUs", "", "Written by `python -m benchmarks.tpu_static`.", "", METHOD]
    lines += ["## A mixed layer over the bare base's", ""]
    lines += [
        "One layer of Qwen3-30B-A3B (vocabulary left out), rank 16, 64 slots resident; microseconds are the base's.",
        "",
    ]
    lines += ["| step | chip | base, us | per_expert | most of it | shared_hidden | most of it |", "|-|-|-|-|-|-|-|"]
    lines += [ratio_row(step, chip, schedules[chip.name]) for step in STEPS for chip in chips]
    lines += ["", "## Kernels", ""]
    lines += [
        "Steps, bundles, slot use, spills and computing are read from schedules; MB and moving are arithmetic.",
        "",
    ]
    head = "kernel | chip | steps | bundles a step | matrix slots used | spills a step | MB"
    head += " | computing, us | moving, us | bound, us"
    for step in SHOWN:
        lines += [f"### {step.name}", "", f"| {head} |", "|" + "-|" * 10]
        lines += [row for chip in chips for row in kernel_rows(step, chip, schedules[chip.name])] + [""]
    return "\n".join(lines)


def main() -> None:
    """Prints the page, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=["v5e", "v5p", "v6e"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tpu-static.md")
    asked = parser.parse_args()
    chips = [CHIPS[name] for name in asked.chips]
    with tempfile.TemporaryDirectory() as folder:
        page = table(chips, {chip.name: compiled(chip, Path(folder)) for chip in chips})
    print(page)
    asked.out.write_text(page.rstrip() + "\n")


if __name__ == "__main__":
    main()
