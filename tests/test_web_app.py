"""The pages over HTTP: what is there, what is refused and how, what is escaped, and that new commits are seen."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pefx.store.catalog import Catalog
from pefx.store.encoding import encode
from pefx.store.keyspace import Write
from pefx.web import app as web_app
from pefx.web.app import host_name
from pefx.web.pages import HEADERS
from tests.web_catalog import LONG, SCRIPT, ask, commit, family, grow, hostile, serving


class Links(HTMLParser):
    """What a page links to, its elements, and whether any has a handler of events."""

    def __init__(self, text: str):
        super().__init__()
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag == "a":
            self.links.add(str(dict(attrs).get("href")).split("#")[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web") / "catalog"


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    catalog = Catalog.open(place, create=True)
    family(catalog)
    hostile(catalog)
    grow(catalog, LONG, 40)
    with serving(Catalog.open(place, read_only=True)) as address:
        yield address


def test_every_link_leads_to_a_page_without_foreign_markup(address: str) -> None:
    waiting, seen = ["/", "/?limit=2", f"/policy/{LONG}?whole=1"], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = ask(address + path)
        # searches for labels that nothing can have, which only a foreign hand has written
        labels = {400} if path.startswith(("/?tag=%", "/?owner=%", "/api/?tag=%", "/api/?owner=%")) else {200}
        assert answer.status in labels, path
        if path.startswith("/api/"):
            json.loads(answer.text)
            continue
        found = Links(answer.text)
        assert "script" not in found.tags, path
        assert not found.handlers, path
        assert all(link.startswith(("/", "?")) and not link.startswith("//") for link in found.links), path
        waiting += [path.split("?")[0] + link if link.startswith("?") else link for link in found.links if link]
    assert {"/policy/odd", "/revision/odd@1", "/revision/users/ann@4", "/policy/lab/formal"} <= seen
    assert f"/api/policy/{LONG}" in seen
    assert len(seen) > 60


def test_the_population(address: str) -> None:
    text = ask(address).text
    for said in ("users/ann-de", "@6", "beta", "recorded", "just now", "6 in this catalog"):
        assert said in text
    few = ask(f"{address}/?prefix=users/ann&owner=ann").text
    assert "users/ann-de" in few
    assert "lab/formal" not in few
    assert "No policy here that fits this search" in ask(f"{address}/?prefix=zzz").text
    data = json.loads(ask(f"{address}/api/?prefix=users/&limit=1").text)
    assert [entry["policy"]["name"] for entry in data["policies"]] == ["users/ann"]
    assert data["behind"] == "users/ann"
    assert data["query"] == {"prefix": "users/", "limit": 1}


def test_a_policy_and_a_revision(address: str) -> None:
    text = ask(f"{address}/policy/users/ann").text
    for said in ("Lineage", "Evaluations", "heldout.nats", "judge, chat, isolated", "prod", 'class="band"'):
        assert said in text
    text = ask(f"{address}/revision/users/ann@prod").text
    for said in ("exposed", "What changed from its parent", "q_proj", "heldout.nats", "sha256:dd"):
        assert said in text
    assert "No revision has been committed yet" in ask(f"{address}/policy/users/new").text
    data = json.loads(ask(f"{address}/api/policy/users/ann").text)
    assert {"policy", "session", "history", "lineage", "curves"} == set(data)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/policy/nobody", 404, "policy 'nobody' is not in catalog"),
        ("/policy/", 400, "policy name '' is not allowed"),
        ("/policy/a//b", 400, "policy name 'a//b' is not allowed"),
        ("/policy/..%2f..%2fetc", 400, "reads as a path"),
        ("/policy/users/ann@1", 400, "policy name 'users/ann@1' is not allowed"),
        ("/revision/users/ann@99", 404, "has no revision 99; its latest is 6"),
        ("/revision/users/ann@nope", 404, "has no alias 'nope'"),
        ("/revision/users/ann@", 404, "after '@' comes a revision number"),
        ("/revision/users/new@1", 404, "it has none yet"),
        ("/?limit=0", 400, "a page has 1 to 500 policies"),
        ("/?tag=%3Cb%3E", 400, "tag '<b>' is not allowed"),
        ("/nowhere/at/all", 404, "there is no page at /nowhere/at/all"),
        ("/%3Cscript%3E", 404, "there is no page at /<script>"),
    ],
)
def test_errors_are_pages_and_data(address: str, path: str, status: int, told: str) -> None:
    answer = ask(address + path)
    escaped = told.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
    assert answer.status == status
    assert escaped in answer.text
    assert "<script" not in answer.text
    data = ask(f"{address}/api{path}")
    assert data.status == status
    assert told.removesuffix("/<script>").removesuffix("/nowhere/at/all") in json.loads(data.text)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(address: str, method: str) -> None:
    for path in ("/", "/policy/users/ann", "/api/policy/users/ann"):
        answer = ask(address + path, method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert f"{method} is not answered" in answer.text
    answer = ask(address, "HEAD")
    assert (answer.status, answer.text) == (200, "")
    assert int(answer.headers["content-length"]) > 1000


def test_every_answer_has_the_headers(address: str) -> None:
    for path, method in (("/", "GET"), ("/nope", "GET"), ("/api/", "GET"), ("/", "POST"), ("/policy/a//b", "GET")):
        answer = ask(address + path, method)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert "server" not in answer.headers


def test_other_names_of_this_machine_are_not_answered(address: str) -> None:
    answer = ask(address, host="evil.example")
    assert answer.status == 421
    assert "users/ann" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ask(address, host="localhost:8010").status == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [("localhost:1", "localhost"), ("LOCALHOST.", "localhost"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", "")],
)
def test_host_names(host: str, name: str) -> None:
    assert host_name(host) == name


def test_commits_are_seen_while_it_runs(tmp_path: Path) -> None:
    writer = Catalog.open(tmp_path / "catalog", create=True)
    with serving(Catalog.open(tmp_path / "catalog", read_only=True)) as address:
        assert "No policy here." in ask(address).text
        assert ask(f"{address}/policy/new").status == 404
        commit(writer, "new", 1)
        assert "/policy/new" in ask(address).text
        assert "@1" in ask(f"{address}/policy/new").text
        commit(writer, "new", 2, parent="new@1")
        assert "/revision/new@2" in ask(f"{address}/policy/new").text


def test_damage_is_named_and_nothing_else_suffers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    commit(catalog, "good", 1)
    commit(catalog, "hurt", 1)
    record = catalog.space.read("revision/hurt@0000000001").value or b""
    catalog.space.transact([Write("revision/hurt@0000000001", record.replace(b'"step":10', b'"step":11'))])
    with serving(Catalog.open(tmp_path / "catalog", read_only=True)) as address:
        for path in ("/policy/hurt", "/revision/hurt@1", "/?prefix=hurt", "/"):
            answer = ask(address + path)
            assert answer.status == 500
            assert "revision hurt@1: the stored record is damaged (its checksum does not match)" in answer.text
            assert "Traceback" not in answer.text
            assert json.loads(ask(f"{address}/api{path}").text)["kind"] == "damaged"
        assert ask(f"{address}/policy/good").status == 200
        assert ask(f"{address}/?prefix=good").status == 200
    assert capfd.readouterr().err == ""


def test_a_circle_of_origins_has_a_page(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    for name, origin in (("a", "b@1"), ("b", "a@1")):
        commit(catalog, name, 1)
        policy = replace(catalog.policy(name), origin=origin)
        catalog.space.transact([Write(f"policy/{name}", encode(policy))])
    with serving(catalog) as address:
        assert ask(f"{address}/policy/a").status == 200


def test_a_fault_of_ours_shows_no_inside(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError(SCRIPT)

    monkeypatch.setattr(web_app, "policy_page", broken)
    for path in ("/policy/users/ann", "/api/policy/users/ann"):
        answer = ask(address + path)
        assert answer.status == 500
        assert "the terminal of the server says why" in answer.text
        assert "RuntimeError" not in answer.text
        assert answer.headers["content-security-policy"]


def test_a_slow_read_holds_nobody_else_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go_on = threading.Event(), threading.Event()
    usual = web_app.policy_page

    def slow(catalog: Catalog, name: str):
        waiting.set()
        assert go_on.wait(timeout=30)
        return usual(catalog, name)

    monkeypatch.setattr(web_app, "policy_page", slow)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(f"{address}/policy/users/ann").status))
    thread.start()
    assert waiting.wait(timeout=30)
    start = time.monotonic()
    assert ask(f"{address}/revision/users/ann@1").status == 200
    assert time.monotonic() - start < 10
    go_on.set()
    thread.join(timeout=30)
    assert answers == [200]
