"""Stand-ins for tests of loads: an executor that runs a load when told to, and a store that names what it gives."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from pefx.errors import PefxError
from pefx.store.host_cache import HostCache
from pefx.store.loads import Loads

SIZE = 8  # bytes of one value


class ByHand(Executor):
    """Runs what was submitted when `run` says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append((fn, args))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...

    def under_way(self) -> list[str]:
        """What is being loaded, in order of start."""
        return [str(args[0]) for _, args in self.jobs]

    def run(self, index: int = 0) -> None:
        call, args = self.jobs.pop(index)
        call(*args)


class Store:
    """Gives weights that name their key; counts what was read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.broken: set[str] = set()
        self.sizes: dict[str, int] = {}

    def load(self, key: Any) -> dict[str, Any]:
        name = str(getattr(key, "key", key))
        self.read.append(name)
        if name in self.broken:
            raise PefxError(f"{name} is damaged", "damaged")
        return {"key": {name: np.zeros(self.sizes.get(name, SIZE), np.uint8)}}


def name_in(weights: Any) -> str:
    """The key whose weights these are."""
    (name,) = weights["key"]
    return name


def by_hand(
    store: Store, *, room: int = 4, workers: int = 1, queue: int = 2
) -> tuple[Loads[str, dict[str, Any]], ByHand]:
    """Loads with memory for `room` values, and the executor that runs them."""
    executor = ByHand()
    return Loads(store.load, HostCache(room * SIZE), workers, queue, executor), executor
