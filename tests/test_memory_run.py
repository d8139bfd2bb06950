"""Memories from training to serving: kept as policies, begun with again, to the bit; killed and wrong ones refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.shared import fresh_adapter
from pefx.config import AdapterSpec, ServeConfig
from pefx.data.formats import Example
from pefx.loading import load_base
from pefx.serving.run import serve_file
from pefx.steps import score
from pefx.store.catalog import Catalog
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, lay_out
from pefx.training.remembering import remembered
from tests.http_process import serving
from tests.serving_small import make_config

TO_THE_BIT = True

MEMORY = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
FORMS = {"tokens": MEMORY, "messages": replace(MEMORY, writes="messages"), "four": replace(MEMORY, states=4)}
HISTORY, QUERY = list(range(40, 85)), [7, 9, 11, 13, 15, 17, 19]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ServeConfig:
    """The small base with policies of LoRA, and policies with memories."""
    small = make_config(tmp_path_factory.mktemp("memory"))
    base, digest = load_base(small.base)
    assert small.catalog is not None
    catalog = Catalog.open(small.catalog)
    for name, spec in FORMS.items():
        fresh = fresh_adapter(base, spec, 1)["memory"]
        commit(catalog, name, {"memory": {leaf: x + noise(x.shape) for leaf, x in fresh.items()}}, spec, digest)
    return replace(small, others=(FORMS["four"],), sequences=4)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.float32(0.3) * np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def commit(catalog: Catalog, policy: str, adapter: Any, spec: AdapterSpec, base: str) -> None:
    about: dict[str, Any] = {"seeds": {}, "config": {}, "data_fingerprint": "", "metrics": {}}
    catalog.commit(policy, adapter=adapter, spec=spec, base=base, step=1, **about)


def served(config: ServeConfig, folder: Path, *requests: dict[str, Any]) -> dict[str, dict[str, Any]]:
    folder.mkdir()
    asked = folder / "in.jsonl"
    common = {"max_tokens": 3, "temperature": 0.0, "logprobs": True, "ignore_eos": True}
    asked.write_text("".join(json.dumps(common | request) + "\n" for request in requests))
    assert serve_file(config, asked, folder / "out.jsonl") == 0
    rows = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    return {row["id"]: row for row in rows}


def keeps(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "prompt": HISTORY, "policy": name, "remember": f"amy/{name}", "max_tokens": 1, **changes}


def asks(policy: str, **changes: Any) -> dict[str, Any]:
    return {"id": policy, "prompt": QUERY, "policy": policy, "writes": "none", **changes}


def test_what_was_kept_is_begun_with_whoever_else_is_served(config, tmp_path):
    found = served(config, tmp_path / "first", *map(keeps, FORMS), {"id": "ann", "prompt": HISTORY, "policy": "alice"})
    assert [found[name]["remembered"] for name in FORMS] == [f"amy/{name}@1" for name in FORMS]
    policies = [f"amy/{name}" for name in FORMS]
    others = [*map(asks, FORMS), asks("alice", writes="prompt")]
    mixed = served(config, tmp_path / "mixed", *map(asks, policies), *others)
    assert [(mixed[p]["policy"], mixed[p]["revision"]) for p in policies] == [(p, 1) for p in policies]
    base = served(config, tmp_path / "base", {**asks("base"), "policy": None, "writes": "prompt"})["base"]
    for name in FORMS:
        assert mixed[name]["logprobs"] == base["logprobs"]  # an empty memory that is only read is the base
        assert mixed[f"amy/{name}"]["logprobs"] != mixed[name]["logprobs"]
        alone = served(config, tmp_path / name, asks(f"amy/{name}"))[f"amy/{name}"]
        assert alone["logprobs"] == mixed[f"amy/{name}"]["logprobs"]


def test_pages_of_equal_memories_are_shared_and_of_others_are_not(config, tmp_path):
    long, one = [*HISTORY, *QUERY], replace(config, sequences=1)
    written = [asks("tokens", id=str(i), prompt=long, writes="prompt") for i in range(2)]
    others = [asks("tokens", id=name, prompt=long, writes=name) for name in ("none", "all")]
    rows = served(one, tmp_path / "in_turn", *written, *others)
    summary = json.loads((tmp_path / "in_turn" / "out.jsonl.summary.json").read_text())
    assert summary["cached_tokens"] == 32  # of the second one's prompt, a page
    assert rows["0"]["logprobs"] == rows["1"]["logprobs"]
    bare = served(replace(one, prefix_cache=False), tmp_path / "bare", written[0], *others)
    assert all(rows[name]["logprobs"] == bare[name]["logprobs"] for name in ("0", "none", "all"))
    assert len({tuple(row["logprobs"]) for row in bare.values()}) == 3


def test_a_memory_goes_on_where_it_was_kept_as_in_one_sequence_of_steps(config, tmp_path):
    """Pages given up and computed again, and another cut of the prompt: the same state."""
    tight = replace(config, pages=5, step_tokens=16)
    requests = [keeps(name, remember=f"bob/{name}") for name in FORMS]
    served(config, tmp_path / "roomy", *requests)
    served(tight, tmp_path / "tight", *(keeps(name, remember=f"cut/{name}") for name in FORMS))
    catalog = Catalog.open(str(config.catalog), read_only=True)
    for name in FORMS:
        roomy, cut = (catalog.load(catalog.get(f"{who}/{name}"))["memory"]["state"] for who in ("bob", "cut"))
        assert roomy.tobytes() == cut.tobytes()
        assert roomy.shape == (2, 8 * FORMS[name].states, 8)
        assert np.abs(roomy).max() > 0.01


def test_a_state_that_was_kept_and_loaded_is_the_chain_of_training(config, tmp_path):
    """Not a bit is lost: what was served over a state is what training computes behind the history."""
    served(config, tmp_path / "kept", *(keeps(name, remember=f"eve/{name}") for name in FORMS))
    rows = served(config, tmp_path / "asked", *(asks(f"eve/{name}") for name in FORMS))
    base, catalog = load_base(config.base)[0], Catalog.open(str(config.catalog), read_only=True)
    room = list(FORMS.values())
    for name, spec in FORMS.items():
        row, count = rows[f"eve/{name}"], len(QUERY)
        bank = empty_bank(base.config, bank_spec(room), 2, room)
        bank = load_adapter(bank, 0, catalog.load(catalog.get(name)), spec, base)
        tokens = np.asarray([*QUERY, *row["tokens"]], np.int32)
        learned = np.arange(len(tokens)) >= count
        lesson = remembered(Example(tokens, learned, (np.asarray(HISTORY, np.int32),)), spec, 64, 0)
        batch = device_batch(lay_out([[[lesson]]], Layout(1, 128, 64, 32, memory=True)))
        found = np.asarray(score(base, bank, batch))[64 + count - 1 : 64 + len(tokens) - 1]
        assert found.tolist() == np.asarray(row["logprobs"], np.float32).tolist(), name


def test_a_server_keeps_what_a_batch_keeps_and_begins_with_it_at_once(config, tmp_path):
    def body(model: str, prompt: list[int], **more: Any) -> dict[str, Any]:
        common = {"max_tokens": 3, "temperature": 0, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
        return {"model": model, "prompt": prompt, **common, **more}

    with serving(config, tmp_path, "--http.poll", "600") as address, httpx.Client(base_url=address, timeout=120) as ask:
        first = ask.post("/v1/completions", json=body("messages", HISTORY, remember="zoe/notes", max_tokens=1)).json()
        assert first["remembered"] == "zoe/notes@1"
        assert "remembered" not in ask.post("/v1/completions", json=body("zoe/notes", QUERY)).json()
        more = body("zoe/notes", QUERY, remember="zoe/notes", max_tokens=1, stream=True)
        events = [line for line in ask.post("/v1/completions", json=more).text.splitlines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["remembered"] == "zoe/notes@2"
        answered = ask.post("/v1/completions", json=body("zoe/notes", QUERY, writes="none")).json()
        wrong = ask.post("/v1/completions", json=body("alice", QUERY, remember="zoe/notes"))
        taken = ask.post("/v1/completions", json=body("messages", QUERY, remember="alice"))
    assert answered["model"] == "zoe/notes@2"
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "remember")
    assert (taken.status_code, taken.json()["error"]["code"]) == (422, "wrong_spec")
    served(config, tmp_path / "one", keeps("messages", remember="yan/notes"))
    served(config, tmp_path / "two", keeps("yan/notes", prompt=QUERY, remember="yan/notes"))
    catalog = Catalog.open(str(config.catalog), read_only=True)
    by_http, by_batch = (catalog.load(catalog.get(f"{who}/notes"))["memory"]["state"] for who in ("zoe", "yan"))
    assert by_http.tobytes() == by_batch.tobytes()
    row = served(config, tmp_path / "three", asks("yan/notes"))["yan/notes"]
    choice = answered["choices"][0]
    assert (choice["token_ids"], choice["logprobs"]["token_logprobs"]) == (row["tokens"], row["logprobs"])


def test_what_does_not_fit_is_told_to_the_request_alone(config, tmp_path):
    catalog = Catalog.open(str(config.catalog))
    state = {"memory": {"state": np.zeros((2, 8, 8), np.float32)}}
    spec = replace(MEMORY, method="delta_state", over="tokens@1")
    commit(catalog, "foreign", state, spec, "sha256:" + "0" * 64)
    commit(catalog, "lost", state, replace(spec, over="nobody@1"), catalog.get("tokens").base)
    commit(catalog, "other", state, replace(spec, over="messages@1"), catalog.get("tokens").base)
    rows = served(
        config,
        tmp_path / "wrong",
        *(asks(name) for name in ("foreign", "lost", "other")),
        {"id": "plain", "prompt": QUERY, "policy": "alice", "remember": "amy/plain"},
        keeps("tokens", id="two", n=2),
        asks("tokens"),
    )
    errors = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert "belongs to base sha256:000" in errors["foreign"]["message"]
    assert errors["lost"]["type"] == "unknown_policy"
    assert "is over messages@1, whose memory is another" in errors["other"]["message"]
    assert "field 'remember': revision alice@1 has no memory" in errors["plain"]["message"]
    assert "field 'remember'" in errors["two"]["message"]
    assert set(errors) == {"foreign", "lost", "other", "plain", "two"}
    none = served(replace(config, others=()), tmp_path / "none", asks("tokens"))["tokens"]["error"]
    assert "for which the bank has no room (others)" in none["message"]
