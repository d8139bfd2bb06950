"""Limits of a process, set in processes of their own."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pefx.rl import sandboxed

ROOT = Path(sandboxed.__file__).parents[2]


def run(code: str) -> str:
    start = "from pefx.rl.sandboxed import *; import resource, signal\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or f"{done.returncode} {done.stderr.strip().splitlines()[-1:]}"


def test_memory_is_bounded_beyond_what_is_there_and_the_bound_is_lifted():
    code = (
        "set_limits(5, 32, 1)\n"
        "for size in (16, 64):\n"
        "    try: bytearray(size << 20); print('got')\n"
        "    except MemoryError: print('refused')\n"
        "lift_memory_limit(); bytearray(64 << 20); print('got')"
    )
    assert run(code).split() == ["got", "refused", "got"]


def test_processor_time_and_files_are_bounded():
    code = (
        "set_limits(1.5, 64, 3)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0],"
        " resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    assert run(code).split() == ["3", str(3 << 20), "0"]


def test_limits_are_never_above_hard_ones():
    code = "resource.setrlimit(resource.RLIMIT_CPU, (2, 2)); set_limits(60, 64, 1); print(resource.getrlimit(0)[0])"
    assert resource.RLIMIT_CPU == 0
    assert run(code) == "2"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("open(folder + '/a', 'w').write('x'); print(open(folder + '/a').read())", "x"),
        ("print(len(open('/etc/passwd').read()) > 0)", "True"),
        ("open(folder + '/../pefx-never', 'w')", "PermissionError"),
        ("os.open('/tmp/pefx-never', os.O_CREAT)", "PermissionError"),
        ("os.system('true')", "PermissionError"),
        ("os.remove(folder + '/a')", "PermissionError"),
        ("os.kill(os.getppid(), 0)", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "PermissionError"),
        ("print(len(os.listdir(folder)) >= 0)", "True"),
    ],
)
def test_an_interpreter_that_keeps_to_a_folder(code, said, tmp_path):
    assert said in run(f"import os; folder = {str(tmp_path)!r}; keep_to(folder)\n{code}")
