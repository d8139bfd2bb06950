"""Runs in the processes that evaluate: limits of a process, and the program that runs generated code within them.

Standard library only. `pefx.rl.sandbox` starts this file as
`python -P -s -S -B sandboxed.py CODE_FD SECONDS MEGABYTES FOLDER`.
"""

import math
import os
import resource
import sys

OUT_OF_MEMORY = 119  # exit codes
RAISED = 120
MEGABYTE = 1 << 20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events (docs.python.org/3/library/audit_events) that generated code may not cause, but for those that look only.
FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.", "signal.", "fcntl.", "mmap.", "resource.")
ALLOWED = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr", "os.putenv", "os.unsetenv"}


def set_limits(seconds: float, megabytes: int, file_megabytes: int) -> None:
    """Bounds of this process: processor time, memory beyond what it has now, the size of files, no core dumps.

    Memory is a soft limit: what reports that it was reached lifts it again (`lift_memory_limit`).
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: now + megabytes * MEGABYTE,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_FSIZE: file_megabytes * MEGABYTE,
        resource.RLIMIT_CORE: 0,
    }
    for what, limit in limits.items():
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def lift_memory_limit() -> None:
    """As much memory as the hard limit allows."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def keep_to(folder: str) -> None:
    """From here on this interpreter refuses to start processes, to signal, to connect, to change or write files
    elsewhere. It keeps accidents in; it is no wall against whoever knows the interpreter.
    """
    inside = os.path.realpath(folder) + os.sep

    def forbid(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & WRITING
            if not (writes and isinstance(path, str | bytes)) or os.path.realpath(os.fsdecode(path)).startswith(inside):
                return
            raise PermissionError(f"generated code may not write to {os.fsdecode(path)}")
        if event.startswith(FORBIDDEN) and event not in ALLOWED:
            raise PermissionError(f"generated code may not do {event}")

    sys.addaudithook(forbid)


def main(code_fd: int, seconds: float, megabytes: int, folder: str) -> None:
    """Runs the source that `code_fd` holds as a program of its own; the exit code says how it failed."""
    with open(code_fd, encoding="utf-8") as file:
        source = file.read()
    set_limits(seconds, megabytes, file_megabytes=1)
    keep_to(folder)
    try:
        exec(compile(source, "generated", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(RAISED if stop.code else 0)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is told by its name
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        sys.stderr.flush()
        os._exit(RAISED)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
