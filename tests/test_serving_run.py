"""pefx.serving.run: the whole path from files to a file, on a tiny base; and SIGKILL in its midst."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pefx.config import ServeConfig
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.serving.run import serve_file
from tests.serving_small import MODEL, RANKS, TOKENIZER, commit, make_base, make_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return make_config(tmp_path_factory.mktemp("small"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mixed(count: int, max_tokens: int = 12) -> list[dict[str, Any]]:
    who = [None, *RANKS]
    return [
        {
            "id": f"r{i}",
            "policy": who[i % len(who)],
            "prompt": f"def f{i}(x):\n    return " * (1 + i % 3),
            "max_tokens": 1 + (5 * i) % max_tokens,
            "temperature": i % 3 / 2,
            "logprobs": True,
            "prompt_logprobs": i % 2 == 0,
        }
        for i in range(count)
    ]


def test_mixed_batch(config: ServeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompt = list(range(10, 40))
    rows = [
        {"id": str(who), "policy": who, "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": True}
        for who in [None, *RANKS]
    ]
    rows += [
        {"id": "scored", "prompt": prompt, "max_tokens": 0, "prompt_logprobs": True},
        {"id": "nobody", "policy": "nobody", "prompt": "x"},
        {"id": "old", "policy": "alice", "revision": 2, "prompt": "x"},
        {"id": "long", "prompt": [1] * MODEL.context},
        {"id": "odd", "prompt": [MODEL.vocab_size]},
        {"id": "full", "prompt": [1] * (MODEL.context - 2), "max_tokens": 50, "seed": 1},
    ]
    out = tmp_path / "out.jsonl"
    assert serve_file(config, write(tmp_path / "in.jsonl", rows), out) == 0
    answers = {answer["id"]: answer for answer in read(out)}
    assert list(answers) == [row["id"] for row in rows]
    greedy = [answers[str(who)] for who in [None, *RANKS]]
    tokenizer = Tokenizer.load(TOKENIZER)
    for who, answer in zip([None, *RANKS], greedy, strict=True):
        assert (answer["policy"], answer["revision"]) == (who, None if who is None else 1)
        assert answer["text"] == tokenizer.decode([t for t in answer["tokens"] if t != tokenizer.eos])
        assert len(answer["logprobs"]) == len(answer["tokens"])
        assert answer["prompt_logprobs"] is None
    assert len({json.dumps(answer["logprobs"]) for answer in greedy}) == len(greedy)  # each its own adapter
    assert answers["scored"]["tokens"] == []
    assert answers["scored"]["prompt_logprobs"][0] is None
    assert all(value < 0 for value in answers["scored"]["prompt_logprobs"][1:])
    assert len(answers["scored"]["prompt_logprobs"]) == len(prompt)
    assert len(answers["full"]["tokens"]) == 2
    kinds = {id: answers[id]["error"]["type"] for id in ("nobody", "old", "long", "odd")}
    assert kinds == {
        "nobody": "unknown_policy",
        "old": "unknown_revision",
        "long": "prompt_too_long",
        "odd": "token_out_of_range",
    }
    assert "in.jsonl line 7" in answers["nobody"]["error"]["message"]
    told = capsys.readouterr().err
    assert f"{len(rows)} answers, 4 of them errors" in told
    assert "4 adapters; this start: slots 0 hits, 4 loads, " in told
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert (summary["requests"], summary["starts"], summary["adapters"]) == (len(rows), 1, 4)
    assert summary["generated_tokens"] == sum(len(answer.get("tokens", ())) for answer in answers.values())
    assert "4 reads of" in told
    before = out.read_bytes()
    assert serve_file(config, tmp_path / "in.jsonl", out) == 0  # complete: nothing is done again
    assert "complete already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_answers_do_not_depend_on_how_they_were_batched(config: ServeConfig, tmp_path: Path):
    requests = write(tmp_path / "in.jsonl", mixed(20))
    for name, step_tokens in (("wide", config.step_tokens), ("narrow", 5)):
        serve_file(replace(config, step_tokens=step_tokens), requests, tmp_path / name)
    assert (tmp_path / "wide").read_bytes() == (tmp_path / "narrow").read_bytes()


def test_base_alone_needs_no_catalog(config: ServeConfig, tmp_path: Path):
    rows = [{"id": "a", "prompt": "x", "max_tokens": 2}, {"id": "b", "policy": "alice", "prompt": "x"}]
    serve_file(replace(config, catalog=None), write(tmp_path / "in.jsonl", rows), tmp_path / "out")
    answers = read(tmp_path / "out")
    assert answers[0]["policy"] is None
    assert answers[1]["error"]["type"] == "unknown_policy"


def test_latest_is_the_newest_and_a_revision_stays_served(config: ServeConfig, tmp_path: Path):
    here = make_config(tmp_path)
    row = {"policy": "alice", "prompt": "def f(x):", "temperature": 0, "logprobs": True}
    serve_file(here, write(tmp_path / "one", [{"id": "a", **row}]), tmp_path / "out1")
    commit(tmp_path / "catalog", make_base(tmp_path / "base"), "alice", seed=1)
    rows = [{"id": "a", **row, "revision": 1}, {"id": "b", **row}]
    serve_file(here, write(tmp_path / "two", rows), tmp_path / "out2")
    (first,), (old, new) = read(tmp_path / "out1"), read(tmp_path / "out2")
    assert old == first
    assert (new["revision"], new["logprobs"] != old["logprobs"]) == (2, True)


def test_adapter_of_another_base_is_never_served(config: ServeConfig, tmp_path: Path):
    here = make_config(tmp_path)
    commit(tmp_path / "catalog", "sha256:" + "0" * 64, "stranger", seed=0)
    rows = [{"id": "a", "policy": "stranger", "prompt": "x"}, {"id": "b", "policy": "bob", "prompt": "x"}]
    serve_file(here, write(tmp_path / "in.jsonl", rows), tmp_path / "out")
    answers = read(tmp_path / "out")
    assert answers[0]["error"]["type"] == "wrong_base"
    assert answers[1]["policy"] == "bob"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"targets": ("nothing",)}, "'nothing' is not known"),
        ({"base": "nowhere"}, "nowhere"),
        ({"catalog": "nowhere"}, "nowhere"),
    ],
)
def test_bad_config_is_refused_before_anything_is_written(
    config: ServeConfig, tmp_path: Path, change: dict[str, Any], part: str
):
    requests = write(tmp_path / "in.jsonl", [{"id": "a", "prompt": "x"}])
    with pytest.raises(PefxError, match=part):
        serve_file(replace(config, **change), requests, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_output_of_another_run_is_refused_untouched(config: ServeConfig, tmp_path: Path):
    out = tmp_path / "out"
    serve_file(config, write(tmp_path / "in.jsonl", mixed(2)), out)
    before = out.read_bytes()
    with pytest.raises(PefxError, match=r"config\.seed was 0, now 1"):
        serve_file(replace(config, seed=1), tmp_path / "in.jsonl", out)
    with pytest.raises(PefxError, match="requests"):
        serve_file(config, write(tmp_path / "in.jsonl", mixed(3)), out)
    assert out.read_bytes() == before


PROGRAM = """
import sys
from pathlib import Path
from pefx.config import MeshConfig, ServeConfig
from pefx.serving.run import serve_file
names = {"MeshConfig": MeshConfig, "ServeConfig": ServeConfig}
sys.exit(serve_file(eval(sys.argv[1], names), Path(sys.argv[2]), Path(sys.argv[3])))
"""


def answers_in(log: Path) -> int:
    return log.read_bytes().count(b'["answer"') if log.exists() else 0


@pytest.mark.slow
def test_killed_three_times_gives_the_bytes_of_an_unbroken_run(config: ServeConfig, tmp_path: Path):
    count = 200
    requests = write(tmp_path / "in.jsonl", [*mixed(count - 1, 8), {"id": "bad", "policy": "nobody", "prompt": "x"}])
    out, log = tmp_path / "out", tmp_path / "out.partial"
    command = [sys.executable, "-c", PROGRAM, repr(config), str(requests), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kept = []
    for _ in range(3):
        before = answers_in(log)
        with (tmp_path / "told").open("wb") as told, subprocess.Popen(command, env=environment, stderr=told) as process:
            while answers_in(log) < before + 25 and process.poll() is None:
                time.sleep(0.002)
            assert process.poll() is None, (tmp_path / "told").read_text()
            os.kill(process.pid, signal.SIGKILL)
        kept.append(answers_in(log))
        assert not out.exists()
    assert kept == sorted(kept)
    assert kept[-1] < count
    with log.open("ab") as file:
        file.write(b'["answer",7,{"id":"torn')  # what a kill in the midst of a write leaves
    assert serve_file(config, requests, out) == 0
    assert [answer["id"] for answer in read(out)] == [*(f"r{i}" for i in range(count - 1)), "bad"]
    assert serve_file(config, requests, tmp_path / "unbroken") == 0
    assert out.read_bytes() == (tmp_path / "unbroken").read_bytes()
