"""What one request has produced so far: tokens, log-probabilities, text, and whether it is over."""

from collections.abc import Callable, Sequence

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


class Generation:
    """The answer of one request while it grows.

    `finish_reason` is None until an end token or a stop string ("stop") or `max_tokens` ("length"). The end token is
    in `tokens` but not in `text`; the stop string, and what follows it, are cut from `text` but their tokens stay.
    """

    def __init__(self, decode: Decode, max_tokens: int, stop: Sequence[str], ends: frozenset[int]):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.finish_reason: str | None = None if max_tokens else "length"
        self._detokenizer = Detokenizer(decode)
        self._max_tokens, self._stop, self._ends = max_tokens, tuple(stop), ends

    def push(self, token: int, logprob: float) -> None:
        """One more sampled token. Raises RuntimeError if it is already over."""
        if self.finish_reason is not None:
            raise RuntimeError("a token was sampled for an answer that is over")
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self._ends:
            self._extend(self._detokenizer.flush())
            self.finish_reason = "stop"
            return
        self._extend(self._detokenizer.push(token))
        if self.finish_reason is None and len(self.tokens) >= self._max_tokens:
            self._extend(self._detokenizer.flush())
            self.finish_reason = self.finish_reason or "length"

    def _extend(self, piece: str) -> None:
        if not piece:
            return
        searched = max(0, len(self.text) + 1 - max(map(len, self._stop), default=1))
        self.text += piece
        found = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"
