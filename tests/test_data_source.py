"""Random access to the examples of a file: all of them, the same from cache or from disk, and clear refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from pefx.data.source import ExampleSource
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError

TOKENIZER = Tokenizer.load(Path(__file__).parents[1] / "assets" / "base")
ROWS = [
    {"text": "The quick brown fox jumps over the lazy dog. " * 9},
    {"prompt": "1 + 1 = ", "completion": "2"},
    {"prompt": "too long " * 90, "completion": "yes"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"text": ""},
    {"text": "short"},
]


def write(folder: Path, rows: list[dict], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def same(left: ExampleSource, right: ExampleSource) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(left[i].tokens, right[i].tokens) and np.array_equal(left[i].loss, right[i].loss)
        for i in range(len(left))
    )


def test_every_usable_line_is_there_and_the_others_are_counted(tmp_path: Path) -> None:
    source = ExampleSource(write(tmp_path, ROWS), TOKENIZER, 32)
    assert source.left_out == 2
    examples = [source[index] for index in range(len(source))]
    assert all(1 <= example.rows <= 32 for example in examples)
    assert source.tokens == sum(example.rows for example in examples)
    windows = examples[: len(source) - 3]
    assert len(windows) > 2
    text = TOKENIZER.decode([int(t) for part in windows for t in part.tokens[int(part is not windows[0]) :]])
    assert text == ROWS[0]["text"] + "<|endoftext|>"
    ends = [TOKENIZER.decode(example.tokens[example.loss].tolist()) for example in examples[-3:-1]]
    assert ends == ["2<|endoftext|>", "hello<|im_end|>"]


@pytest.mark.parametrize("index", [-1, 3])
def test_examples_beyond_the_file_are_errors(tmp_path: Path, index: int) -> None:
    source = ExampleSource(write(tmp_path, ROWS[-1:] * 3), TOKENIZER, 32)
    with pytest.raises(IndexError, match=f"example {index} of 3"):
        source[index]


@pytest.mark.parametrize("cache_tokens", [0, 50])
def test_a_small_cache_changes_nothing(tmp_path: Path, cache_tokens: int) -> None:
    path = write(tmp_path, ROWS * 3)
    small = ExampleSource(path, TOKENIZER, 32, cache_tokens)
    assert same(small, ExampleSource(path, TOKENIZER, 32))
    assert small._cached <= cache_tokens


def test_batches_of_lines_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ROWS * 3)
    whole = ExampleSource(path, TOKENIZER, 32)
    monkeypatch.setattr("pefx.data.source.BATCH_BYTES", 100)
    assert same(ExampleSource(path, TOKENIZER, 32), whole)


def test_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    first = ExampleSource(write(tmp_path, ROWS), TOKENIZER, 32)
    assert ExampleSource(write(tmp_path, ROWS, "other.jsonl"), TOKENIZER, 32).fingerprint == first.fingerprint
    assert ExampleSource(write(tmp_path, ROWS[::-1], "third.jsonl"), TOKENIZER, 32).fingerprint != first.fingerprint
    assert ExampleSource(first.path, TOKENIZER, 33).fingerprint != first.fingerprint
    other = Tokenizer(TOKENIZER._backend, TOKENIZER.eos + 1, None, "tokenizer.json")
    texts = write(tmp_path, ROWS[:1], "texts.jsonl")
    assert ExampleSource(texts, other, 32).fingerprint != ExampleSource(texts, TOKENIZER, 32).fingerprint


def test_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    with open(path, "a") as file:
        file.write('\n{"text": \n')
    with pytest.raises(PefxError, match=r"data\.jsonl: line 8: broken JSON"):
        ExampleSource(path, TOKENIZER, 32)


def test_no_usable_line(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[2], ROWS[4]])
    with pytest.raises(PefxError, match=r"data\.jsonl: no usable line: each of its 2 .*\(32 tokens\)"):
        ExampleSource(path, TOKENIZER, 32)


def test_no_length(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match="sequence_length is 0"):
        ExampleSource(write(tmp_path, ROWS), TOKENIZER, 0)


def test_a_file_that_changes_in_mid_run_is_noticed(tmp_path: Path) -> None:
    source = ExampleSource(write(tmp_path, ROWS), TOKENIZER, 32, cache_tokens=0)
    write(tmp_path, ROWS[::-1] + ROWS)
    with pytest.raises(PefxError, match="changed while it was in use"):
        source[0]
