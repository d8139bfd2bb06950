"""pefx.http.remembering: who may keep a memory as which policy, and that the next request begins with it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http.bodies import CompletionBody
from pefx.http.keys import EVERYONE, Key
from pefx.http.remembering import check_keeps, follow
from pefx.http.resolving import Resolver
from pefx.http.served import Served
from pefx.http.tracks import Tracks
from pefx.serving.jobs import Answered
from pefx.store.catalog import Catalog
from tests.http_fakes import FakeEngine, commit, live, served, small_catalog

USER = {"role": "user", "content": "hello"}
ANN = Key(id="1", name="ann", hash="", created="", policies=("team/*",), memories=("ann/*",))


def body(policy: str | None) -> CompletionBody:
    return CompletionBody(model="tiny", prompt="abc", remember=policy)


def test_a_memory_is_kept_where_the_key_may() -> None:
    check_keeps(body("ann/notes"), [[1]], ANN)
    check_keeps(body("anything"), [[1]], EVERYONE)
    check_keeps(body(None), [[1], [2]], ANN)
    with pytest.raises(PefxError, match="key 'ann' may not keep a memory as 'team/x'") as caught:
        check_keeps(body("team/x"), [[1]], ANN)
    assert caught.value.kind == "forbidden"
    with pytest.raises(PefxError, match="field 'remember': a memory is of one prompt, there are 2"):
        check_keeps(body("ann/notes"), [[1], [2]], ANN)


def given(path: Path) -> tuple[Served, Resolver, Catalog]:
    catalog = small_catalog(path, "ann")
    made = served(FakeEngine(), catalog)
    assert made.readiness is not None
    return made, Resolver(made, Tracks(made.readiness, 4), timeout=5.0, fresh=60.0), catalog


def kept(key: str) -> Answered:
    return Answered(1, {"remembered": key}, 1, 1, 0, 0.0, 0.0, "slot")


def test_the_next_request_is_served_by_what_was_kept_last(tmp_path: Path) -> None:
    _, resolver, catalog = given(tmp_path)

    async def ask(model: str) -> str:
        revision = await resolver.resolve(model, EVERYONE)
        assert revision is not None
        return revision.key

    async def run() -> list[str]:
        found = [await ask("ann"), await ask("ann@latest")]
        commit(catalog, "ann", 7)
        commit(catalog, "ann", 8)
        found.append(await ask("ann"))
        for key in ("ann@3", "ann@2"):  # the later one was told first
            await follow(resolver, [kept(key)])
            found += [await ask("ann"), await ask("ann@latest")]
        commit(catalog, "bob", 1)
        await follow(resolver, [kept("bob@1")])
        return [*found, await ask("bob")]

    assert asyncio.run(run()) == ["ann@1", "ann@1", "ann@1", "ann@3", "ann@3", "ann@3", "ann@3", "bob@1"]


def test_it_was_kept_though_the_catalog_is_gone_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, resolver, _ = given(tmp_path)
    asyncio.run(resolver.resolve("ann", EVERYONE))

    def gone(*_: Any) -> None:
        raise PefxError("the disk is gone", "storage")

    monkeypatch.setattr(made.policies, "resolve", gone)
    asyncio.run(follow(resolver, [kept("ann@2")]))
    assert "the one before stays for now" in caplog.text
    assert resolver.tracks is not None
    assert resolver.tracks.ask("ann") is not None


def test_a_stream_tells_it_in_its_last_event(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, "ann")) as server:
        for path, more in (("completions", {"prompt": "x"}), ("chat/completions", {"messages": [USER]})):
            asked = {"model": "ann", "max_tokens": 4, "remember": "ann", **more}
            assert server.post(f"/v1/{path}", asked).json()["remembered"] == "ann@1"
            last = server.events(f"/v1/{path}", asked | {"stream": True})[-1]
            assert (last["choices"], last["remembered"]) == ([], "ann@1")
            assert "usage" not in last
            counted = asked | {"stream": True, "stream_options": {"include_usage": True}}
            last = server.events(f"/v1/{path}", counted)[-1]
            assert last["remembered"] == "ann@1"
            assert last["usage"]["completion_tokens"] > 0
