"""What is logged of a request, and the headers of every answer."""

import json
import logging

import pytest

from pefx.http.exchange import Exchange
from tests.http_fakes import FakeEngine, live


def lines(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.levelno == logging.INFO]


def test_one_line_for_each_request_and_nothing_of_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pefx.http")
    with live() as server:
        server.complete(prompt="a secret", max_tokens=4, ignore_eos=True)
        body = {"model": "tiny", "prompt": "a secret", "stream": True, "max_tokens": 5, "ignore_eos": True}
        server.events("/v1/completions", body)
        server.complete(model="nobody")
        server.client.get("/v1/nothing")
        server.until(lambda: len(lines(caplog)) == 4)
    # A stream is over for its client before its line is written.
    whole, stream, absent, nothing = sorted(lines(caplog), key=lambda row: (row["status"], row.get("stream", False)))
    assert whole["endpoint"] == "/v1/completions"
    assert (whole["status"], whole["model"], whole["key"]) == (200, "tiny", "-")
    assert (whole["prompt_tokens"], whole["tokens"]) == (8, 4)
    assert whole["seconds"] >= whole["ttft"] >= 0
    assert (stream["stream"], stream["tokens"], stream["cached_tokens"]) == (True, 5, 4)
    assert (absent["status"], absent["error"], absent["tokens"]) == (404, "unknown_policy", 0)
    assert (nothing["status"], nothing["endpoint"]) == (404, "other")
    assert "secret" not in caplog.text


def test_a_client_that_went_is_told_by_its_status(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pefx.http")
    with live(FakeEngine(pause=0.005)) as server:
        body = {"model": "tiny", "prompt": "abc", "stream": True, "max_tokens": 400, "ignore_eos": True}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        server.until(lambda: len(lines(caplog)) == 1)
    assert lines(caplog)[0]["error"] == "client_gone"
    assert 0 < lines(caplog)[0]["tokens"] < 400


def test_headers_of_every_answer() -> None:
    with live() as server:
        for path in ("/health", "/nothing", "/v1/models", "/"):
            headers = server.client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers


def test_an_exchange_that_never_began(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pefx.http")
    Exchange().log()
    assert lines(caplog)[0]["status"] == 499
