"""The client of the server's studies, against answers that come in every form; fuzzed bodies; what is counted."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from studies.http.client import Connection, Told
from studies.http.fuzz import bodies, framings
from studies.http.load import Tally
from studies.http.picture import Seen, draw
from studies.http.server import SAMPLE
from studies.http.world import questions
from studies.serving_load import numbers

OK = b"HTTP/1.1 200 OK\r\n"
FAILED = b'data: {"error": {"code": "timeout", "type": "x"}}\n\n'
BODY = {"model": "base", "prompt": "a", "stream": True}


def event(tokens: list[int], finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": "", "finish_reason": finish, "token_ids": tokens}
    return b"data: " + json.dumps({"model": "ann@3", "choices": [choice]}).encode() + b"\n\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)


def stream(*parts: bytes) -> bytes:
    """A stream whose chunks are as given, whatever events they cut."""
    return OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(*parts)


def whole(status: int, row: dict[str, Any], *headers: str) -> bytes:
    text = json.dumps(row).encode()
    head = "".join(f"{header}\r\n" for header in (*headers, f"content-length: {len(text)}"))
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + text


def against(replies: list[list[bytes]], ask: Callable[[Connection], Awaitable[Any]]) -> Any:
    """What `ask` returns from a server that gives one connection after another these replies, then closes it."""
    waiting = iter(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in next(waiting):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
            await reader.readexactly(int(length.split(":")[1]))
            writer.write(reply)
            await writer.drain()
        writer.close()

    async def both() -> Any:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            async with await asyncio.start_server(serve, sock=bound):
                connection = Connection("127.0.0.1", bound.getsockname()[1], limit=10)
                try:
                    return await ask(connection)
                finally:
                    connection.close()

    return asyncio.run(both())


def test_a_stream_in_chunks_that_cut_events() -> None:
    text = event([1, 2]) + event([3]) + event([], "length") + b"data: [DONE]\n\n"
    told = against([[stream(text[:10], text[10:70], text[70:], b"")]], lambda c: c.complete(BODY))
    assert (told.status, told.tokens, told.finish_reason, told.model) == (200, [1, 2, 3], "length", "ann@3")
    assert told.error is None
    assert len(told.times) == 3
    assert told.token_seconds >= 0


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (stream(event([1])), "cut"),
        (stream(event([1]), b""), "cut"),
        (stream(event([1]), event([2], "stop"), b""), "cut"),
        (stream(event([1]), FAILED, b"data: [DONE]\n\n", b""), "timeout"),
        (stream(event([1]), b"data: [DONE]\n\n", b""), "cut"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_complete(reply: bytes, error: str) -> None:
    assert against([[reply]], lambda c: c.complete(BODY)).error == error


def test_a_refusal_of_a_stream_has_its_status() -> None:
    refusal = whole(429, {"error": {"code": "busy", "type": "rate_limit_error"}}, "retry-after: 1")
    told = against([[refusal]], lambda c: c.complete(BODY))
    assert (told.status, told.error, told.retry_after) == (429, "busy", 1.0)


def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    answer = {"model": "m", "choices": [{"token_ids": [4], "finish_reason": "stop", "text": ""}]}

    async def twice(connection: Connection) -> list[Told]:
        body = {**BODY, "stream": False}
        first = await connection.complete(body)
        await asyncio.sleep(0.05)
        return [first, await connection.complete(body)]

    first, second = against([[whole(200, answer)], [whole(200, answer)]], twice)
    assert first.tokens == second.tokens == [4]


def test_no_answer_at_all_is_an_error() -> None:
    async def fails(connection: Connection) -> None:
        with pytest.raises(ConnectionError, match="POST /v1/completions"):
            await connection.complete({**BODY, "stream": False})

    against([[b""]], fails)


def test_answers_are_counted_by_what_they_are() -> None:
    tally = Tally()
    tally.note(Told(200, 0.1, tokens=[1, 2], times=[0.1, 0.3]), [1, 2])
    tally.note(Told(200, 0.1, tokens=[1]), [1, 2])
    tally.note(Told(429, 0.2, error="busy"), [1])
    tally.note(Told(200, 0.1, tokens=[1], error="cut"), [1])
    tally.verdicts["ConnectionError"] += 1
    assert (tally.wrong, tally.lost, tally.verdicts["right"], tally.refusals) == (1, 2, 1, [0.2])
    assert tally.each == pytest.approx([0.2])


def test_the_report_and_its_picture(tmp_path) -> None:
    names = ("capacity", "alone", "usual", "among", "flood", "beside", "overload")
    names += ("before", "adding", "after", "first")
    parts = {name: Tally(first=[0.1, 0.2], each=[0.01, 0.02], refusals=[0.001]) for name in names}
    memory = [(float(second), 100 + second / 30) for second in range(60)]
    memory += [(float(second), 150.0) for second in range(60, 70)]  # the rest is answered
    seen = Seen(parts, memory, capacity=10, client=0.1, cold=1, load=59.5)
    assert seen.slope() == pytest.approx(2)
    assert seen.rest() == pytest.approx(50 - 59 / 30)
    bounds = {name: holds for name, _, _, holds in numbers(seen)}
    assert not bounds["memory under load, MiB a minute"]
    assert not bounds["reads for the first requests of those adapters"]
    assert bounds["lost"]
    draw(seen, tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    parts["overload"].verdicts["ConnectionError"] += 1
    assert not {name: holds for name, _, _, holds in numbers(seen)}["lost"]


def test_metrics_are_read_with_their_labels() -> None:
    text = '# HELP a_total x\na_total 3.0\nb{where="cold"} 1e+03\n'
    assert {m["name"] + (m["labels"] or ""): float(m["value"]) for m in SAMPLE.finditer(text)} == {
        "a_total": 3.0,
        'b{where="cold"}': 1000.0,
    }


def test_fuzzed_bodies_repeat_and_differ() -> None:
    made = list(bodies(BODY, 400, seed=1))
    assert made == list(bodies(BODY, 400, seed=1))
    assert len(set(made)) > 250
    assert all(isinstance(body, bytes) for body in made)
    assert all(b"\r\n" in data for data in framings("/x")[1:])


def test_questions_are_their_own_whoever_is_asked() -> None:
    made = questions([None, 3], 10, seed=2)
    assert [question.index for question in made] == [None, 3] * 5
    assert made[1].row["policy"] == "user-0003"
    assert made[0].body("base")["model"] == "base"
    assert {question.number for question in made} == set(range(2000, 2010))
    assert made[1].fields["seed"] == made[1].number
