"""Endpoints as such: keys, limits, bodies, and what went wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pefx.http import generating
from pefx.http.keys import Key, changing, new_key
from tests.http_fakes import live, small_catalog


def keys(path: Path, **fields: Any) -> tuple[Path, dict[str, str]]:
    """A file with one key, and the header that presents it."""
    given: dict[str, Any] = {"policies": ("ann",)} | fields
    with changing(path / "keys.json") as found:
        key, plain = new_key(lambda id, hash: Key(id=id, name="ann", hash=hash, created="", **given))
        found.keys.append(key)
    return path / "keys.json", {"authorization": f"Bearer {plain}"}


def test_a_key_is_needed_where_there_are_any(tmp_path: Path) -> None:
    path, header = keys(tmp_path)
    with live(catalog=small_catalog(tmp_path, "ann", "bob"), keys=path) as server:
        server.client.headers.update({"host": "models.example.org"})  # with keys, any name will do
        for headers in ({}, {"authorization": "Bearer pefx-no"}, {"authorization": "Basic eDp5"}):
            answer = server.client.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        server.client.headers.update(header)
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["tiny", "ann"]
        assert server.complete(model="ann").status_code == 200
        hidden, absent = server.complete(model="bob"), server.complete(model="bab")
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace("bob", "bab") == absent.text
        assert server.client.get("/health").status_code == 200
        assert server.complete(priority=1).json()["error"]["param"] == "priority"


def test_limits_of_a_key(tmp_path: Path) -> None:
    path, header = keys(tmp_path, tokens_per_minute=20)
    with live(keys=path) as server:
        server.client.headers.update(header)
        assert server.complete(max_tokens=30, ignore_eos=True).status_code == 200
        answer = server.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) > 30


def test_what_a_stream_used_is_paid_for(tmp_path: Path) -> None:
    path, header = keys(tmp_path, tokens_per_minute=20, concurrent=1)
    with live(keys=path) as server:
        server.client.headers.update(header)
        body = {"model": "tiny", "prompt": "abc", "stream": True, "max_tokens": 30, "ignore_eos": True}
        server.events("/v1/completions", body)
        server.until(lambda: server.complete().status_code == 429)


def test_a_foreign_name_for_this_machine_is_refused() -> None:
    with live() as server:
        assert server.client.get("/health", headers={"host": "evil.example.org"}).status_code == 421
        assert server.client.get("/health", headers={"host": "localhost:1"}).status_code == 200


def test_bodies_that_are_none() -> None:
    with live(body_bytes=1000) as server:

        def post(content: bytes, kind: str = "application/json") -> tuple[int, str]:
            answer = server.client.post("/v1/completions", content=content, headers={"content-type": kind})
            return answer.status_code, answer.json()["error"]["code"]

        assert post(b"{}", "text/plain") == (415, "wrong_media_type")
        assert post(b"{}", "application/json; charset=utf-8") == (400, "invalid_request")
        assert post(b"{") == (400, "invalid_json")
        assert post(b" " * 1001) == (413, "body_too_long")
        assert server.complete().status_code == 200


def test_a_fault_of_the_server_is_told_to_its_log_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(body: Any) -> Any:
        raise ValueError("something secret")

    monkeypatch.setattr(generating, "completion_fields", broken)
    with live() as server:
        answer = server.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "secret" not in answer.text
    assert "ValueError: something secret" in capfd.readouterr().err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "prompt", "messages", "max_tokens", "n", "stop", "logprobs", "stream", "seed", "response_format")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), st.binary(max_size=30))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_no_answer_is_a_fault(shared: Any, body: dict[str, Any], noise: bytes) -> None:
    usual = {"model": "tiny", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, other in (("/v1/completions", "messages"), ("/v1/chat/completions", "prompt")):
        given = {name: value for name, value in (usual | body).items() if name != other}
        for answer in (
            shared.post(path, given),
            shared.client.post(path, content=noise, headers={"content-type": "application/json"}),
        ):
            assert answer.status_code < 500, (given, answer.text)


@pytest.fixture(scope="module")
def shared() -> Any:
    with live() as server:
        yield server
