"""pefx.serving.generation: text that comes piece by piece is the text of the whole, and ends where it should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.generation import Detokenizer, Generation, Outcome

# Tokens of one to three bytes that cut characters in all places.
PIECES = [
    b"a",
    b"b ",
    b"\n",
    "é".encode()[:1],
    "é".encode()[1:],
    *[bytes([b]) for b in "→𝛿".encode()],
    "x→".encode()[:3],
]
PIECES += [b"\xff", b"\x80", b"\xe2\x82", b"\xacz", "\ufffd".encode(), b"", "→".encode(), b"stop", b"st", b"op"]
END = len(PIECES)


def decode(ids: list[int]) -> str:
    return b"".join(PIECES[i] for i in ids if i < END).decode("utf-8", errors="replace")


def ids_of(*pieces: bytes) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


@given(st.lists(st.integers(0, END), max_size=40))
def test_pieces_joined_are_the_whole(ids: list[int]):
    detokenizer = Detokenizer(decode)
    text = ""
    for index, token in enumerate(ids):
        text += detokenizer.push(token)
        assert decode(ids[: index + 1]).startswith(text)
    assert text + detokenizer.flush() == decode(ids)


def test_split_character_comes_whole():
    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(i) for i in ids_of(b"a", b"\xe2\x82", b"\xacz")] == ["a", "", "€z"]
    assert detokenizer.flush() == ""


def test_decoder_that_drops_a_leading_space():
    words = ["▁the", "▁cat", "s"]

    def spaced(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = Detokenizer(spaced)
    assert [detokenizer.push(i) for i in (0, 1, 2)] == ["the", " cat", "s"]


def generate(ids: list[int], max_tokens: int = 100, stop: tuple[str, ...] = ()) -> Generation:
    generation = Generation(decode, max_tokens, stop, frozenset([END]))
    for token in ids:
        if generation.finish_reason is not None:
            break
        generation.push(Outcome(token, -0.5))
    return generation


def test_length():
    generation = generate(ids_of(b"a", b"a", b"a"), max_tokens=2)
    assert (generation.text, generation.tokens, generation.finish_reason) == ("aa", [0, 0], "length")
    assert generation.logprobs == [-0.5, -0.5]
    with pytest.raises(RuntimeError, match="over"):
        generation.push(Outcome(0, 0.0))


def test_end_token_is_a_token_but_no_text():
    generation = generate([*ids_of(b"a"), END])
    assert (generation.text, generation.tokens, generation.finish_reason) == ("a", [0, END], "stop")


def test_end_token_as_the_last_allowed_one_is_a_stop():
    assert generate([END], max_tokens=1).finish_reason == "stop"


def test_no_tokens_wanted():
    assert generate([], max_tokens=0).finish_reason == "length"


def test_unfinished_character_at_the_end_is_shown_as_such():
    assert generate(ids_of(b"a", b"\xe2\x82"), max_tokens=2).text == "a\ufffd"
    assert generate([*ids_of(b"a", b"\xe2\x82"), END]).text == "a\ufffd"


def test_stop_string_over_two_tokens_is_cut():
    generation = generate(ids_of(b"a", b"st", b"op", b"a"), stop=("stop",))
    assert (generation.text, generation.finish_reason) == ("a", "stop")
    assert generation.tokens == ids_of(b"a", b"st", b"op")


def test_stop_on_the_last_allowed_token_is_a_stop():
    assert generate(ids_of(b"st", b"op"), max_tokens=2, stop=("stop",)).finish_reason == "stop"


def test_earliest_stop_wins():
    generation = generate(ids_of(b"b ", b"stop"), stop=("op", "stop", " st"))
    assert (generation.text, generation.finish_reason) == ("b", "stop")


@given(st.lists(st.integers(0, END - 1), max_size=25), st.lists(st.sampled_from(["stop", "a→", "b st"])))
def test_certain_text_is_never_taken_back(ids: list[int], stop: list[str]):
    generation, shown = Generation(decode, len(ids) or 1, stop, frozenset([END])), ""
    for token in ids:
        if generation.finish_reason is None:
            generation.push(Outcome(token, 0.0))
            assert generation.text.startswith(shown)
            assert generation.certain >= len(shown)
            shown = generation.text[: generation.certain]
    assert generation.finish_reason is None or shown == generation.text


def test_what_may_be_the_beginning_of_a_stop_string_is_not_certain():
    generation = Generation(decode, 9, ("stop",), frozenset([END]))
    told = []
    for token in ids_of(b"a", b"st", b"a", b"st", b"op"):
        generation.push(Outcome(token, 0.0))
        told.append(generation.text[: generation.certain])
    assert told == ["a", "a", "asta", "asta", "asta"]


def test_finished_from_outside_it_ends_with_what_there_is():
    generation = generate(ids_of(b"a", b"\xe2\x82"))
    generation.finish()
    assert (generation.text, generation.finish_reason) == ("a\ufffd", "stop")


@given(st.lists(st.integers(0, END - 1), max_size=25), st.lists(st.sampled_from(["a", "op", "ps", "→", "b st", "\n"])))
def test_text_ends_at_the_first_stop(ids: list[int], stop: list[str]):
    generation = generate(ids, max_tokens=len(ids) or 1, stop=tuple(stop))
    whole = decode(ids)
    places = [whole.find(s) for s in stop if s in whole]
    if generation.finish_reason == "stop":
        # Each token ends the search at its own text, so the first string to be complete decides.
        assert not any(s in generation.text for s in stop)
        assert whole.startswith(generation.text)
        assert any(whole[len(generation.text) :].startswith(s) for s in stop)
    else:
        assert not places
