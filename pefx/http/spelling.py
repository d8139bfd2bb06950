"""Tokens as they are shown: each as its own text, with log-probabilities in OpenAI's two forms."""

from collections.abc import Sequence
from functools import lru_cache

from pefx.http.objects import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from pefx.http.served import Speller
from pefx.serving.generation import UNFINISHED

Top = Sequence[Sequence[tuple[int, float]]]  # by token: the likeliest and their log-probabilities, best first


class Spelling:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Speller):
        self.tokenizer = tokenizer
        self.token = lru_cache(1 << 16)(lambda token: tokenizer.decode([token]))

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens))

    def completion(
        self, tokens: Sequence[int], logprobs: Sequence[float | None], top: Top | None, offset: int
    ) -> CompletionLogprobs:
        """The form of completions; `offset` is where the first token's text begins."""
        texts = [self.token(token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        likeliest = None
        if top is not None:
            # Reversed: of two that look the same (parts of characters do), the likelier one is kept.
            likeliest = [{self.token(token): logprob for token, logprob in reversed(row)} or None for row in top]
        return CompletionLogprobs(texts, list(logprobs), likeliest, offsets)

    def chat(self, tokens: Sequence[int], logprobs: Sequence[float], top: Top | None) -> ChatLogprobs:
        """The form of chats."""
        found = []
        for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            beside = [self._top(*pair) for pair in top[index]] if top else []
            found.append(TokenLogprob(self.token(token), logprob, self._bytes(token), beside))
        return ChatLogprobs(found)

    def _top(self, token: int, logprob: float) -> TopLogprob:
        return TopLogprob(self.token(token), logprob, self._bytes(token))

    def _bytes(self, token: int) -> list[int] | None:
        text = self.token(token)
        return None if UNFINISHED in text else list(text.encode())
