"""Clients that go away, or do not read; errors before the first token and after."""

import json
import socket
import time
from typing import Any

import httpx
import pytest

from tests.http_fakes import FakeEngine, Live, live, small_catalog

LONG = {"model": "tiny", "prompt": "abc", "max_tokens": 400, "ignore_eos": True}


def raw(server: Live, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request, and reads nothing by itself."""
    host, port = server.address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(f"{head}{len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_cancelled(stream: bool) -> None:
    with live(FakeEngine(pause=0.002)) as server:
        connection = raw(server, LONG | {"stream": stream})
        server.until(lambda: server.engine.steps > 5)
        connection.close()
        server.until(lambda: bool(server.engine.cancelled))
        server.until(lambda: server.api.service.in_flight == 0)
        assert server.complete().status_code == 200


def test_a_client_that_leaves_the_stream_in_the_middle() -> None:
    with live(FakeEngine(pause=0.002)) as server:
        with server.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
        server.until(lambda: bool(server.engine.cancelled))


def test_a_client_that_does_not_read_is_cancelled() -> None:
    body = LONG | {"stream": True, "n": 64, "logprobs": 20}
    with live(FakeEngine(pause=0.001), buffer=64) as server, raw(server, body):
        server.until(lambda: bool(server.engine.cancelled))
        assert server.complete().status_code == 200


def test_an_error_before_the_first_token_has_its_status(tmp_path) -> None:
    with live(catalog=small_catalog(tmp_path, "ann")) as server:
        server.engine.broken.add("ann")
        answer = server.complete(model="ann", stream=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged")
        assert "/disk" not in answer.text


def test_an_error_in_the_middle_is_an_event() -> None:
    with live(FakeEngine(pause=0.01)) as server:
        body = LONG | {"stream": True, "timeout": 0.2}
        *events, last = server.events("/v1/completions", body)
        assert events[0]["choices"]
        assert last["error"]["code"] == "timeout"


def test_time_is_up() -> None:
    with live() as server:
        server.engine.gate.clear()
        answer = server.complete(timeout=0.05)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_over_the_queue_is_told_at_once() -> None:
    with live(queue=1) as server:
        server.engine.gate.clear()
        with raw(server, LONG):
            server.until(lambda: server.api.service.in_flight == 1)
            begun = time.monotonic()
            answer = server.complete()
            assert time.monotonic() - begun < 10  # and not when there is room
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert server.client.get("/health").status_code == 200


def test_the_engines_death_is_told_to_all(capfd: pytest.CaptureFixture[str]) -> None:
    with live() as server:
        server.engine.dies = RuntimeError("the device is gone")
        answer = server.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/ready").status_code == 503
        assert server.complete().status_code == 503
    assert "the device is gone" in capfd.readouterr().err


def test_streams_come_as_they_are_made() -> None:
    with live(FakeEngine(pause=0.02)) as server:
        begun, times = time.monotonic(), []
        body = LONG | {"stream": True, "max_tokens": 10}
        with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=30) as answer:
            times = [time.monotonic() - begun for line in answer.iter_lines() if line]
        assert times[-1] - times[0] > 0.1
