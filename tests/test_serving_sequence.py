"""pefx.serving.sequence: which tokens are where, and what is left to do."""

from hypothesis import given
from hypothesis import strategies as st

from pefx.serving.generation import Generation, Outcome
from pefx.serving.sequence import BASE, Sampling, Sequence
from tests.serving_fakes import revision


def sequence(prompt: list[int], drawn: list[int], max_tokens: int = 9) -> Sequence:
    generation = Generation(lambda ids: "", max_tokens, (), frozenset())
    for token in drawn:
        generation.push(Outcome(token, -1.0))
    return Sequence(0, prompt, None, Sampling(0.0, 1.0, 0.0, 0, 0), generation, max_tokens)


@given(st.lists(st.integers(), min_size=1, max_size=6), st.lists(st.integers(), max_size=6), st.data())
def test_tokens_are_those_of_prompt_and_answer(prompt, drawn, data):
    made = sequence(prompt, drawn)
    end = data.draw(st.integers(0, made.known))
    start = data.draw(st.integers(0, end))
    assert made.tokens(start, end) == (prompt + drawn)[start:end]
    assert made.known == len(prompt) + len(drawn)
    made.done = start
    assert made.left == made.known - start


def test_the_last_token_is_never_fed():
    assert [sequence([1, 2], [], count).length for count in (0, 1, 5)] == [2, 2, 6]


def test_what_names_weights_and_tenant():
    made = sequence([1], [])
    assert (made.root, made.tenant) == (BASE, BASE)
    made.revision = revision("ann", 2)
    assert (made.root, made.tenant) == ("sha256:ann:2", "ann")


def test_over_is_after_the_prompt_is_done():
    made = sequence([1, 2], [], 0)
    assert not made.over
    made.done = 2
    assert made.over
