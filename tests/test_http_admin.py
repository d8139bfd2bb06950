"""Changing what is served, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pefx.http.keys import Key, changing, new_key
from pefx.store.catalog import Catalog
from tests.http_fakes import Live, commit, live, small_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = small_catalog(tmp_path, "ann", "bob")
    commit(made, "ann", 7)
    return made


@pytest.fixture
def server(catalog: Catalog) -> Iterator[Live]:
    with live(catalog=catalog) as started:
        yield started


def do(server: Live, action: str, **body: Any) -> httpx.Response:
    return server.post(f"/admin/{action}", body)


def stage(server: Live, model: str) -> tuple[str, bool]:
    found = server.client.get("/admin/status", params={"model": model}).json()
    return found["stage"], found["current"]


def test_the_stages(server: Live) -> None:
    assert stage(server, "ann@1") == ("committed", False)
    assert do(server, "register", model="ann@1").json()["stage"] == "registered"
    assert do(server, "prewarm", model="ann@1").json()["stage"] == "prewarmed"
    answer = do(server, "expose", model="ann@1").json()
    assert (answer["stage"], answer["current"], answer["revision"]) == ("exposed", True, 1)
    assert server.complete(model="ann").json()["model"] == "ann@1"
    assert do(server, "withdraw", model="ann@1").json()["stage"] == "committed"
    assert server.complete(model="ann").json()["model"] == "ann@2"
    answer = server.complete(model="ann@1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_exposed")


def test_out_of_turn(server: Live) -> None:
    answer = do(server, "expose", model="ann@1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_stage")
    assert do(server, "register", model="ann@9").status_code == 404
    assert do(server, "register", model="a b").status_code == 404
    assert do(server, "register").status_code == 400
    assert server.client.get("/admin/status").status_code == 400


def test_back_to_an_exposed_one(server: Live) -> None:
    for model in ("ann@1", "ann@2"):
        for action in ("register", "prewarm", "expose"):
            assert do(server, action, model=model).status_code == 200
    assert server.complete(model="ann").json()["model"] == "ann@2"
    assert do(server, "expose", model="ann@1").json()["current"]
    assert server.complete(model="ann").json()["model"] == "ann@1"


def test_aliases_and_rollback_are_the_catalogs(server: Live, catalog: Catalog) -> None:
    assert do(server, "alias", model="ann@1", alias="prod").json()["aliases"] == {"latest": 2, "prod": 1}
    assert catalog.policy("ann").aliases["prod"] == 1
    assert server.complete(model="ann@prod").json()["model"] == "ann@1"
    assert do(server, "alias", model="ann@2", alias="prod").status_code == 200
    assert server.complete(model="ann@prod").json()["model"] == "ann@2"
    assert server.complete(model="ann").json()["model"] == "ann@2"
    assert do(server, "rollback", policy="ann").json()["aliases"]["latest"] == 1
    server.until(lambda: server.complete(model="ann").json()["model"] == "ann@1")
    answer = do(server, "rollback", policy="ann")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_revision")
    assert do(server, "alias", model="ann@1", alias="7").status_code == 400


def test_a_read_only_catalog_is_not_changed(catalog: Catalog) -> None:
    with live(catalog=Catalog.open(catalog.location, read_only=True)) as server:
        answer = do(server, "alias", model="ann@1", alias="prod")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "read_only")
        assert do(server, "register", model="ann@1").status_code == 200


def test_without_a_catalog_there_is_nothing_to_change() -> None:
    with live() as server:
        assert do(server, "register", model="ann").status_code == 404
        assert do(server, "rollback", policy="ann").status_code == 404


def test_only_keys_that_may(tmp_path: Path, catalog: Catalog) -> None:
    plains = {}
    with changing(tmp_path / "keys.json") as keys:
        for name, admin in (("ann", False), ("root", True)):
            key, plains[name] = new_key(
                lambda id, hash, name=name, admin=admin: Key(
                    id=id, name=name, hash=hash, created="", policies=("*",), admin=admin
                )
            )
            keys.keys.append(key)
    with live(catalog=catalog, keys=tmp_path / "keys.json") as server:
        for name, status in (("ann", 403), ("root", 200)):
            headers = {"authorization": f"Bearer {plains[name]}"}
            assert server.post("/admin/register", {"model": "bob"}, **headers).status_code == status
        assert do(server, "register", model="bob").status_code == 401
