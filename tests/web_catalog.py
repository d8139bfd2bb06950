"""Catalogs for the tests of pages: a family with branches, a long history, and values that a page must not believe."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from threading import Thread
from typing import Any

import numpy as np

from pefx.config import AdapterSpec
from pefx.store.catalog import Catalog
from pefx.store.encoding import encode
from pefx.store.keyspace import Write
from pefx.store.lifecycle import branch, move_stage, set_alias
from pefx.store.names import policy_key, revision_key
from pefx.store.records import Revision
from pefx.store.scores import record_score
from pefx.store.sessions import Wanted, open_sessions
from pefx.web.server import listen, make_server

BASE = "sha256:" + "a" * 64
SPEC = AdapterSpec(rank=2, targets=("q_proj", "v_proj"))
SCRIPT = "<script>alert(1)</script>"
LONG = "teams/" + "x" * 118 + "/end"


def adapter(seed: int) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return {s: {f: random.normal(size=(2, 2, 24)).astype(np.float32) for f in "ab"} for s in SPEC.targets}


def commit(catalog: Catalog, policy: str, seed: int, **changes: Any) -> Revision:
    given: dict[str, Any] = {
        "step": seed * 10,
        "seeds": {"run": 1},
        "config": {"lr": 0.01},
        "data_fingerprint": "sha256:dd",
        "metrics": {"heldout": {"nats": 2.5 - seed / 100}},
    } | changes
    return catalog.commit(policy, adapter=adapter(seed), spec=SPEC, base=BASE, **given)


def grow(catalog: Catalog, policy: str, revisions: int, first: int = 1) -> None:
    """Commits `policy@first` and those behind it, each from the one before."""
    for number in range(first, first + revisions):
        commit(catalog, policy, number, parent=f"{policy}@{number - 1}" if number > 1 else None)


def score(catalog: Catalog, revision: Revision, **changes: Any) -> None:
    usual: dict[str, Any] = {"renderer": "chat", "scorer": "judge", "path": "shared", "metrics": {"helpful": 0.5}}
    record_score(catalog, revision, samples=20, data_fingerprint="sha256:ee", **(usual | changes))


def family(catalog: Catalog) -> None:
    """`users/ann` with six revisions, `users/ann-de` from its third, `lab/formal` from that one's second."""
    grow(catalog, "users/ann", 5)
    commit(catalog, "users/ann", 6, parent="users/ann@4", owner=None, tags=("beta",))
    branch(catalog, "users/ann", "users/ann-de", 3, owner="ann")
    grow(catalog, "users/ann-de", 2, first=2)
    branch(catalog, "users/ann-de", "lab/formal", 2)
    set_alias(catalog, "users/ann", "prod", 4)
    for action in ("register", "prewarm", "expose"):
        move_stage(catalog, "users/ann", 4, action)
    for revision in catalog.log("users/ann"):
        score(catalog, revision, metrics={"helpful": revision.number / 10})
        score(catalog, revision, metrics={"helpful": revision.number / 11}, path="isolated")
    open_sessions(catalog, "runs/two", [Wanted("users/new", BASE, SPEC, owner="ann")])


def hostile(catalog: Catalog) -> None:
    """`odd`: whatever a record may hold is markup, also what no command would write."""
    revision = commit(
        catalog,
        "odd",
        1,
        seeds={SCRIPT: 1},
        config={SCRIPT: {"deep": SCRIPT}, "list": [SCRIPT]},
        data_fingerprint=SCRIPT,
        metrics={SCRIPT: 1.0, "note": SCRIPT, "huge": 10**400, "tiny": 1e-320, "flag": True, "none": None},
    )
    score(catalog, revision, scorer=SCRIPT, renderer=f'"{SCRIPT}', metrics={SCRIPT: 0.5})
    open_sessions(catalog, SCRIPT, [Wanted("odd", BASE, SPEC, start=None)])
    changed = replace(catalog.get("odd"), parent=SCRIPT, code_version=SCRIPT, created=SCRIPT)
    policy = replace(
        catalog.policy("odd"),
        owner=SCRIPT,
        tags=(SCRIPT, '"onmouseover="x'),
        aliases={"latest": 1, SCRIPT: 1},
        expires=SCRIPT,
        origin="javascript:alert(1)",
    )
    catalog.space.transact([Write(revision_key("odd", 1), encode(changed)), Write(policy_key("odd"), encode(policy))])


@contextmanager
def serving(catalog: Catalog) -> Iterator[str]:
    """The pages of `catalog` on a free port, served by a thread; yields their address."""
    with listen("127.0.0.1", 0) as bound:
        server = make_server(catalog)
        thread = Thread(target=lambda: server.run(sockets=[bound]))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Message
    text: str


def ask(address: str, method: str = "GET", **headers: str) -> Answer:
    """The answer at `address`, an error's as well."""
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return Answer(reply.status, reply.headers, reply.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read().decode())
