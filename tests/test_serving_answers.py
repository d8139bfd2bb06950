"""pefx.serving.answers: numbers that read back to the bit, one spelling of a row."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.serving.answers import answer, number, refusal, to_json
from pefx.serving.generation import Generation, Outcome
from pefx.serving.requests import Request
from pefx.serving.sequence import Sampling, Sequence
from tests.serving_fakes import revision


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_reads_back_to_the_bit(value: float):
    written = json.dumps(number(value))
    back = np.float32(json.loads(written))
    assert back.tobytes() == np.float32(value).tobytes()
    assert len(written) <= len(repr(float(np.float32(value))))


def test_shortest_form():
    assert json.dumps(number(float(np.float32(-0.1)))) == "-0.1"


def finished(policy: str | None = "alice", score_prompt: bool = True, first: int = 5) -> Sequence:
    generation = Generation(lambda ids: "é" * len(ids), 2, (), frozenset())
    generation.push(Outcome(first, -0.5, ((first, -0.5), (9, float(np.float32(-0.7))))))
    generation.push(Outcome(6, float(np.float32(-0.1)), ((6, float(np.float32(-0.1))), (9, -4.0))))
    served = None if policy is None else revision(policy, 3)
    made = Sequence(0, [1, 2], served, Sampling(0.0, 1.0, 0.0, 0, 0), generation, 2, score_prompt)
    made.prompt_logprobs.append(-2.0)
    return made


def test_answer_holds_what_was_asked_for():
    assert answer(Request("a", "x", logprobs=True), [finished()]) == {
        "id": "a",
        "policy": "alice",
        "revision": 3,
        "text": "éé",
        "tokens": [5, 6],
        "logprobs": [-0.5, -0.1],
        "prompt_logprobs": [None, -2.0],
        "finish_reason": "length",
    }
    bare = answer(Request("a", "x"), [finished(None, score_prompt=False)])
    assert [bare[k] for k in ("policy", "revision", "logprobs", "prompt_logprobs")] == [None] * 4


def test_likeliest_tokens_and_further_choices_are_there_where_asked_for():
    row = answer(Request("a", "x", top_logprobs=1, n=2), [finished(), finished(first=7), finished(first=8)])
    assert row["top_logprobs"] == [[(5, -0.5)], [(6, -0.1)]]
    assert [choice["tokens"] for choice in row["choices"]] == [[5, 6], [7, 6]]
    assert set(row["choices"][0]) == {"text", "tokens", "logprobs", "top_logprobs", "finish_reason"}
    assert row["tokens"] == row["choices"][0]["tokens"]
    assert json.loads(to_json(answer(Request("a", "x", top_logprobs=2), [finished()])))["top_logprobs"][0][1] == [
        9,
        -0.7,
    ]


def test_failed_sequence_answers_with_its_error():
    sequence = finished()
    sequence.error = PefxError("no good", "damaged")
    row = {"id": "a", "error": {"type": "damaged", "message": "no good"}}
    assert answer(Request("a", "x", n=2), [finished(), sequence]) == row == refusal("a", sequence.error)


def test_json_is_one_line_of_utf8_and_refuses_not_a_number():
    assert to_json({"text": "é\n→"}) == '{"text":"é\\n→"}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        to_json([float("nan")])
