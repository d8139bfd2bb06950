"""Whose work each operation of a compiled step is, by the source lines that XLA keeps of it."""

import re

# A step's parts; an operation belongs to the first whose places are all among its callers. Forward and backward passes
# of an operation with a gradient of its own keep only its caller's line.
PARTS = (
    ("attention over pages", ("kernels/paged_attention/",)),
    ("grouping of rows by expert and adapter", ("kernels/windows.py",)),
    ("grouping of rows by expert and adapter", ("kernels/tiles.py", "pefx/layers/moe.py")),
    ("adapters of experts", ("kernels/lora_matmul/", "pefx/layers/moe.py")),
    ("router", ("pefx/layers/linear.py", "pefx/layers/moe.py")),
    ("experts", ("pefx/layers/moe.py",)),
    ("adapters of attention, dense layers, unembedding", ("kernels/lora_matmul/",)),
    ("matrices of attention", ("pefx/layers/linear.py", "pefx/layers/attention.py")),
    ("matrices of dense layers", ("pefx/layers/mlp.py",)),
    ("unembedding", ("pefx/layers/linear.py",)),
    ("sampling", ("pefx/sampling.py",)),
    ("loss", ("pefx/losses/",)),
    ("optimizer", ("pefx/optim.py",)),
    ("bank", ("pefx/adapters/",)),
    ("norms, rotary embedding, residuals", ("pefx/layers/",)),
    ("norms, rotary embedding, residuals", ("pefx/model.py",)),
)
OTHER = "other"
# Their events hold those of what they call.
HOLDERS = {"while", "call", "conditional"}


def parts_of(program: str) -> dict[str, str]:
    """The part of each operation of an optimized program's text, by the operation's name; holders are left out."""
    files = _table(program, "FileNames", r'(\d+) "(.*)"')
    locations = _table(program, "FileLocations", r"(\d+) \{file_name_id=(\d+)")
    # A frame's parent is printed as one more than its number.
    frames = {
        int(number): (int(place), int(parent or 1) - 1)
        for number, place, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", program, re.MULTILINE
        )
    }
    memory: dict[int, str] = {}

    def part(frame: int) -> str:
        if frame not in memory:
            callers, at = [], frame
            while at in frames:
                place, above = frames[at]
                callers.append(files.get(int(locations.get(place, "0")), ""))
                at = above
            memory[frame] = _first_part(callers)
        return memory[frame]

    found = {}
    for line in program.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%([\w.\-]+) = .*? ([\w\-]+)\(", line):
            name, kind = match.groups()
            if kind not in HOLDERS:
                frame = re.search(r"stack_frame_id=(\d+)", line)
                found[name] = part(int(frame.group(1))) if frame else OTHER
    return found


def _table(program: str, title: str, row: str) -> dict[int, str]:
    """A numbered table at the head of the program."""
    found = re.search(rf"^{title}\n((?:.+\n)*)", program, re.MULTILINE)
    return {int(number): value for number, value in re.findall(row, found.group(1))} if found else {}


def _first_part(callers: list[str]) -> str:
    for part, places in PARTS:
        if all(any(place in caller for caller in callers) for place in places):
            return part
    return OTHER
