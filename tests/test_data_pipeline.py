"""Streams are functions of data, seed and position; a share is filled in order and never overfilled."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.config import DataConfig, UserConfig
from pefx.data.formats import Example
from pefx.data.pipeline import UserStream, heldout_examples, heldout_set, train_stream, user_seed
from pefx.data.source import ExampleSource
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.packing import whole_pages

TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "assets" / "base")
DATA = DataConfig(sequence_length=32, tokens_per_user=64, heldout_tokens=100)


def write(folder: Path, name: str = "train", lines: int = 40) -> str:
    path = folder / f"{name}.jsonl"
    rows = [{"text": f"{name} {index}: " + "word " * (index % 37)} for index in range(lines)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ExampleSource:
    return ExampleSource(write(tmp_path_factory.mktemp("data")), TOKENIZER, DATA.sequence_length)


def ids(examples: list[Example]) -> list[list[int]]:
    return [example.tokens.tolist() for example in examples]


@given(position=st.integers(0, 500), pages=st.integers(1, 8), page_size=st.sampled_from([4, 8, 16, 32]))
def test_a_share_is_full_in_order_and_never_overfull(
    source: ExampleSource, position: int, pages: int, page_size: int
) -> None:
    stream = UserStream(source, 1)
    budget = whole_pages(32, page_size) * page_size + (pages - 1) * page_size
    examples, after = stream.take(position, budget, page_size)
    used = sum(whole_pages(example.rows, page_size) for example in examples) * page_size
    assert len(examples) == after - position >= 1
    assert used <= budget
    assert ids(examples) == ids([stream[index] for index in range(position, after)])
    assert used + whole_pages(stream[after].rows, page_size) * page_size > budget


def test_an_epoch_is_every_example_once_in_an_order_of_its_own(source: ExampleSource) -> None:
    stream = UserStream(source, 1)
    size = len(source)
    everything = sorted(ids([source[index] for index in range(size)]))
    epochs = [ids([stream[epoch * size + index] for index in range(size)]) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@given(cut=st.integers(0, 20))
def test_a_stream_goes_on_from_any_position(source: ExampleSource, cut: int) -> None:
    def run(stream: UserStream, position: int, steps: int) -> tuple[list[list[int]], int]:
        seen: list[list[int]] = []
        for _ in range(steps):
            examples, position = stream.take(position, 64, 16)
            seen += ids(examples)
        return seen, position

    whole, end = run(UserStream(source, 5), 0, 20)
    first, position = run(UserStream(source, 5), 0, cut)
    second, resumed_end = run(UserStream(source, 5), position, 20 - cut)
    assert first + second == whole
    assert resumed_end == end


def test_users_do_not_shift_each_other(tmp_path: Path) -> None:
    users = [UserConfig(name, write(tmp_path, name)) for name in ("ada", "bob", "eve")]

    def orders(members: list[UserConfig]) -> dict[str, list[list[int]]]:
        streams = {user.name: train_stream(user, DATA, TOKENIZER) for user in members}
        positions = dict.fromkeys(streams, 0)
        seen: dict[str, list[list[int]]] = {name: [] for name in streams}
        for _ in range(10):
            for name, stream in streams.items():
                examples, positions[name] = stream.take(positions[name], 64, 16)
                seen[name] += ids(examples)
        return seen

    mixed = orders(users)
    for user in users:
        assert orders([user])[user.name] == mixed[user.name]


def test_seeds(tmp_path: Path, source: ExampleSource) -> None:
    user = UserConfig("ada", write(tmp_path))
    own = train_stream(user, DATA, TOKENIZER)
    assert own.fingerprint == UserStream(source, user_seed(0, "ada")).fingerprint
    others = [
        train_stream(replace(user, name="bob"), DATA, TOKENIZER),
        train_stream(user, replace(DATA, seed=1), TOKENIZER),
        train_stream(replace(user, seed=3), DATA, TOKENIZER),
    ]
    order = ids([own[index] for index in range(20)])
    for other in others:
        assert other.fingerprint != own.fingerprint
        assert ids([other[index] for index in range(20)]) != order
    with pytest.raises(PefxError, match="the data seed is -1"):
        UserStream(source, -1)


def test_a_share_too_small_for_the_longest_example_is_an_error(source: ExampleSource) -> None:
    with pytest.raises(PefxError, match=r"sequence_length 32 occupies 40 tokens in pages of 20, more than .* 39"):
        UserStream(source, 0).take(0, 39, 20)


@given(tokens=st.integers(1, 2000))
def test_heldout_is_bounded_by_its_tokens(source: ExampleSource, tokens: int) -> None:
    chosen = heldout_examples(source, tokens)
    assert chosen
    assert len(chosen) == 1 or sum(example.rows for example in chosen) <= tokens
    assert ids(chosen) == ids(heldout_examples(source, 10**9))[: len(chosen)]


def test_heldout_is_drawn_over_the_whole_file_whatever_the_seed(tmp_path: Path, source: ExampleSource) -> None:
    user = UserConfig("ada", write(tmp_path), heldout=source.path)
    chosen = heldout_set(user, DATA, TOKENIZER)
    assert ids(chosen) == ids(heldout_set(replace(user, name="bob"), replace(DATA, seed=9), TOKENIZER))
    position = {tuple(source[index].tokens): index for index in range(len(source))}
    places = [position[tuple(example.tokens)] for example in chosen]
    assert np.ptp(places) > len(source) / 3
    assert len(ids(heldout_examples(source, 10**9))) == len(source)
    assert heldout_set(replace(user, heldout=None), DATA, TOKENIZER) == []


@pytest.mark.parametrize("field", ["train", "heldout"])
def test_errors_name_the_user_the_file_and_the_line(tmp_path: Path, field: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a b"}\n{"prompt": 1, "completion": "x"}\n')
    user = replace(UserConfig("ada", write(tmp_path)), **{field: str(bad)})
    read = train_stream if field == "train" else heldout_set
    with pytest.raises(PefxError, match=r"^user 'ada': .*bad\.jsonl: line 2: field 'prompt' must be a string"):
        read(user, DATA, TOKENIZER)
    bad.unlink()
    with pytest.raises(PefxError, match=r"^user 'ada': .*bad\.jsonl: no such file"):
        read(user, DATA, TOKENIZER)
