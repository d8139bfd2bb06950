"""What goes wrong around a server, one function each: they return what they saw, and raise where it must not be."""

import asyncio
import json
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.population.people import BASE, SPEC
from benchmarks.served.engines import commit_adapters, name_of
from pefx.store.catalog import Catalog
from pefx.store.keyspace import Write
from studies.http.client import COMPLETIONS, Told
from studies.http.fuzz import bodies, framings
from studies.http.server import Server
from studies.http.world import Question

HELD = ("pefx_answers_in_flight", "pefx_sequences_running", "pefx_sequences_waiting", "pefx_kv_pages_used")
WIDTH = 16  # connections of the fuzzer


async def until(condition: Callable[[dict[str, float]], bool], server: Server, seconds: float) -> float:
    """Seconds until the metrics are as they should be. Raises TimeoutError where they never are."""
    begun = asyncio.get_running_loop().time()
    async with asyncio.timeout(seconds):
        while not condition(await server.metrics()):
            await asyncio.sleep(0.05)
    return asyncio.get_running_loop().time() - begun


def request(body: dict[str, Any]) -> bytes:
    """A completion as bytes on a connection."""
    text = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(text)}\r\n\r\n".encode() + text


async def clients_gone(server: Server, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Clients of long streams go after the first events, some with and some without a farewell."""

    async def one(body: dict[str, Any], abrupt: bool) -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(request({**body, "stream": True, "max_tokens": 400}))
        await reader.readuntil(b"data: ")
        if abrupt:
            writer.transport.abort()
        writer.close()

    await asyncio.gather(*(one(body, turn % 2 == 0) for turn, body in enumerate(asked)))
    freed = await until(lambda seen: all(seen[name] == 0 for name in HELD), server, 20)
    return {"clients": len(asked), "freed_seconds": round(freed, 2)}


async def slow_client(server: Server, body: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One client sends half a head, another asks for a long stream and does not read; meanwhile others are answered."""
    _, half = await asyncio.open_connection(server.host, server.port)
    half.write(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    plain = socket.create_connection((server.host, server.port))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.sendall(request({**body, "stream": True, "max_tokens": 900, "logprobs": 20}))
    others = []
    for _ in range(max(int(seconds), 1)):
        told = await one_answer(server, body)
        others.append(told.error or told.status)
        await asyncio.sleep(1)
    half.close()
    plain.close()
    await until(lambda seen: all(seen[name] == 0 for name in HELD), server, 60)
    if set(others) != {200}:
        raise RuntimeError(f"beside a slow client others got {Counter(others)}")
    return {"answers_beside": len(others)}


async def one_answer(server: Server, body: dict[str, Any]) -> Told:
    connection = server.connection(60)
    try:
        return await connection.complete(body)
    finally:
        connection.close()


async def fuzzed(server: Server, valid: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """Malformed bodies, then malformed framing: refusals that say so, never a fault, never silence."""
    seen: Counter[int] = Counter()
    made = bodies({**valid, "max_tokens": 1, "stream": False}, count, seed)

    async def one() -> None:
        connection = server.connection(60)
        for body in made:
            reply = await connection.post(COMPLETIONS, body)
            seen[reply.status] += 1
            if reply.status >= 500 or (reply.status >= 400 and "error" not in reply.json()):
                raise RuntimeError(f"body {body[:200]!r} was answered with {reply.status} {reply.body[:200]!r}")
        connection.close()

    await asyncio.gather(*(one() for _ in range(WIDTH)))
    framed: Counter[str] = Counter()
    for data in framings(COMPLETIONS):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(data)
        try:
            async with asyncio.timeout(2):
                first = (await reader.readline()).decode("latin-1").split()
            framed[first[1] if len(first) > 1 else "closed"] += 1
        except TimeoutError:
            framed["waits for more"] += 1
        except ConnectionError:
            framed["closed"] += 1
        writer.close()
    if any(status.startswith("5") for status in framed):
        raise RuntimeError(f"malformed framing was answered with {framed}")
    return {"bodies": dict(sorted(seen.items())), "framings": dict(framed)}


async def catalog_gone(
    server: Server, catalog: Path, known: Callable[[], Any], unknown: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The catalog's folder has another name for a while. Who is `known` is answered; who is not gets a 503."""
    away = catalog.with_name(catalog.name + "-away")
    catalog.rename(away)
    rounds, refused, end = 0, Counter(), asyncio.get_running_loop().time() + seconds
    try:
        while asyncio.get_running_loop().time() < end:
            await known()
            told = await one_answer(server, unknown)
            refused[f"{told.status} {told.error}"] += 1
            rounds += 1
            await asyncio.sleep(0.5)
    finally:
        if catalog.exists():  # something was written where nothing is
            shutil.rmtree(catalog)
        away.rename(catalog)
    if any(not name.startswith("503 ") for name in refused):
        raise RuntimeError(f"without a catalog, unknown policies got {refused}")
    back = 0.0
    while (told := await one_answer(server, unknown)).status != 200:
        await asyncio.sleep(0.2)
        back += 0.2
        if back > 30:
            raise RuntimeError(f"30 s after the catalog came back: {told.status} {told.error}")
    return {"rounds": rounds, "refused": dict(refused), "back_seconds": round(back, 1)}


async def corrupt_revision(server: Server, catalog: Path, index: int, question: Question, base: str) -> dict[str, Any]:
    """A new revision has a flipped bit in its weights: an error for who asks for it, by name or by number."""
    await asyncio.to_thread(_commit_corrupt, catalog, index)
    seen = Counter()
    for model in (name_of(index), f"{name_of(index)}@1") * 2:
        told = await one_answer(server, {**question.body(base), "model": model})
        seen[f"{told.status} {told.error}"] += 1
        if told.status < 400 and told.error is None:
            raise RuntimeError(f"damaged weights of {model} answered {told.tokens[:8]}...")
    return {"answered": dict(seen)}


def _commit_corrupt(place: Path, index: int) -> None:
    commit_adapters(place, BASE, SPEC, [index])
    catalog = Catalog.open(place)
    revision = catalog.get(name_of(index), 1)
    blob = catalog.space.read(revision.blob).value
    assert blob is not None
    changed = bytearray(blob)
    changed[len(changed) // 2] ^= 1
    catalog.space.transact([Write(revision.blob, bytes(changed))])
