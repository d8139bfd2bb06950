"""The server as a process: where it listens, how it ends, how fast it answers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pefx.config import HttpConfig
from pefx.errors import PefxError
from pefx.http.server import address_of, serve_http
from pefx.web.server import listen
from tests.http_fakes import FakeEngine, live, served

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from pefx.http.server import serve_http
from pefx.config import HttpConfig
from tests.http_fakes import FakeEngine, served
engine = FakeEngine(pause=0.02)
code = serve_http(served(engine, None), HttpConfig(port=0, drain=float(sys.argv[1])))
print("closed" if engine.closed else "open", flush=True)
sys.exit(code)
"""


@contextmanager
def process(drain: float = 20.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    started = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(drain)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    try:
        yield started, started.stdout.readline().split(" ")[0]
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdout, started.stderr):
            assert stream is not None
            stream.close()


def stream(address: str, tokens: int) -> httpx.Request:
    body = {"model": "tiny", "prompt": "abc", "stream": True, "max_tokens": tokens, "ignore_eos": True}
    return httpx.Request("POST", f"{address}/v1/completions", json=body)


def test_a_signal_lets_what_runs_finish_and_takes_nothing_new() -> None:
    with process() as (started, address), httpx.Client(timeout=30) as client:
        answer = client.send(stream(address, 50), stream=True)
        lines = answer.iter_lines()
        next(lines)
        started.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert httpx.get(f"{address}/ready").status_code == 503
        assert httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 503
        assert [line for line in lines if line][-1] == "data: [DONE]"
        answer.close()
        out, err = started.communicate(timeout=20)
        assert (started.returncode, out) == (0, "closed\n")
    logged = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in logged] == ["draining", *["request"] * 3]
    assert [line["status"] for line in logged[1:]] == [503, 503, 200]


def test_what_takes_too_long_is_told_and_ends() -> None:
    with process(drain=0.3) as (started, address), httpx.Client(timeout=30) as client:
        with client.stream(
            "POST", f"{address}/v1/completions", content=stream(address, 400).read(), headers=JSON
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            begun = time.monotonic()
            started.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert started.wait(timeout=20) == 0
        assert time.monotonic() - begun < 5


JSON = {"content-type": "application/json"}


def test_a_second_signal_ends_at_once() -> None:
    with process() as (started, address), httpx.Client(timeout=30) as client:
        answer = client.send(stream(address, 400), stream=True)
        next(answer.iter_lines())
        started.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        started.wait(timeout=20)
        assert time.monotonic() - begun < 5
        answer.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "models.example.org"])
def test_others_are_served_with_keys_only(host: str, tmp_path: Path) -> None:
    with pytest.raises(PefxError, match="`pefx keys create`"):
        address_of(HttpConfig(host=host))
    assert address_of(HttpConfig(host=host, keys=str(tmp_path / "keys.json"))) == host
    assert address_of(HttpConfig(host="localhost")) == "127.0.0.1"


def test_where_it_cannot_begin_the_engine_is_closed(tmp_path: Path) -> None:
    for settings in (HttpConfig(host="0.0.0.0"), HttpConfig(keys=str(tmp_path / "none.json")), HttpConfig(port=-1)):
        engine = FakeEngine()
        with pytest.raises(PefxError):
            serve_http(served(engine, None), settings)
        assert engine.closed


def test_answers_leave_at_once() -> None:
    """asyncio turns the delay of small parts (40 ms, until the one before is acknowledged) off where TCP is named."""
    with listen("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_nobody_holds_the_loop_up() -> None:
    with live(FakeEngine(pause=0.3)) as server:

        async def ask() -> bool:
            async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
                body = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "ignore_eos": True}
                slow = asyncio.ensure_future(client.post("/v1/completions", json=body))
                await asyncio.sleep(0.1)
                assert (await client.get("/health")).status_code == 200
                early = not slow.done()
                await slow
                return early

        assert asyncio.run(ask())
