"""How much memory a conversion takes, and whether one that is killed ends the same.

Writes a random checkpoint of several files, converts it in a process of its own, converts it again in processes that
are killed at some instants, and loads it in both forms. Peaks are VmHWM above what the process had when its modules
were imported. Linux only; needs 3.5 times the disk.

    python studies/conversion_memory.py [--gigabytes 3]
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pefx.config import ModelConfig
from pefx.conversion import JOURNAL, convert
from pefx.converted import RECORD
from pefx.huggingface import config_json, parameters, sources
from pefx.loading import load_base
from pefx.model import abstract_base
from pefx.safetensors_files import INDEX

ROOT = Path(__file__).resolve().parent.parent
FILE_BYTES = 1 << 29
KILLS = (0.1, 0.3, 0.5, 0.7, 0.9)


def shape_of(gigabytes: float) -> ModelConfig:
    """A mixture of experts of about that size in bfloat16."""

    def config(layers: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=65536,
            hidden=1024,
            layers=layers,
            heads=16,
            kv_heads=4,
            head_size=64,
            dense_hidden=4096,
            expert_hidden=768,
            experts=32,
            dense_layers=(0,),
            tied_embedding=False,
            precision="bfloat16",
        )

    return next(c for c in map(config, range(2, 2000)) if size_of(c) >= gigabytes * 1e9)


def size_of(config: ModelConfig) -> int:
    return sum(v.size * np.dtype(v.dtype).itemsize for v in parameters(abstract_base(config)).values())


def write_checkpoint(directory: Path, config: ModelConfig) -> None:
    """Random finite bfloat16 numbers in files of about `FILE_BYTES`, with an index."""
    base = abstract_base(config)
    shapes = parameters(base)
    tensors: dict[str, tuple[int, ...]] = {}
    for path, source in sources(base).items():
        shape = shapes[path].shape[source.names.ndim :]
        tensors |= dict.fromkeys(map(str, source.names.flat), shape[::-1] if source.transposed else shape)
    files: list[list[str]] = [[]]
    held = 0
    for name in sorted(tensors):
        if held > FILE_BYTES:
            files.append([])
            held = 0
        files[-1].append(name)
        held += 2 * int(np.prod(tensors[name]))
    rng, placed = np.random.default_rng(0), {}
    for number, names in enumerate(files, 1):
        file = directory / f"model-{number:05}-of-{len(files):05}.safetensors"
        header, offset = {}, 0
        for name in names:
            end = offset + 2 * int(np.prod(tensors[name]))
            header[name] = {"dtype": "BF16", "shape": tensors[name], "data_offsets": [offset, end]}
            offset, placed[name] = end, file.name
        text = json.dumps(header).encode()
        with open(file, "wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                # Without the exponent's highest bit a number is finite.
                opened.write((rng.integers(0, 1 << 16, tensors[name], np.uint16) & np.uint16(0xBFFF)).tobytes())
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (directory / "config.json").write_text(json.dumps(config_json(config, "bfloat16")))


def peak() -> int:
    """The most this process has had in memory, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def child(work: str, *paths: str) -> None:
    """One measured piece of work; prints a line of JSON."""
    own, begun = peak(), time.perf_counter()
    if work == "convert":
        digest, result = convert(paths[0], paths[1]), 0
    else:
        base, digest = load_base(paths[0])
        result = sum(v[...].nbytes for v in parameters(base).values())
    told = {"digest": digest, "own": own, "above": peak() - own - result, "seconds": time.perf_counter() - begun}
    print(json.dumps(told), flush=True)


def started(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "studies.conversion_memory", "--child", *map(str, words)]
    # As it is run from a shell: without what the Makefile says about malloc, which would keep freed memory.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return subprocess.Popen(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, text=True)


def finished(*words: object) -> dict[str, float | str]:
    process = started(*words)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def killed(source: Path, target: Path, seconds: float) -> int | None:
    """Kill a conversion `seconds` after its first chunk; the chunks it has written, or None if it was done before."""
    process, journal = started("convert", source, target), target.with_name(target.name + ".partial") / JOURNAL
    before = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > before):
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        return None
    assert not target.exists(), "a killed conversion can be seen"
    return len(journal.read_bytes().splitlines()) - 1


def measure(directory: Path, gigabytes: float) -> None:
    config = shape_of(gigabytes)
    source, straight, broken = (directory / name for name in ("source", "straight", "broken"))
    source.mkdir()
    write_checkpoint(source, config)
    print(f"checkpoint: {size_of(config) / 1e9:.2f} GB, {len(list(source.glob('*.safetensors')))} files", flush=True)
    largest = max(v.size * np.dtype(v.dtype).itemsize for v in parameters(abstract_base(config)).values())
    print(f"its largest parameter: {largest / 1e9:.2f} GB", flush=True)
    whole = finished("convert", source, straight)
    show("convert", whole)
    for part in KILLS:
        written = killed(source, broken, part * float(whole["seconds"]) / len(KILLS))
        print(f"killed: {'it was done before' if written is None else f'{written} chunks written'}", flush=True)
    again = finished("convert", source, broken)
    show("convert, the rest", again)
    records = {hashlib.sha256((path / RECORD).read_bytes()).hexdigest() for path in (straight, broken)}
    told = [finished("load", path) for path in (source, straight, broken)]
    for name, line in zip(("load, Hugging Face", "load, converted", "load, converted after kills"), told):
        show(name, line)
    digests = {line["digest"] for line in (whole, again, *told)}
    print(f"one digest: {len(digests) == 1}; the same chunks: {len(records) == 1}")


def show(name: str, line: dict[str, float | str]) -> None:
    own, above = float(line["own"]) / 1e9, float(line["above"]) / 1e9
    print(f"{name}: {float(line['seconds']):.1f} s, peak {above:.2f} GB above its own {own:.2f} GB and the result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--child", nargs="+")
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    directory = Path(tempfile.mkdtemp(prefix="pefx-conversion-"))
    try:
        needed = 3.5 * arguments.gigabytes * 1e9
        if shutil.disk_usage(directory).free < needed:
            raise SystemExit(f"{directory}: needs {needed / 1e9:.0f} GB of free disk")
        measure(directory, arguments.gigabytes)
    finally:
        shutil.rmtree(directory)
    return None


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
