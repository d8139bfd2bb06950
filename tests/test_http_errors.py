"""From kinds of errors to statuses and OpenAI's form of them."""

import json

import pytest

from pefx.errors import PefxError
from pefx.http.errors import STATUS, Later, refusal, told


def said(error: Exception) -> tuple[int, dict, dict]:
    answer = refusal(error)
    return answer.status_code, json.loads(bytes(answer.body))["error"], dict(answer.headers)


def test_a_field_is_named() -> None:
    status, error, _ = said(PefxError("the body, field 'top_p': must be above 0", "invalid_request"))
    assert (status, error["param"], error["type"]) == (400, "top_p", "invalid_request_error")


def test_a_key_is_asked_for() -> None:
    status, error, headers = said(PefxError("a key is needed", "no_key"))
    assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (7.1, "8")])
def test_when_to_ask_again(seconds: float, header: str) -> None:
    status, error, headers = said(Later("wait", "rate_limited", seconds))
    assert (status, error["type"], headers["retry-after"]) == (429, "rate_limit_error", header)


def test_what_is_busy_or_unavailable_may_be_asked_again() -> None:
    for kind in ("busy", "draining", "storage", "engine_down"):
        assert said(PefxError("x", kind))[2]["retry-after"] == "1"


@pytest.mark.parametrize("error", [ValueError("/secret/place"), PefxError("/secret/place", "nobody knows")])
def test_what_is_not_known_is_not_told(error: Exception) -> None:
    status, found, _ = said(error)
    assert status == 500
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("kind", ["storage", "no_permission", "no_catalog", "closed", "damaged", "engine_failed"])
def test_places_of_the_server_are_not_told(kind: str) -> None:
    assert "secret" not in told(PefxError("/secret/place is gone", kind)).error.message


def test_every_status_is_one() -> None:
    assert all(400 <= status < 600 for status in STATUS.values())
