"""Load on a server: arrivals at a rate or a flood over open connections; every answer is compared with its own."""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from studies.http.client import Connection, Told
from studies.http.server import Server
from studies.http.world import Question


@dataclass
class Tally:
    """What became of requests. Times in seconds.

    `verdicts`: "right", "wrong", "refused" (429), and what else went wrong, each of which is a lost answer. `first` are
    times to first tokens and `each` times between tokens, of right streams; `refusals` until the status of a refusal.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> int:
        return self.verdicts["wrong"]

    @property
    def lost(self) -> int:
        return self.verdicts.total() - sum(self.verdicts[name] for name in ("right", "wrong", "refused"))

    def note(self, told: Told, right: list[int]) -> None:
        """Count one answer; `right` are its tokens."""
        if told.status == 429:
            self.verdicts["refused"] += 1
            self.refusals.append(told.seconds)
        elif told.error is not None or told.status != 200:
            self.verdicts[f"{told.status} {told.error}"] += 1
        elif told.tokens != right:
            self.verdicts["wrong"] += 1
        else:
            self.verdicts["right"] += 1
            if told.token_seconds is not None:
                self.first.append(told.times[0])
                self.each.append(told.token_seconds)


class Crowd:
    """`connections` open connections to a server, and the questions that are asked over them."""

    def __init__(self, server: Server, base: str, right: dict[int, list[int]], connections: int, seed: int = 0):
        self.base, self.right, self._random = base, right, random.Random(seed)
        self.all = [server.connection() for _ in range(connections)]
        self.idle: deque[Connection] = deque(self.all)

    async def open(self) -> None:
        """Open all, some at a time."""
        for start in range(0, len(self.all), 50):
            await asyncio.gather(*(connection.open() for connection in self.all[start : start + 50]))

    def close(self) -> None:
        for connection in self.all:
            connection.close()

    async def ask(self, connection: Connection, question: Question, tally: Tally) -> Told | None:
        """One question; None where no answer came."""
        try:
            told = await connection.complete(question.body(self.base))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            connection.close()
            tally.verdicts[type(error).__name__] += 1
            return None
        tally.note(told, self.right[question.number])
        return told

    async def arrivals(self, asked: Sequence[Question], rate: float, seconds: float) -> Tally:
        """Questions drawn from `asked` arrive at random, `rate` a second, and are not asked again where refused."""
        tally, tasks, begun = Tally(), set(), time.monotonic()
        at = begun
        while (at := at + self._random.expovariate(rate)) < begun + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            if not self.idle:
                tally.verdicts["no connection was idle"] += 1
                continue
            # The longest idle first: all are used, and none is idle for so long that the server closes it.
            task = asyncio.create_task(self._asked(self.idle.popleft(), self._random.choice(asked), tally))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        tally.seconds = time.monotonic() - begun
        return tally

    async def _asked(self, connection: Connection, question: Question, tally: Tally) -> None:
        await self.ask(connection, question, tally)
        self.idle.append(connection)

    async def flood(self, asked: Sequence[Question], width: int, seconds: float) -> Tally:
        """`width` connections ask one question after another for so long; one that was refused waits as it is told."""
        tally, begun = Tally(), time.monotonic()

        async def one(connection: Connection) -> None:
            while time.monotonic() < begun + seconds:
                told = await self.ask(connection, self._random.choice(asked), tally)
                if told is not None and told.status == 429:
                    await asyncio.sleep(max(told.retry_after, 0.1))

        await asyncio.gather(*(one(connection) for connection in self.all[:width]))
        tally.seconds = time.monotonic() - begun
        return tally


async def quiet(server: Server, crowd: Crowd, asked: Sequence[Question], every: float, seconds: float) -> Tally:
    """A tenant that asks something every so often, one at a time, over a connection of its own."""
    tally, connection, begun = Tally(), server.connection(), time.monotonic()
    for turn in range(max(int(seconds / every), 1)):
        await asyncio.sleep(max(0.0, begun + turn * every - time.monotonic()))
        await crowd.ask(connection, asked[turn % len(asked)], tally)
    connection.close()
    tally.seconds = time.monotonic() - begun
    return tally


class Memory:
    """The memory of a server while something runs: seconds and MiB, once a second."""

    def __init__(self, server: Server):
        self.server = server
        self.samples: list[tuple[float, float]] = []
        self._begun = time.monotonic()

    async def __aenter__(self) -> "Memory":
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self.samples.append((time.monotonic() - self._begun, self.server.resident_mb()))
            await asyncio.sleep(1)
