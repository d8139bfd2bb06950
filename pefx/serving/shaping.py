"""What changes the probabilities of a sequence's next token: penalties, biases, and a form it must have."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from pefx.serving.requests import Request


@runtime_checkable
class Constraint(Protocol):
    """A form that an answer must have, and how far it got: see `pefx.serving.grammar`."""

    def mask(self) -> np.ndarray: ...

    def push(self, token: int) -> None: ...

    @property
    def over(self) -> bool: ...


class Shaper:
    """Of one sequence: what `request` asks for, over the tokens of `prompt` and of the answer.

    `mask` has the bits of the tokens that may come next, uint32 words; None: all may. Where a form cannot be followed
    any further, making one and `push` raise PefxError.

    The repetition penalty counts tokens of both, once (Keskar et al. 2019); presence and frequency penalties those of
    the answer, as OpenAI's API defines them.
    """

    def __init__(self, request: Request, prompt: Iterable[int], constraint: Constraint | None):
        self._bias = dict(request.logit_bias)
        self._repetition = request.repetition_penalty
        self._presence, self._frequency = request.presence_penalty, request.frequency_penalty
        self._seen: set[int] = set(prompt) if request.repetition_penalty != 1 else set()
        self._drawn: dict[int, int] = {}
        self._counting = any((self._presence, self._frequency, request.repetition_penalty != 1))
        self._constraint = constraint
        self.mask = None if constraint is None else constraint.mask()

    @property
    def over(self) -> bool:
        """Whether the answer has its form and cannot go on."""
        return self._constraint is not None and self._constraint.over

    def push(self, token: int) -> None:
        """One more token was drawn."""
        if self._counting:
            self._drawn[token] = self._drawn.get(token, 0) + 1
        if self._constraint is not None:
            self._constraint.push(token)
            if not self._constraint.over:
                self.mask = self._constraint.mask()

    def entries(self) -> list[tuple[int, float, float]]:
        """Token, what its logit is divided by, and what is then added: see `pefx.sampling.Shaping`."""
        found = []
        for token in self._seen | self._drawn.keys() | self._bias.keys():
            count = self._drawn.get(token, 0)
            add = self._bias.get(token, 0.0) - self._presence * (count > 0) - self._frequency * count
            repeat = self._repetition if count or token in self._seen else 1.0
            found.append((token, repeat, add))
        return found


def needs_shaping(request: Request) -> bool:
    """Whether `request` asks for anything of the kind."""
    off = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty) == (1, 0, 0)
    return bool(request.logit_bias) or request.constrained or not off
