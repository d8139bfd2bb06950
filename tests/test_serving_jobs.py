"""pefx.serving.jobs: what a caller is told piece by piece is the answer, and the best are answered."""

from typing import Any

from pefx.serving.generation import Generation, Outcome
from pefx.serving.jobs import Job, Piece
from pefx.serving.requests import Request
from pefx.serving.sequence import Sampling, Sequence


def sequence(choice: int = 0, stop: tuple[str, ...] = (), max_tokens: int = 4) -> Sequence:
    generation = Generation(lambda ids: bytes(ids).decode("utf-8", errors="replace"), max_tokens, stop, frozenset([0]))
    return Sequence(7, [1, 2], None, Sampling(0.0, 1.0, 0.0, 0, 0), generation, max_tokens, choice=choice)


def push(one: Sequence, token: int, logprob: float = -1.0) -> None:
    one.generation.push(Outcome(token, logprob, ((token, logprob), (5, -9.0))))


def make(choices: list[Sequence], told: list[Piece], **asked: Any) -> Job:
    return Job(7, Request("a", "x", **asked), choices, begun=10.0, where="base", listen=told.append)


def test_pieces_joined_are_the_answer():
    told: list[Piece] = []
    one = sequence(stop=("cd",), max_tokens=9)
    job = make([one], told, logprobs=True, top_logprobs=1)
    for token in b"abcxcd":
        push(one, token)
        job.tell(one)
    job.tell(one)
    assert "".join(piece.text for piece in told) == one.generation.text == "abcx"
    assert [token for piece in told for token in piece.tokens] == list(b"abcxcd")
    assert [piece.text for piece in told] == ["a", "b", "", "cx", "", "", ""]
    assert [piece.finish_reason for piece in told][:-2] == [None] * 5
    assert told[-1].finish_reason == "stop"
    assert told[0].top == (((97, -1.0),),)
    assert told[0].logprobs == (-1.0,)


def test_nothing_new_nothing_told():
    told: list[Piece] = []
    one = sequence()
    job = make([one], told)
    job.tell(one)
    push(one, 97)
    job.tell(one)
    job.tell(one)
    assert len(told) == 1


def test_of_more_choices_than_are_asked_for_the_likeliest_are_answered():
    choices = [sequence(i) for i in range(3)]
    for one, logprob in zip(choices, (-3.0, -1.0, -2.0), strict=True):
        for token in b"ab":
            push(one, token + one.choice, logprob)
        one.generation.finish("length")
    job = make(choices, [], n=2, best_of=3)
    job.first = 10.5
    answered = job.answered(now=12.0)
    assert [choice["text"] for choice in answered.row["choices"]] == ["bc", "cd"]
    assert (answered.tokens, answered.prompt_tokens, answered.waited, answered.seconds) == (6, 2, 0.5, 2.0)
    plain = make(choices[:2], [], n=2).answered(now=12.0)
    assert [choice["text"] for choice in plain.row["choices"]] == ["ab", "bc"]
    assert plain.waited == 2.0
