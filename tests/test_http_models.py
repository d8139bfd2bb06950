"""The models that a key sees, by page."""

from pathlib import Path
from typing import Any

import pytest

from pefx.http.keys import Key
from pefx.http.models import page_of, seconds, visible
from pefx.store.lifecycle import retire
from tests.http_fakes import commit, live, small_catalog

NAMES = [f"users/{number:02d}" for number in range(12)]


def key(**fields: Any) -> Key:
    return Key(id="1", name="a", hash="", created="", **fields)


def test_pages(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, *NAMES)) as server:
        found, after = [], ""
        while True:
            page = server.client.get("/v1/models", params={"limit": 5, "after": after}).json()
            found += [model["id"] for model in page["data"]]
            assert len(page["data"]) <= 5
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert found == ["tiny", *NAMES]
        some = server.client.get("/v1/models", params={"prefix": "users/1"}).json()
        assert [model["id"] for model in some["data"]] == ["users/10", "users/11"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "after=%C3%A9", "prefix=" + "a" * 200]
)
def test_what_is_no_page(query: str) -> None:
    with live() as server:
        answer = server.client.get(f"/v1/models?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.split("=")[0])


def test_the_usual_page() -> None:
    assert page_of({}) == ("", "", 100)


def test_what_a_key_sees(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path, *NAMES, "work/a", "work/b")
    commit(catalog, "lab/x", 1, owner="lab")
    commit(catalog, "work/c", 2, owner="lab")
    retire(catalog, "work/b")

    def seen(key: Key, prefix: str = "", behind: str | None = None, limit: int = 100) -> list[str]:
        return [policy.name for policy in visible(catalog, key, prefix, behind, limit)]

    assert seen(key()) == []
    assert seen(key(policies=("*",)), limit=3) == ["lab/x", *NAMES[:2]]
    assert seen(key(policies=("users/03", "work/*", "users/nobody"))) == ["users/03", "work/a", "work/c"]
    assert seen(key(policies=("work/*",), owners=("lab",))) == ["lab/x", "work/a", "work/c"]
    assert seen(key(policies=("work/*", "users/03")), prefix="us") == ["users/03"]
    assert seen(key(policies=("users/0*",)), prefix="users/") == NAMES[:10]
    assert seen(key(policies=("users/*",)), prefix="users/1") == NAMES[10:]
    assert seen(key(policies=("users/03", "users/05")), behind="users/03") == ["users/05"]


def test_one_model(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path, "users/ann")
    commit(catalog, "users/ann", 5)
    with live(catalog=catalog) as server:

        def get(name: str) -> Any:
            return server.client.get(f"/v1/models/{name}").json()

        assert get("tiny")["revision"] is None
        assert (get("users/ann")["revision"], get("users/ann")["stage"]) == (2, "committed")
        assert server.complete(model="users/ann").status_code == 200
        assert (get("users/ann")["stage"], get("users/ann")["rank"]) == ("exposed", 2)
        assert get("users%2Fann@1")["id"] == "users/ann@1"
        assert get("users/ann@latest")["created"] > 1_500_000_000
        for name in ("nobody", "users/ann@7", "a b"):
            assert get(name)["error"]["code"] == "model_not_found"


def test_times_that_are_none() -> None:
    assert seconds("1970-01-01T00:00:07+00:00") == 7
    assert seconds("soon") == seconds("") == 0
