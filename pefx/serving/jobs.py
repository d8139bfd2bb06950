"""A request on its way: its choices, what its caller has been told of them, and when."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pefx.serving.answers import answer, likeliest, number
from pefx.serving.requests import Request
from pefx.serving.sequence import Sequence


class Piece(NamedTuple):
    """What a request that is streamed has got in one step, of one choice: text that is certain, and tokens.

    `top` has for each token its likeliest ones with their log-probabilities, best first, where they are asked for.
    """

    handle: int
    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str | None


@dataclass(frozen=True)
class Answered:
    """`row` answers the request submitted as `handle`; counts are tokens of its prompt and of all its choices.

    `choices` are the sequences that it tells of, best first.

    `cached_tokens` of the prompt were in the pool already. Seconds are from its submission to its first token (or to
    its end, where none was drawn) and to its end. `where` its adapter was then: "base", "slot", "warm" or "cold".
    """

    handle: int
    row: dict[str, Any]
    prompt_tokens: int
    tokens: int
    cached_tokens: int
    waited: float
    seconds: float
    where: str
    choices: tuple[Sequence, ...] = ()


Listen = Callable[[Piece], None]


@dataclass(eq=False)
class Job:
    """A request and its choices. `first` is when its first token was drawn, `told` how much of each choice is told."""

    handle: int
    request: Request
    choices: list[Sequence]
    begun: float
    where: str
    listen: Listen | None = None
    first: float | None = None
    left: int = 0
    told: list[tuple[int, int]] = field(default_factory=list)  # characters and tokens

    def __post_init__(self):
        self.left = len(self.choices)
        self.told = [(0, 0)] * len(self.choices)

    def tell(self, sequence: Sequence) -> None:
        """Let the caller know what is new of a choice."""
        if self.listen is None or sequence.error is not None:
            return
        generation, (text, tokens) = sequence.generation, self.told[sequence.choice]
        certain, count = generation.certain, len(generation.tokens)
        if (certain, count) == (text, tokens) and generation.finish_reason is None:
            return
        self.told[sequence.choice] = certain, count
        wanted = self.request.top_logprobs
        top = tuple(tuple(likeliest(x, wanted)) for x in generation.top[tokens:]) if wanted else ()
        logprobs = tuple(number(x) for x in generation.logprobs[tokens:])
        new = tuple(generation.tokens[tokens:])
        reason = generation.finish_reason
        self.listen(Piece(self.handle, sequence.choice, generation.text[text:certain], new, logprobs, top, reason))

    def answered(self, now: float) -> Answered:
        """All choices are over: the best first, where there are more than are asked for."""
        choices, request = self.choices, self.request
        if request.choices > request.n:
            choices = sorted(choices, key=lambda choice: (-choice.generation.mean_logprob, choice.choice))
        return Answered(
            handle=self.handle,
            row=answer(request, choices),
            prompt_tokens=len(choices[0].prompt),
            tokens=sum(len(choice.generation.tokens) for choice in choices),
            cached_tokens=self.choices[0].cached,
            waited=(now if self.first is None else self.first) - self.begun,
            seconds=now - self.begun,
            where=self.where,
            choices=tuple(choices),
        )
