"""Generated programs: what they print, and each way in which they are ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pefx.rl.sandbox import OUTPUT_BYTES, Ran, Watched, end_group, run_python, watch

TOO_MUCH = f"more than {OUTPUT_BYTES} bytes of output"


def test_a_program_reads_and_prints():
    assert run_python("print(input() * 2)", "ab\n", 5.0, 64) == Ran("abab\n")
    assert run_python("import sys; sys.exit(0)", "", 5.0, 64) == Ran("")
    assert run_python("print('é', end='')", "", 5.0, 64) == Ran("é")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("while True: pass", "timeout", "still running after 0.4 s"),
        ("import time\ntime.sleep(60)", "timeout", "still running after 0.4 s"),
        ("1/0", "raised", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('no')", "raised", "exit code 1"),
        ("def f(): f()\nf()", "raised", "RecursionError: maximum recursion depth exceeded"),
        ("x = ", "raised", "SyntaxError: invalid syntax (generated, line 1)"),
        ("import numpy", "raised", "ModuleNotFoundError: No module named 'numpy'"),
        ("import pefx", "raised", "ModuleNotFoundError: No module named 'pefx'"),
        ("import os; os.fork()", "raised", "PermissionError: generated code may not do os.fork"),
        ("open('/tmp/pefx-never', 'w')", "raised", "PermissionError: generated code may not write to /tmp/pefx-never"),
        ("open('big', 'wb').write(bytes(1 << 22))", "raised", "OSError: [Errno 27] File too large"),
        ("import os; os._exit(3)", "died", "exit code 3"),
        ("import os; os.abort()", "died", "signal 6"),
        ("x = 'a'\nwhile True: x += x", "too_much_memory", "MemoryError"),
        ("while True: print('y' * 1000)", "too_much_output", TOO_MUCH),
        (
            "import sys\nwhile True: sys.stderr.write('y' * 1000)",
            "too_much_output",
            "more than 1048576 bytes of output",
        ),
    ],
)
def test_a_program_that_fails_says_why(code, kind, message):
    began = time.monotonic()
    ran = run_python(code, "", 0.4 if kind == "timeout" else 10.0, 64)
    assert (ran.kind, ran.message) == (kind, message)
    assert len(ran.output) <= OUTPUT_BYTES
    assert time.monotonic() - began < 8


def test_it_starts_in_an_empty_folder_that_is_gone_afterwards_and_sees_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    code = "import os, sys; print(os.getcwd(), os.listdir(), 'SECRET' in os.environ, len(sys.argv[0]) > 0)"
    folder, *rest = run_python("open('left', 'w')\n" + code, "", 5.0, 64).output.split()
    assert rest == ["['left']", "False", "True"]
    assert run_python(code, "", 5.0, 64).output.split()[1] == "[]"
    assert not Path(folder).exists()


def test_sets_have_the_same_order_every_time():
    outputs = {run_python("print({'ann', 'bob', 'cal', 'dan', 'eve'})", "", 5.0, 64).output for _ in range(3)}
    assert len(outputs) == 1


def started(code: str, pipe: int) -> subprocess.Popen[bytes]:
    """A process that leads a group; `pipe` is what it may write to."""
    words = [sys.executable, "-S", "-c", "import os, time\n" + code.format(pipe=pipe)]
    return subprocess.Popen(words, pass_fds=(pipe,), start_new_session=True)


def test_what_a_process_wrote_is_read_even_if_another_holds_its_pipe():
    reading, writing = os.pipe()
    with started("os.write({pipe}, b'said')\nif os.fork() == 0: time.sleep(60)", writing) as process:
        began = time.monotonic()
        assert watch(process.pid, (reading,), 20.0) == Watched((b"said",))
        assert time.monotonic() - began < 10
        end_group(process.pid)
    os.close(writing)
    os.set_blocking(reading, True)
    assert os.read(reading, 1) == b""  # nobody holds it any more
    os.close(reading)


def test_nobody_waits_any_more():
    reading, writing = os.pipe()
    with started("time.sleep(60)", writing) as process:
        waiting, waiter = os.pipe()
        os.close(waiter)
        assert watch(process.pid, (reading,), 20.0, waiting).abandoned
        end_group(process.pid)
        assert process.wait() == -signal.SIGKILL
    end_group(process.pid)  # one that is gone is no error
    for descriptor in (reading, writing, waiting):
        os.close(descriptor)
