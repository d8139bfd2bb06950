"""What one request has produced so far: tokens, log-probabilities, text, and whether it is over."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are no character, or not yet
Decode = Callable[[list[int]], str]


class Detokenizer:
    """Text of a growing list of tokens, a piece at a time; a character split over tokens comes out once it is whole.

    The pieces joined (with `flush`) are the decoding of the whole list. Only the tokens since the last piece, and those
    of that piece (for decoders that look back one), are decoded again.
    """

    def __init__(self, decode: Decode):
        self._decode = decode
        self._tokens: list[int] = []
        self._before = 0  # where the last piece begins
        self._shown = 0  # tokens already in pieces

    def push(self, token: int) -> str:
        """The text that is certain now, possibly ''."""
        self._tokens.append(token)
        return self._piece(final=False)

    def flush(self) -> str:
        """The rest, with replacement characters for bytes that never became characters."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        old = self._decode(self._tokens[self._before : self._shown])
        new = self._decode(self._tokens[self._before :])
        if len(new) <= len(old) or (new.endswith(UNFINISHED) and not final):
            return ""
        self._before, self._shown = self._shown, len(self._tokens)
        return new[len(old) :]


class Outcome(NamedTuple):
    """Of one row: the token scored or drawn, its log-probability (nats, a float32), and the likeliest, best first."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()


class Generation:
    """One answer while it grows.

    `finish_reason` is None until an end token or a stop string ("stop") or `max_tokens` ("length"). The end token is
    in `tokens` but not in `text`; the stop string, and what follows it, are cut from `text` but their tokens stay.
    `certain` characters of `text` will not be cut any more: a stop string may have begun behind them. `top` are the
    likeliest tokens at each place, where they are asked for.
    """

    def __init__(self, decode: Decode, max_tokens: int, stop: Sequence[str], ends: frozenset[int]):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[Sequence[tuple[int, float]]] = []
        self.text = ""
        self.finish_reason: str | None = None if max_tokens else "length"
        self._detokenizer = Detokenizer(decode)
        self._max_tokens, self._stop, self._ends = max_tokens, tuple(stop), ends

    @property
    def certain(self) -> int:
        if self.finish_reason is not None or not self._stop:
            return len(self.text)
        return min(len(self.text) - _begun(self.text, stop) for stop in self._stop)

    @property
    def mean_logprob(self) -> float:
        """Nats a token; of no tokens, 0."""
        return sum(self.logprobs) / max(len(self.logprobs), 1)

    def push(self, drawn: Outcome) -> None:
        """One more token. Raises RuntimeError if it is already over."""
        if self.finish_reason is not None:
            raise RuntimeError("a token was sampled for an answer that is over")
        self.tokens.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        self.top.append(drawn.top)
        if drawn.token in self._ends:
            self.finish()
            return
        self._extend(self._detokenizer.push(drawn.token))
        if self.finish_reason is None and len(self.tokens) >= self._max_tokens:
            self.finish("length")

    def finish(self, reason: str = "stop") -> None:
        """Nothing follows. A stop string that comes to light now is the reason."""
        if self.finish_reason is None:
            self._extend(self._detokenizer.flush())
            self.finish_reason = self.finish_reason or reason

    def _extend(self, piece: str) -> None:
        if not piece:
            return
        searched = max(0, len(self.text) + 1 - max(map(len, self._stop), default=1))
        self.text += piece
        found = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
