"""Rewards of completions, evaluated beside the run: by other processes where code of others is called.

No evaluation can end the run, or change another's reward: one that fails is a `RewardError`, counted by its kind.
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pefx.errors import PefxError
from pefx.rl.reward_function import NotANumber, checked
from pefx.rl.sandbox import Fault
from pefx.rl.tasks.protocol import Problem, Task, Turn

# What a worker may take beyond the time of an evaluation: to start, and to import a reward function's module.
GRACE_SECONDS = 30.0
END_SECONDS = 2.0  # ... and to end
ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class RewardError:
    """Why an evaluation has no reward."""

    kind: Fault
    message: str


Outcome = Turn | RewardError


class Lost(Exception):
    """A worker that ended without an answer."""


class Worker:
    """One `pefx.rl.reward_worker`, started when it is needed and replaced when it is lost.

    When `stop`, the reading end of a pipe, is closed at its other end, waiting for an answer ends.
    """

    def __init__(self, stop: int | None = None) -> None:
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, job: Mapping[str, Any], seconds: float) -> dict[str, Any] | RewardError:
        """The answer to a job, as `reward_worker` says it; one that takes more than `seconds` and a grace ends it.

        A job whose worker is lost is tried once more: that may have been the doing of something else.
        """
        line = json.dumps(job, allow_nan=False).encode() + b"\n"
        for _ in range(2):
            process = self._process if self._process is not None and self._process.poll() is None else self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                return json.loads(self._line(process, time.monotonic() + seconds + GRACE_SECONDS))
            except TimeoutError:
                self.close()
                return RewardError("timeout", f"the worker said nothing for {seconds + GRACE_SECONDS:g} s")
            except (BrokenPipeError, Lost):
                self.close()
        return RewardError("died", "the worker was lost, twice")

    def close(self) -> None:
        """Ends the process, and with it all that it evaluates."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # what was not written is lost
            process.stdin.close()  # the end of its jobs: it ends what it evaluates, then itself
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.close()
        paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        # The order of sets is the same in every worker; a library's threads would not survive the forks.
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pefx.rl.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # a Ctrl-C is not for it
        )
        return self._process

    def _line(self, process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if self._stop is not None:
            poll.register(self._stop, 0)  # hang-ups only
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            events = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not events:
                raise TimeoutError
            if self._stop in events:
                raise InterruptedError("closed")
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                raise Lost
            line += chunk
        return line


def check_reward(name: str, seconds: float) -> None:
    """Raises PefxError if "module:function" cannot be a reward function; it is imported in a process of its own."""
    worker = Worker()
    try:
        found = worker.ask({"reward": name}, seconds)
    finally:
        worker.close()
    if isinstance(found, RewardError):
        raise PefxError(f"task.reward: importing the module of {name!r} went wrong: {found.kind}, {found.message}")
    if "problem" in found:
        raise PefxError(found["problem"])


@dataclass(frozen=True)
class Job:
    """One evaluation that a worker is to make."""

    key: Hashable
    task: Task
    problem: Problem
    texts: tuple[str, ...]


class Rewards:
    """A pool of `workers` processes, a context manager. Those of trusted tasks are evaluated at once, in this process.

    Tasks take turns, so one that always runs into its time-out does not keep the others from theirs. `counts` are the
    collected errors by kind.
    """

    def __init__(self, workers: int = 2):
        self.counts: Counter[str] = Counter()
        self._workers = workers
        self._outstanding = 0
        self._waiting: dict[Task, deque[Job]] = {}  # by task, in the order of turns
        self._changed = threading.Condition()
        self._closed = False
        self._outcomes: queue.SimpleQueue[tuple[Hashable, Outcome]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stop, self._running = os.pipe()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; evaluations that are not done are dropped."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        os.close(self._running)
        for thread in self._threads:
            thread.join()
        os.close(self._stop)

    def submit(self, key: Hashable, task: Task, problem: Problem, texts: Sequence[str]) -> None:
        """Has `task.step(problem, texts)` evaluated; `collect` gives the outcome with `key`."""
        self._outstanding += 1
        job = Job(key, task, problem, tuple(texts))
        if task.trusted:
            self._outcomes.put((key, here(job)))
            return
        with self._changed:
            self._waiting.setdefault(task, deque()).append(job)
            self._changed.notify()
        if len(self._threads) < self._workers:
            thread = threading.Thread(target=self._work, name="rewards", daemon=True)
            self._threads.append(thread)
            thread.start()

    def collect(self, wait: bool) -> list[tuple[Hashable, Outcome]]:
        """What is done since it was last asked, in no order; with `wait` at least one, if any is outstanding."""
        found: list[tuple[Hashable, Outcome]] = []
        with contextlib.suppress(queue.Empty):
            while self._outstanding:
                found.append(self._outcomes.get(block=wait and not found))
                self._outstanding -= 1
        self.counts.update(outcome.kind for _, outcome in found if isinstance(outcome, RewardError))
        return found

    def _work(self) -> None:
        worker = Worker(self._stop)
        try:
            while (job := self._next()) is not None:
                self._outcomes.put((job.key, away(worker, job)))
        finally:
            worker.close()

    def _next(self) -> Job | None:
        """The next job of the task whose turn it is; None when all is over."""
        with self._changed:
            while not (self._waiting or self._closed):
                self._changed.wait()
            if self._closed:
                return None
            task, jobs = next(iter(self._waiting.items()))
            del self._waiting[task]
            job = jobs.popleft()
            if jobs:
                self._waiting[task] = jobs
            return job


def here(job: Job) -> Outcome:
    """The outcome of a trusted task's job, in this process."""
    try:
        return checked(job.task.step(job.problem, job.texts))
    except NotANumber as error:
        return RewardError("not_a_number", str(error))
    except Exception as error:  # noqa: BLE001 - one reward never ends the run
        return RewardError("raised", f"{type(error).__name__}: {error}")


def away(worker: Worker, job: Job) -> Outcome:
    """The outcome of a job, from a worker."""
    config = job.task.config
    fields = {"prompt": job.problem.prompt, "data": dict(job.problem.data), "texts": job.texts}
    try:
        answer = worker.ask({"task": asdict(config), **fields}, config.timeout)
        if isinstance(answer, RewardError):
            return answer
        if "fault" in answer:
            return RewardError(answer["fault"], answer["message"])
        return checked(Turn(**answer["turn"]))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with one is told, and the others go on
        worker.close()
        return RewardError("died", f"{type(error).__name__}: {error}")
