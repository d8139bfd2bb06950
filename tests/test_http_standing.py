"""How the server says it is."""

from pathlib import Path

from tests.http_fakes import BASE, live, small_catalog


def test_well() -> None:
    with live() as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        assert server.client.get("/ready").json() == {"status": "ok", "base": BASE, "catalog": "none"}


def test_draining() -> None:
    with live() as server:
        server.api.service.draining = True
        answer = server.client.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert server.client.get("/health").status_code == 200


def test_without_its_catalog_it_is_ready_still_and_says_so(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, "ann")) as server:
        assert server.client.get("/ready").json()["catalog"] == "reachable"
        assert server.api.follower is not None
        server.api.follower.reachable = False
        answer = server.client.get("/ready")
        assert (answer.status_code, answer.json()["catalog"]) == (200, "unreachable")
