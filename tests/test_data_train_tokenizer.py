"""Training of the tokenizer: every text survives it, indentation is cheap, and the written files load."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.data.tokenizer import Tokenizer
from pefx.data.train_tokenizer import SPECIAL_TOKENS, main, train
from pefx.errors import PefxError

CODE = "\n".join(
    f"def name_{word}(self):\n        return self.{word}  # the {word}\n" for word in ("one", "two", "six")
)
TINY = train(iter([CODE] * 20), 320)


def corpus(folder: Path, copies: int = 20) -> Path:
    path = folder / "base_train.jsonl"
    path.write_text("".join(json.dumps({"text": CODE}) + "\n" for _ in range(copies)))
    return path


@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert TINY.decode(TINY.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_come_first() -> None:
    assert [TINY.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]


def test_a_line_break_and_its_indentation_are_one_token_and_the_word_keeps_its_blank() -> None:
    pieces = [TINY.decode([token]) for token in TINY.encode("self):\n        return").ids]
    assert "\n       " in pieces
    assert pieces[-1].startswith(" ")


def test_files_load_and_bytes_per_token_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(corpus(tmp_path), tmp_path / "out", vocab_size=300, context=128)
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.vocab_size == 300
    assert tokenizer.eos == 0
    assert tokenizer.render([{"role": "user", "content": "hi"}], True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = 20 * len(tokenizer.encode(CODE))
    size = 20 * len(CODE.encode())
    assert f"{size:,} bytes, {tokens:,} tokens, {size / tokens:.3f} bytes per token" in capsys.readouterr().out


def test_training_repeats(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    for name in ("a", "b"):
        main(path, tmp_path / name, vocab_size=300)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_too_little_text_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match="too little text for 4096 entries"):
        main(corpus(tmp_path, copies=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_corpus_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match=r"no such file; make it with python -m pefx\.data\.stdlib_text"):
        main(tmp_path / "none.jsonl", tmp_path)
