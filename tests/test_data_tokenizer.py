"""The shipped tokenizer, its chat template, and clear errors for files that are none."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError

ASSETS = Path(__file__).parents[1] / "assets" / "base"
TOKENIZER = Tokenizer.load(ASSETS)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4 "},
]
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / name, tmp_path / name)
    return tmp_path


def change(folder: Path, **fields: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_shipped_tokenizer() -> None:
    assert TOKENIZER.vocab_size == 4096
    assert TOKENIZER.decode([TOKENIZER.eos]) == "<|endoftext|>"
    assert (ASSETS / "tokenizer.json").stat().st_size < 350_000
    code = Path(json.__file__).read_text(encoding="utf-8")
    assert len(code.encode()) / len(TOKENIZER.encode(code)) > 3.0


@given(st.text())
def test_any_text_survives_and_nothing_is_added(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.text(max_size=30)))
def test_a_batch_gives_the_ids_of_each(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_its_json_is_the_tokenizer_again(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json())
    shutil.copy(ASSETS / "tokenizer_config.json", tmp_path)
    assert Tokenizer.load(tmp_path).digest == TOKENIZER.digest


def test_file_and_directory_load_alike() -> None:
    assert Tokenizer.load(ASSETS / "tokenizer.json").digest == TOKENIZER.digest


def test_special_tokens_in_text_are_the_tokens() -> None:
    assert TOKENIZER.encode("<|im_end|>") == [TOKENIZER.token_id("<|im_end|>")]
    assert TOKENIZER.token_id("<|nothing|>") is None


def test_chat_is_chatml() -> None:
    assert TOKENIZER.decode(TOKENIZER.chat(CHAT[:2], add_generation_prompt=True)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_segments_learn_what_the_assistant_writes() -> None:
    assert [text for text, learned in TOKENIZER.chat_segments(CHAT) if learned] == ["2<|im_end|>", "4 <|im_end|>"]


@given(MESSAGES)
def test_segments_are_the_conversation(messages: list[dict[str, str]]) -> None:
    segments = TOKENIZER.chat_segments(messages)
    assert "".join(text for text, _ in segments) == TOKENIZER.render(messages, add_generation_prompt=False)
    assert sum(learned for _, learned in segments) == sum(message["role"] == "assistant" for message in messages)


def test_digest_names_what_decides_the_ids(copy: Path) -> None:
    change(copy, model_max_length=7)
    assert Tokenizer.load(copy).digest == TOKENIZER.digest
    change(copy, chat_template="{{ messages[0]['content'] }}")
    assert Tokenizer.load(copy).digest != TOKENIZER.digest


def test_a_template_file_wins_over_the_config(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert Tokenizer.load(copy).render(CHAT[:2], False) == "[Be brief.][1 + 1?]"


def test_a_template_that_rewrites_history_is_refused_for_training(copy: Path) -> None:
    change(copy, chat_template="{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(PefxError, match="rewrites"):
        Tokenizer.load(copy).chat_segments(CHAT)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "broken chat template"),
        ("{{ raise_exception('no system turns') }}", "refuses the messages: no system turns"),
        ("{{ messages.clear() }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages"),
    ],
)
def test_bad_templates(copy: Path, template: str, message: str) -> None:
    change(copy, chat_template=template)
    with pytest.raises(PefxError, match=message):
        Tokenizer.load(copy).render(CHAT, False)


def test_no_template_is_an_error_for_chats_only(copy: Path) -> None:
    change(copy, chat_template=None)
    tokenizer = Tokenizer.load(copy)
    assert tokenizer.encode("a")
    with pytest.raises(PefxError, match="has no chat_template"):
        tokenizer.chat(CHAT)


def test_bad_files(copy: Path) -> None:
    with pytest.raises(PefxError, match="no such tokenizer file"):
        Tokenizer.load(copy / "none")
    change(copy, eos_token="<|stop|>")
    with pytest.raises(PefxError, match=r"tokenizer_config\.json: field 'eos_token' is '<|stop|>'"):
        Tokenizer.load(copy)
    (copy / "tokenizer_config.json").write_text("{")
    with pytest.raises(PefxError, match=r"tokenizer_config\.json: broken JSON"):
        Tokenizer.load(copy)
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(PefxError, match=r"tokenizer_config\.json: no such file"):
        Tokenizer.load(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(PefxError, match="not a tokenizer"):
        Tokenizer.load(copy)
