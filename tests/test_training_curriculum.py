"""Lessons from text: the same stream whoever else trains, a loss of cross entropy, nats per token held out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pefx.config import AdapterSpec, DataConfig, TrainConfig, UserConfig
from pefx.data.pipeline import train_stream
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.losses.rows import NUMBER
from pefx.training.curriculum import Curriculum, Texts
from pefx.training.sessions import make_sessions

ROOT = Path(__file__).parents[1]
TOKENIZER = Tokenizer.load(ROOT / "assets" / "base" / "tokenizer.json")


@pytest.fixture(name="config")
def make_config(tmp_path: Path) -> TrainConfig:
    for name in ("ann", "bob"):
        lines = [json.dumps({"prompt": f"{name} {i}:", "completion": " done" * (1 + i % 3)}) for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    users = tuple(UserConfig(name, str(tmp_path / f"{name}.jsonl")) for name in ("ann", "bob"))
    return TrainConfig(
        name="run",
        output="out",
        users=(users[0], UserConfig("bob", users[1].train, heldout=users[1].train)),
        data=DataConfig(sequence_length=32, tokens_per_user=64),
    )


def test_lessons_are_those_of_the_users_stream(config: TrainConfig) -> None:
    texts = Texts(config, make_sessions(config), TOKENIZER)
    assert isinstance(texts, Curriculum)
    for index, user in enumerate(config.users):
        stream = train_stream(user, config.data, TOKENIZER)
        assert texts.fingerprint(index) == stream.fingerprint
        assert texts.measure(index) == "nats_per_token"
        position = 0
        for _ in range(3):
            wanted, after = stream.take(position, 64, 32)
            lessons, position = texts.take(index, position, row=index)
            assert position == after
            for one, example in zip(lessons, wanted, strict=True):
                np.testing.assert_array_equal(one.tokens, example.tokens[:-1])
                assert one.slot == index
            weights = sum(example.loss.sum() for example in wanted)
            assert texts.numbers(index, lessons) == {"loss": NUMBER["cross_entropy"], "denominator": weights}


def test_only_what_is_held_out_is_measured(config: TrainConfig) -> None:
    texts = Texts(config, make_sessions(config), TOKENIZER)
    assert not texts.heldout(0)
    assert texts.heldout(1)
    assert texts.evaluate([0], None) == {}
    assert texts.host(0) is None


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_history_is_refused_where_nothing_reads_it(config: TrainConfig, tmp_path: Path, part: str) -> None:
    path = tmp_path / "told.jsonl"
    path.write_text(json.dumps({"history": ["a b"], "prompt": "c", "completion": " d"}) + "\n")
    ann = replace(config.users[0], **{part: str(path)})
    memory = AdapterSpec("delta_mem", targets=("memory",))
    without = replace(config, users=(ann,))
    with pytest.raises(PefxError, match=r"told\.jsonl: has lines with a history, which only an adapter of method"):
        Texts(without, make_sessions(without), TOKENIZER)
    reads = replace(config, users=(replace(ann, adapter=memory),))
    texts = Texts(reads, make_sessions(reads), TOKENIZER)
    lessons = texts.heldout(0) if part == "heldout" else texts.take(0, 0, 0)[0]
    assert len(lessons[0].before) == 1
