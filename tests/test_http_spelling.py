"""Tokens as they are shown."""

from pefx.http.spelling import Spelling
from tests.http_fakes import Letters

SPELLING = Spelling(Letters())
HALF = "é".encode()[0]  # the first of two bytes of one character


def test_completions() -> None:
    found = SPELLING.completion([97, HALF, 98], [None, -1.0, -2.0], [[(97, -0.5), (98, -1.0)], [], []], 3)
    assert found.tokens == ["a", "\ufffd", "b"]
    assert found.text_offset == [3, 4, 5]
    assert found.token_logprobs == [None, -1.0, -2.0]
    assert found.top_logprobs == [{"a": -0.5, "b": -1.0}, None, None]


def test_of_two_that_look_the_same_the_likelier_is_kept() -> None:
    found = SPELLING.completion([97], [-1.0], [[(HALF, -0.5), (HALF + 1, -3.0)]], 0)
    assert found.top_logprobs == [{"\ufffd": -0.5}]


def test_chats() -> None:
    found = SPELLING.chat([97, HALF], [-1.0, -2.0], [[(97, -1.0)], []]).content
    assert (found[0].token, found[0].bytes, found[0].logprob) == ("a", [97], -1.0)
    assert (found[1].token, found[1].bytes) == ("\ufffd", None)
    assert found[0].top_logprobs[0].bytes == [97]
    assert SPELLING.chat([97], [-1.0], ()).content[0].top_logprobs == []
