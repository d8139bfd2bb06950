"""Addresses that are answered, and those that are not."""

import pytest

from pefx.http.app import OPERATIONS, route_path
from tests.http_fakes import live


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("HEAD", "/health", 200),
        ("OPTIONS", "/v1/completions", 405),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/chat.js/../x", 404),
        ("GET", "/v1/models/", 404),
    ],
)
def test_elsewhere(method: str, path: str, status: int) -> None:
    with live() as server:
        answer = server.client.request(method, path)
        assert answer.status_code == status
        if status >= 400:
            assert answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_each_is_there_once() -> None:
    found = [(operation.method, operation.path) for operation in OPERATIONS]
    assert len(set(found)) == len(found)
    assert route_path("/v1/models/{model}") == "/v1/models/{model:path}"


def test_only_admin_operations_change_anything() -> None:
    for operation in OPERATIONS:
        assert operation.admin == operation.path.startswith("/admin/")
        assert operation.keyed or operation.method == "GET"
