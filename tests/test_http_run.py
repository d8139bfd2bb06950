"""pefx.http.run: a server answers over HTTP what a batch answers, to the bit, and ends when it is asked to."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pefx.config import ServeConfig
from pefx.serving.run import serve_file
from tests.http_process import PATIENCE, serving
from tests.serving_small import RANKS, commit, make_config

TO_THE_BIT = True


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return make_config(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def address(config: ServeConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that looks at the catalog often, and checks what it answers."""
    more = ("--http.poll", "0.2", "--http.check-every", "2")
    with serving(config, tmp_path_factory.mktemp("config"), *more) as found:
        yield found


def requests() -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.8, "stop": ["e"]},
        {"temperature": 1.2, "presence_penalty": 0.5, "top_k": 50},
    ]
    policies = [None, *RANKS]
    return [
        {"id": f"r{i}", "policy": policies[i % 5], "prompt": f"def f{i}(", "max_tokens": 4 + i, "seed": i}
        | {"logprobs": True}
        | kinds[i % 3]
        for i in range(15)
    ]


def ask(address: str, config: ServeConfig, row: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in row.items() if name not in ("id", "policy")}
    body |= {"model": row["policy"] or Path(config.base).name, "logprobs": 1, "return_token_ids": True}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_over_http_and_by_batch_the_answers_are_the_same_bits(address: str, config: ServeConfig, tmp_path: Path):
    asked = requests()
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    assert serve_file(config, tmp_path / "in.jsonl", tmp_path / "out.jsonl") == 0
    batch = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found: dict[str, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda row=row: found.__setitem__(row["id"], ask(address, config, row)))
        for row in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for row, expected in zip(asked, batch, strict=True):
        choice = found[row["id"]]["choices"][0]
        assert choice["token_ids"] == expected["tokens"]
        assert choice["logprobs"]["token_logprobs"] == expected["logprobs"]
        assert choice["text"] == expected["text"]
        served = found[row["id"]]["model"]
        assert served == (f"{row['policy']}@1" if row["policy"] else Path(config.base).name)


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics", timeout=PATIENCE).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_answers_are_checked_and_no_bit_is_another(address: str, config: ServeConfig):
    for row in requests()[:6]:
        ask(address, config, row)
    assert metric(address, "pefx_audited_answers_total") > 0
    assert metric(address, "pefx_mismatched_answers_total") == 0


def test_a_revision_that_is_committed_is_served_without_a_restart(address: str, config: ServeConfig):
    asked = requests()[1] | {"policy": "bob"}
    assert ask(address, config, asked)["model"] == "bob@1"
    digest = httpx.get(f"{address}/v1/models/bob", timeout=PATIENCE).json()["base"]
    commit(Path(str(config.catalog)), digest, "bob", seed=9)
    for _ in range(200):
        if ask(address, config, asked)["model"] == "bob@2":
            break
    else:
        pytest.fail("the new revision was never served")
    assert ask(address, config, asked | {"policy": "bob@1"})["model"] == "bob@1"
