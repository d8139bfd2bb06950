"""A process that evaluates rewards, one at a time, each in a fork of its own: `python -m pefx.rl.reward_worker`.

It reads a job a line from standard input and writes an answer a line to standard output; both are JSON:

    {"task": fields of a TaskConfig, "prompt", "data", "texts"}  ->  {"turn": {...}} or {"fault": kind, "message": why}
    {"reward": "module:function"}                                ->  {} or {"problem": why}

A fork dies with everything that it started, and what it did to its memory is gone with it: no evaluation changes
another. Imports numpy or jax only if a reward function does. Linux only.
"""

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pefx.config import TaskConfig
from pefx.errors import PefxError
from pefx.rl.reward_function import NotANumber, RewardFunction, checked
from pefx.rl.sandbox import OUTPUT_BYTES, end_group, told, watch
from pefx.rl.sandboxed import lift_memory_limit, set_limits
from pefx.rl.tasks.builtin import TASKS
from pefx.rl.tasks.generated import Generated
from pefx.rl.tasks.protocol import Judge, Problem

FILE_MEGABYTES = 64
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
MESSAGE = 500  # characters

Answer = dict[str, Any]


def judge_of(config: TaskConfig) -> Judge:
    """What rewards the completions of a task; raises PefxError if its reward function cannot be used."""
    if config.name in TASKS:
        return Generated(config, TASKS[config.name])
    return RewardFunction(config.reward or "")


def config_of(fields: Mapping[str, Any]) -> TaskConfig:
    """A TaskConfig from its JSON."""
    options = tuple((name, value) for name, value in fields["options"])
    return TaskConfig(**{**fields, "options": options})


def fault(kind: str, message: str) -> Answer:
    return {"fault": kind, "message": " ".join(message.split())[:MESSAGE]}


def serve(job: Mapping[str, Any], judges: dict[str, Judge], pipes: tuple[int, int]) -> Answer:
    """The answer to one job. `judges` are those made before; `pipes` are where jobs come from and answers go to."""
    try:
        if "reward" in job:
            RewardFunction(job["reward"])
            return {}
        name = json.dumps(job["task"])
        if name not in judges:
            judges[name] = judge_of(config_of(job["task"]))
    except PefxError as error:
        return {"problem": str(error)} if "reward" in job else fault("raised", str(error))
    return in_fork(judges[name], job, pipes)


def in_fork(judge: Judge, job: Mapping[str, Any], pipes: tuple[int, int]) -> Answer:
    """Evaluates in a child, under the limits of the task, and ends whatever it leaves."""
    seconds, megabytes = float(job["task"]["timeout"]), int(job["task"]["memory_mb"])
    (result, result_end), (output, output_end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become_child(output_end, (*pipes, result, output))
            set_limits(seconds, megabytes, FILE_MEGABYTES)
            _write(result_end, evaluate(judge, job))
        finally:
            os._exit(0)
    os.close(result_end)
    os.close(output_end)
    try:
        watched = watch(child, (result, output), seconds, waiting=pipes[0])
    finally:
        status = end(child)
        os.close(result)
        os.close(output)
    if watched.abandoned:
        os._exit(1)
    if watched.kind is not None:
        return fault(watched.kind, told(watched.kind, seconds))
    try:
        return json.loads(watched.written[0])
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            return fault("timeout", "out of processor time")
        return fault("died", f"signal {-code}" if code < 0 else f"exit code {code}, and no reward")


def evaluate(judge: Judge, job: Mapping[str, Any]) -> Answer:
    """Runs the judge; whatever it raises is an answer too."""
    try:
        turn = checked(judge.step(Problem(job["prompt"], job["data"]), job["texts"]))
        answer = {"turn": asdict(turn)}
    except MemoryError:
        lift_memory_limit()
        return fault("too_much_memory", f"more than {job['task']['memory_mb']} MiB")
    except NotANumber as error:
        return fault("not_a_number", str(error))
    except BaseException as error:  # noqa: BLE001 - a stranger's code may raise anything
        lift_memory_limit()
        return fault("raised", f"{type(error).__name__}: {error}{_place(error)}")
    if len(turn.observation) > OUTPUT_BYTES // 8:
        return fault("too_much_output", "the observation is too long")
    return answer


def _place(error: BaseException) -> str:
    """Where an error comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace is not None else ""


def _become_child(output: int, foreign: tuple[int, ...]) -> None:
    """A session of its own, output into `output`, no input, none of the descriptors of the worker."""
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for descriptor in foreign:
        os.close(descriptor)


def end(child: int) -> int:
    """Kills a child, its group, and those that have left it, for orphans come to this process; returns its status."""
    end_group(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for orphan in children():
                    end_group(orphan)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(orphan, signal.SIGKILL)
                os.waitpid(-1, 0)
    return status


def children() -> list[int]:
    """The processes whose parent is this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def _prctl(what: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(what, value, 0, 0, 0)


def _write(descriptor: int, answer: Answer) -> None:
    line = json.dumps(answer).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


def main() -> None:
    """Answers jobs until standard input ends."""
    jobs, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    judges: dict[str, Judge] = {}
    with os.fdopen(jobs, "rb", closefd=False) as reader:
        for line in reader:
            _write(answers, serve(json.loads(line), judges, (jobs, answers)))


if __name__ == "__main__":
    main()
