"""pefx.serving.answers: numbers that read back to the bit, one spelling of a row."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.serving.answers import answer, number, refusal, to_json
from pefx.serving.generation import Generation
from pefx.serving.scheduler import Sampling, Sequence
from tests.serving_fakes import revision


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_reads_back_to_the_bit(value: float):
    written = json.dumps(number(value))
    back = np.float32(json.loads(written))
    assert back.tobytes() == np.float32(value).tobytes()
    assert len(written) <= len(repr(float(np.float32(value))))


def test_shortest_form():
    assert json.dumps(number(float(np.float32(-0.1)))) == "-0.1"


def finished(policy: str | None = "alice", score_prompt: bool = True) -> Sequence:
    generation = Generation(lambda ids: "é" * len(ids), 2, (), frozenset())
    generation.push(5, -0.5)
    generation.push(6, float(np.float32(-0.1)))
    served = None if policy is None else revision(policy, 3)
    return Sequence(0, [1, 2], served, Sampling(0.0, 1.0, 0, 0), generation, 2, score_prompt, [None, -2.0])


def test_answer_holds_what_was_asked_for():
    assert answer("a", finished(), logprobs=True) == {
        "id": "a",
        "policy": "alice",
        "revision": 3,
        "text": "éé",
        "tokens": [5, 6],
        "logprobs": [-0.5, -0.1],
        "prompt_logprobs": [None, -2.0],
        "finish_reason": "length",
    }
    bare = answer("a", finished(None, score_prompt=False), logprobs=False)
    assert [bare[k] for k in ("policy", "revision", "logprobs", "prompt_logprobs")] == [None] * 4


def test_failed_sequence_answers_with_its_error():
    sequence = finished()
    sequence.error = PefxError("no good", "damaged")
    row = {"id": "a", "error": {"type": "damaged", "message": "no good"}}
    assert answer("a", sequence, logprobs=True) == row == refusal("a", sequence.error)


def test_json_is_one_line_of_utf8_and_refuses_not_a_number():
    assert to_json({"text": "é\n→"}) == '{"text":"é\\n→"}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        to_json([float("nan")])
