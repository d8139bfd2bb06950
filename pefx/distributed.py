"""Several processes as one job: each has devices of its own, all run the same host logic on the same plans.

What they must agree on beside the devices' arrays goes through the coordinator, process 0, which also writes all files.
A job is asked for by environment variables, so that one command is the same on every machine:

    PEFX_COORDINATOR=host:port PEFX_PROCESSES=n PEFX_PROCESS=i   on any machines
    PEFX_DISTRIBUTED=auto                                        where jax finds these out, as on Cloud TPU and GKE
"""

import itertools
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental.multihost_utils import broadcast_one_to_all, reached_preemption_sync_point

from pefx.errors import PefxError

VARIABLES = ("PEFX_COORDINATOR", "PEFX_PROCESSES", "PEFX_PROCESS")
AUTO = "PEFX_DISTRIBUTED"
PEER_LOST = 3  # exit code where another process of the job is gone
HEARTBEAT_SECONDS = 30  # a process that is silent for so long is dead
SHUTDOWN_SECONDS = 20
WAIT_SECONDS = 1800  # for a process that is alive: it may write a large file, or compile
# Waits beside the process: how it ends, a fatal error in native code too, the shell tells a person what to do.
WATCH = 'read -r word || printf "%s\\n" "$0" >&2'

_turn = itertools.count()


@dataclass(frozen=True)
class Place:
    """Where this process stands in a job that is described by hand."""

    coordinator: str
    processes: int
    process: int


def place_of(environment: Mapping[str, str]) -> Place | str | None:
    """What the environment asks for: a place, "auto", or None for a process on its own. Raises PefxError."""
    auto, given = environment.get(AUTO, ""), [name for name in VARIABLES if environment.get(name)]
    if auto not in ("", "auto"):
        raise PefxError(f"environment variable {AUTO} is {auto!r}; it may be 'auto'")
    if auto and given:
        raise PefxError(f"environment variables {AUTO} and {given[0]} are both set; set one of them")
    if auto or not given:
        return auto or None
    if missing := [name for name in VARIABLES if name not in given]:
        raise PefxError(f"environment variable {given[0]} is set, {missing[0]} is not; a job needs both")
    numbers = []
    for name in VARIABLES[1:]:
        if not environment[name].isdecimal():
            raise PefxError(f"environment variable {name} is {environment[name]!r}, not a number")
        numbers.append(int(environment[name]))
    place = Place(environment[VARIABLES[0]], *numbers)
    if not place.process < place.processes:
        raise PefxError(
            f"environment variable PEFX_PROCESS is {place.process}; of {place.processes} processes it is 0 to "
            f"{place.processes - 1}"
        )
    if not place.coordinator.rpartition(":")[2].isdecimal():
        raise PefxError(f"environment variable PEFX_COORDINATOR is {place.coordinator!r}, not host:port")
    return place if place.processes > 1 else None


def start(place: Place | str) -> None:
    """Join the job, before jax has looked for devices. Waits for the other processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    hand: dict[str, Any] = {}
    if isinstance(place, Place):
        hand = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **hand
    )


@contextmanager
def job() -> Iterator[None]:
    """Within it this process is part of the job that the environment asks for; without one, nothing is done.

    Where another process is lost, this one says so and exits with code 3, without waiting for anything.
    """
    place = place_of(os.environ)
    if place is None:
        yield
        return
    named = f"process {place.process} of {place.processes}" if isinstance(place, Place) else "this process of the job"
    advice = "start the same command on all processes again: it goes on from what was saved last"
    watch = subprocess.Popen(
        ["/bin/sh", "-c", WATCH, f"pefx: {named} was ended in mid-run, or lost the others; {advice}"],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is not for it
    )
    try:
        start(place)
        yield
        barrier("end")
        jax.distributed.shutdown()
        watch.communicate(b"over\n")
    except PefxError:
        watch.communicate(b"over\n")
        raise
    except jax.errors.JaxRuntimeError as error:
        traceback.print_exc()
        why = (str(error).splitlines() or [type(error).__name__])[0]
        told = f"pefx: {named} cannot go on, another process is lost or a device failed ({why})"
        print(f"{told}; {advice}", file=sys.stderr)
        watch.communicate(b"over\n")
        # No clean end: it would wait for the lost process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(PEER_LOST)


def several() -> bool:
    """Whether this process is one of several."""
    return global_state.client is not None and (global_state.num_processes or 1) > 1


def owner() -> bool:
    """Whether this process writes files: one of a job does."""
    return not several() or global_state.process_id == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if several():
        _client().wait_at_barrier(f"pefx/{next(_turn)}/{name}", WAIT_SECONDS * 1000)


def agree(text: str) -> str:
    """What the owner says, on every process. All must ask, in the same order."""
    if not several():
        return text
    key = f"pefx/{next(_turn)}/agree"
    if owner():
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, WAIT_SECONDS * 1000)


def from_owner(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The owner's arrays, on every process; others give some of the same shapes and types. All must ask."""
    if not several():
        return arrays
    return tuple(np.asarray(x) for x in broadcast_one_to_all(arrays, is_source=owner()))


def _client() -> Any:
    return global_state.client


class Preemption:
    """SIGTERM to any process as a question all ask between steps, answered with yes at the same step.

    It has the form of `pefx.training.interrupt.Interrupt`. While entered, Ctrl-C is taken for a SIGTERM, a second one
    stops at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked = False

    def __enter__(self) -> "Preemption":
        # jax has a handler of its own for SIGTERM, which one of Python's would replace.
        self._before = signal.signal(signal.SIGINT, self._pass_on)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def by(self, step: int) -> bool:
        """Whether to stop before `step`, a number that grows from call to call, on all processes alike."""
        if self.signal is None and reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal.value

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        os.kill(os.getpid(), signal.SIGTERM)
