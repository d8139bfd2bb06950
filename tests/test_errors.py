"""PefxError carries its line and a kind that an answer row can name."""

from pefx.errors import RETRYABLE, PefxError


def test_the_message_is_what_was_said():
    assert str(PefxError("a.jsonl:3: broken JSON")) == "a.jsonl:3: broken JSON"


def test_the_kind_is_bad_input_unless_said_otherwise():
    assert PefxError("x").kind == "invalid_input"
    assert PefxError("x", "unknown_policy").kind == "unknown_policy"
    assert PefxError("y").kind == "invalid_input"


def test_only_what_passes_by_itself_is_retryable():
    assert PefxError("x", "busy").retryable
    assert not PefxError("x").retryable
    assert PefxError("x").kind not in RETRYABLE
