"""Processes under watch: how long they may run and how much they may say; and generated Python in such a process."""

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pefx.rl import sandboxed

# Why an evaluation has no result.
Fault = Literal["timeout", "raised", "not_a_number", "died", "too_much_output", "too_much_memory"]
OUTPUT_BYTES = 1 << 20  # of any one pipe


@dataclass(frozen=True)
class Watched:
    """What a process wrote into each pipe, and why it was given up; `kind` None: it came to its end by itself.

    `abandoned`: nobody waits for it any more.
    """

    written: tuple[bytes, ...]
    kind: Fault | None = None
    abandoned: bool = False


@dataclass(frozen=True)
class Ran:
    """What a program printed; `kind` is None when it ended well, else why not, with a `message`."""

    output: str
    kind: Fault | None = None
    message: str = ""


def watch(pid: int, pipes: Sequence[int], seconds: float, waiting: int | None = None) -> Watched:
    """Reads `pipes` until process `pid`, a child of this one, ends, says too much or has run for `seconds`.

    It is not ended here, nor reaped; the pipes no longer block. `waiting` is a pipe whose other end somebody holds who
    waits for the result.
    """
    deadline = time.monotonic() + seconds
    ended = os.pidfd_open(pid)
    poll = select.poll()
    for pipe in (*pipes, ended):
        poll.register(pipe, select.POLLIN)
    if waiting is not None:
        poll.register(waiting, 0)  # asks for hang-ups only
    written = {pipe: bytearray() for pipe in pipes}
    kind: Fault | None = None
    events: dict[int, int] = {}
    try:
        while ended not in events and waiting not in events and kind is None:
            left = deadline - time.monotonic()
            events = dict(poll.poll(math.ceil(left * 1000))) if left > 0 else {}
            for pipe in events.keys() & written.keys():
                if not _read(pipe, written[pipe]):
                    poll.unregister(pipe)
            kind = "timeout" if left <= 0 else _too_much(written)
        if ended in events:
            for pipe, said in written.items():
                os.set_blocking(pipe, False)
                while _read(pipe, said) and not _too_much(written):
                    pass
            kind = _too_much(written)
    finally:
        os.close(ended)
    return Watched(tuple(map(bytes, written.values())), kind, abandoned=waiting is not None and waiting in events)


def _read(pipe: int, said: bytearray) -> bool:
    """Adds what is in a pipe; False where there is no more."""
    try:
        chunk = os.read(pipe, 1 << 16)
    except BlockingIOError:
        return False
    said += chunk
    return bool(chunk)


def _too_much(written: dict[int, bytearray]) -> Fault | None:
    return "too_much_output" if any(len(said) > OUTPUT_BYTES for said in written.values()) else None


def end_group(pid: int) -> None:
    """Kills the process group that `pid` leads, at once: what forks in it cannot get away."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run_python(code: str, stdin: str, seconds: float, megabytes: int) -> Ran:
    """Runs a program in a fresh interpreter: standard library only, an empty folder, bounds of time and memory.

    `seconds` bounds the clock and the processor, `megabytes` what it may allocate. It sees no environment and reads
    `stdin`. It may not start processes, connect, or write files elsewhere; whatever it started ends with it.
    """
    with tempfile.TemporaryDirectory(prefix="pefx-") as folder, _holding(code) as source, _holding(stdin) as given:
        # Isolated as by -I, but for one variable: sets have the same order every time.
        words = [sys.executable, "-P", "-s", "-S", "-B", str(Path(sandboxed.__file__))]
        process = subprocess.Popen(
            [*words, str(source), str(seconds), str(megabytes), folder],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            pass_fds=(source,),
            start_new_session=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                watched = watch(process.pid, (process.stdout.fileno(), process.stderr.fileno()), seconds)
            finally:
                end_group(process.pid)
            code_of_exit = process.wait()
    output, errors = (said[:OUTPUT_BYTES].decode("utf-8", "replace") for said in watched.written)
    if watched.kind is not None:
        return Ran(output, watched.kind, told(watched.kind, seconds))
    return Ran(output, *_why(code_of_exit, errors))


@contextlib.contextmanager
def _holding(text: str) -> Iterator[int]:
    """A descriptor that reads a text."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "replace"))
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()


def told(kind: Fault, seconds: float) -> str:
    """Why a process was stopped."""
    return f"still running after {seconds:g} s" if kind == "timeout" else f"more than {OUTPUT_BYTES} bytes of output"


def _why(code: int, errors: str) -> tuple[Fault | None, str]:
    """What an exit code says."""
    if code == 0:
        return None, ""
    if code == sandboxed.OUT_OF_MEMORY:
        return "too_much_memory", "MemoryError"
    if code == sandboxed.RAISED:
        return "raised", errors or "exit code 1"
    if code == -signal.SIGXCPU:
        return "timeout", "out of processor time"
    return "died", f"signal {-code}" if code < 0 else f"exit code {code}"
