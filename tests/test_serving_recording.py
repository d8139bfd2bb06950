"""pefx.serving.recording: the rows of a span that are wanted, and what came out for them."""

import math

from pefx.serving.generation import Generation, Outcome
from pefx.serving.recording import record, wanted_rows
from pefx.serving.sequence import SAMPLE, Sampling, Sequence, Wanted


def sequence(done: int = 0, score: bool = False) -> Sequence:
    made = Sequence(
        handle=1,
        prompt=[5, 6, 7, 8],
        revision=None,
        sampling=Sampling(0.0, 1.0, 0.0, 0, 0),
        generation=Generation(lambda ids: "", 3, (), frozenset()),
        max_tokens=3,
        score_prompt=score,
    )
    made.done = done
    return made


def test_only_the_last_known_token_is_drawn_after():
    assert wanted_rows(2, sequence(), 3) == []
    assert wanted_rows(2, sequence(1), 3) == [Wanted(2, 2, SAMPLE)]


def test_a_prompt_that_is_scored_wants_its_next_tokens():
    assert wanted_rows(0, sequence(score=True), 4) == [*(Wanted(0, i, 6 + i) for i in range(3)), Wanted(0, 3, SAMPLE)]


def test_outcomes_go_to_the_prompt_or_the_answer_and_what_is_no_number_ends_it():
    one = sequence(score=True)
    record(one, Wanted(0, 0, 6), Outcome(6, -1.5))
    record(one, Wanted(0, 3, SAMPLE), Outcome(9, -0.5))
    assert (one.prompt_logprobs, one.generation.tokens) == ([None, -1.5], [9])
    record(one, Wanted(0, 0, SAMPLE), Outcome(9, math.nan))
    assert one.error is not None
    assert "the bare base gave a log-probability that is no finite number" in str(one.error)
    record(one, Wanted(0, 0, SAMPLE), Outcome(9, -1.0))
    assert one.generation.tokens == [9]
