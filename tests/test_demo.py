"""The demo's claims are computed: a planted difference is found, a claim that fails is an exit code."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from pefx import demo
from pefx.config import AdapterSpec, DataConfig, ModelConfig, OptimizerConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.model import Base

TOKENIZER = Path(__file__).parents[1] / "assets" / "base" / "tokenizer.json"
MODEL = ModelConfig(
    hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, dense_hidden=32, expert_hidden=16, experts=4,
    experts_per_token=2, context=128,
)  # fmt: skip


def make_config(world: Path) -> TrainConfig:
    users = []
    for name in ("ann", "bob"):
        files = {}
        for part, numbers in (("train", range(40)), ("heldout", range(50, 60))):
            lines = [f"class {name.title()}{i}({name}): {name}_{i} = {name}({i})" for i in numbers]
            files[part] = str(world / f"{name}_{part}.jsonl")
            Path(files[part]).write_text("".join(json.dumps({"text": "\n".join(lines)}) + "\n"))
        users.append(UserConfig(name, **files))
    save_base(Base(MODEL, nnx.Rngs(3)), world / "base", TOKENIZER)
    return TrainConfig(
        name="demo",
        output=str(world / "out"),
        base=str(world / "base"),
        catalog=str(world / "catalog"),
        users=tuple(users),
        adapter=AdapterSpec(rank=4),
        optimizer=OptimizerConfig(learning_rate=2e-2),
        data=DataConfig(sequence_length=96, tokens_per_user=96, users_per_step=2, heldout_tokens=192),
        steps=12,
    )


@pytest.mark.slow
def test_from_text_to_served_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path)
    monkeypatch.setattr(demo, "load_config", lambda *_: config)
    monkeypatch.setattr(demo, "LEAST_TOKENS", 300)
    assert demo.main() == 0
    shown = capsys.readouterr().out
    assert "train vs serve: 0 mismatches of" in shown
    assert "beats the base for 2 of 2 users" in shown
    for name in ("curves.png", "heatmap.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")

    # The comparison can fail: one served number is moved by one unit in the last place.
    world = demo.read_back(config)
    requests, answers = demo.serve(world)
    wrong = float(np.nextafter(np.float32(answers[1]["logprobs"][3]), np.float32(-100)))
    answers[1]["logprobs"][3] = wrong
    out = io.StringIO()
    assert not demo.compare(world, requests, answers, Console(file=out))
    assert "train vs serve: 1 mismatches of" in out.getvalue()
    monkeypatch.setattr(demo, "LEAST_TOKENS", 100_000)
    assert demo.main() == 1
    assert "too few tokens were compared" in capsys.readouterr().out


def test_a_step_without_update_names_every_slot() -> None:
    hyper = demo.hyper_without_update(3)
    assert np.asarray(hyper.slots).tolist() == [0, 1, 2]
    assert not np.asarray(hyper.apply).any()


def test_data_is_built_only_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    monkeypatch.setattr(demo.stdlib_text, "build", built.append)
    path = tmp_path / "demo" / "users" / "xml" / "train.jsonl"
    config = TrainConfig(name="demo", output="out", users=(UserConfig("xml", str(path)),))
    demo.build_data(config)
    assert built == [tmp_path / "demo"]
    path.parent.mkdir(parents=True)
    path.touch()
    demo.build_data(config)
    assert len(built) == 1


def test_a_config_without_catalog_is_refused() -> None:
    with pytest.raises(PefxError, match="needs 'base' and 'catalog'"):
        demo.read_back(TrainConfig(name="demo", output="out"))
