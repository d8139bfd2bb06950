"""Every token is a target once an epoch, in an order that a position names."""

import json
from pathlib import Path

import numpy as np
import pytest

from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.training.windows import Windows

TOKENIZER = Path(__file__).parents[1] / "assets" / "base"


def make(tmp_path: Path, texts: list[str], length: int) -> Windows:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Windows(str(path), Tokenizer.load(TOKENIZER), length)


def test_windows_cover_the_text_and_share_one_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    texts = [f"def function_{i}(): return {i}" for i in range(300)]
    windows = make(tmp_path, texts, 16)
    whole = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos]]
    assert windows.tokens.tolist() == whole
    assert len(windows) == (len(whole) - 1) // 16
    assert np.concatenate([windows[i][1:] for i in range(len(windows))]).tolist() == whole[1 : 16 * len(windows) + 1]
    assert windows[0][-1] == windows[1][0]
    assert len(windows[5]) == 17


def test_an_order_is_a_function_of_seed_and_position(tmp_path: Path) -> None:
    windows = make(tmp_path, [f"x = {i}" for i in range(200)], 8)
    order, again, other = windows.shuffled(3), windows.shuffled(3), windows.shuffled(4)
    count = len(windows)
    epoch = [tuple(order[i]) for i in range(count)]
    assert sorted(epoch) == sorted(tuple(windows[i]) for i in range(count))
    assert [tuple(again[i]) for i in reversed(range(count))] == epoch[::-1]
    assert [tuple(order[count + i]) for i in range(count)] != epoch != [tuple(other[i]) for i in range(count)]


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(PefxError, match=r"texts\.jsonl: \d+ tokens of text are too few for one window of 64"):
        make(tmp_path, ["short"], 64)
