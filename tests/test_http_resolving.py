"""From a model's name to a revision: who sees what, and what happens while the catalog is slow or gone."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http.keys import EVERYONE, Key
from pefx.http.resolving import Resolver
from pefx.http.tracks import Tracks
from pefx.store.catalog import Catalog
from pefx.store.lifecycle import retire, set_alias
from tests.http_fakes import FakeEngine, commit, served, small_catalog

ANN = Key(id="1", name="ann", hash="", created="", policies=("users/ann", "work/*"), base=False)
OWNER = Key(id="2", name="lab", hash="", created="", owners=("lab",))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = small_catalog(tmp_path, "users/ann", "users/bob", "work/x")
    commit(made, "users/ann", 9)
    commit(made, "lab/one", 3, owner="lab")
    return made


def resolver(catalog: Catalog | None, timeout: float = 5.0, fresh: float = 60.0) -> Resolver:
    given = served(FakeEngine(), catalog)
    tracks = None if given.readiness is None else Tracks(given.readiness, 10)
    return Resolver(given, tracks, timeout=timeout, fresh=fresh)


def found(made: Resolver, model: str, key: Key = EVERYONE) -> str | None:
    revision = asyncio.run(made.resolve(model, key))
    return None if revision is None else revision.key


def refused(made: Resolver, model: str, key: Key = EVERYONE) -> tuple[str, str]:
    with pytest.raises(PefxError) as caught:
        found(made, model, key)
    return caught.value.kind, str(caught.value)


def test_what_names_mean(catalog: Catalog) -> None:
    made = resolver(catalog)
    assert found(made, "tiny") is None
    assert found(made, "users/ann") == "users/ann@2"
    assert found(made, "users/ann@1") == "users/ann@1"
    assert found(made, "users/ann@latest") == "users/ann@2"
    set_alias(catalog, "users/ann", "prod", 1)
    assert found(made, "users/ann@prod") == "users/ann@1"


@pytest.mark.parametrize("model", ["nobody", "users/ann@9", "users/ann@none", "a b", "a@b@c", "../x", "tiny@1", "é"])
def test_what_is_not_there(catalog: Catalog, model: str) -> None:
    assert refused(resolver(catalog), model) == ("unknown_policy", f"the model '{model}' does not exist")


def test_what_a_key_does_not_see_is_not_there(catalog: Catalog) -> None:
    made = resolver(catalog)
    assert found(made, "users/ann", ANN) == "users/ann@2"
    assert found(made, "work/x@1", ANN) == "work/x@1"
    assert found(made, "lab/one", OWNER) == "lab/one@1"
    assert found(made, "lab/one", OWNER) == "lab/one@1"  # tracked now
    for key, model in ((ANN, "users/bob"), (ANN, "tiny"), (OWNER, "users/ann"), (OWNER, "nobody"), (ANN, "users/ann2")):
        assert refused(made, model, key) == ("unknown_policy", f"the model '{model}' does not exist")
        assert refused(made, model + "@1", key)[0] == "unknown_policy"


def test_without_a_catalog_there_is_only_the_base() -> None:
    made = resolver(None)
    assert found(made, "tiny") is None
    assert refused(made, "ann")[0] == "unknown_policy"
    assert refused(made, "ann", OWNER)[0] == "unknown_policy"


def test_latest_stays_what_it_was_until_the_next_is_exposed(catalog: Catalog) -> None:
    made = resolver(catalog)
    assert found(made, "users/ann") == "users/ann@2"
    commit(catalog, "users/ann", 20)
    assert found(made, "users/ann") == "users/ann@2"
    assert found(made, "users/ann@3") == "users/ann@3"


def test_an_alias_is_believed_for_a_moment_only(catalog: Catalog) -> None:
    made = resolver(catalog, fresh=0.0)
    set_alias(catalog, "users/ann", "prod", 1)
    assert found(made, "users/ann@prod") == "users/ann@1"
    set_alias(catalog, "users/ann", "prod", 2)
    assert found(made, "users/ann@prod") == "users/ann@2"


def test_what_is_retired_or_of_another_base(catalog: Catalog) -> None:
    made = resolver(catalog)
    commit(catalog, "other", 1, base="sha256:" + "b" * 64)
    assert refused(made, "other")[0] == "wrong_base"
    retire(catalog, "users/bob")
    assert refused(made, "users/bob")[0] == "retired"


def gone(*_: Any) -> Any:
    raise PefxError("/somewhere: cannot be read", "storage")


def test_while_the_catalog_is_gone_what_is_known_is_served(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = resolver(catalog, fresh=0.0)
    for model in ("users/ann", "users/ann@1"):
        found(made, model)
    monkeypatch.setattr(catalog, "serving", gone)
    assert found(made, "users/ann") == "users/ann@2"
    assert found(made, "users/ann@1") == "users/ann@1"
    assert refused(made, "users/bob")[0] == "storage"


def test_a_slow_catalog_is_not_waited_for(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = resolver(catalog, timeout=0.05)
    slow: Callable[..., Any] = catalog.serving
    monkeypatch.setattr(catalog, "serving", lambda *a: (time.sleep(2), slow(*a))[1])
    begun = time.monotonic()

    async def ask() -> PefxError:
        with pytest.raises(PefxError) as caught:
            await made.resolve("users/ann", EVERYONE)
        assert time.monotonic() - begun < 1.5
        return caught.value

    assert asyncio.run(ask()).kind == "storage"
    made.close()
