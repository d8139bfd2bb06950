"""`/v1/completions`: a text goes on."""

from collections import defaultdict
from typing import Any

from msgspec import UNSET, UnsetType

from pefx.errors import PefxError
from pefx.http.bodies import CompletionBody
from pefx.http.jobs import Job
from pefx.http.objects import Completion, CompletionChoice, CompletionLogprobs, Usage
from pefx.http.spelling import Spelling
from pefx.serving.jobs import Answered, Piece

MAX_TOKENS = 16  # where none is said, as OpenAI has it


def completion_fields(body: CompletionBody) -> dict[str, Any]:
    """Fields of the requests that only completions have. PefxError for what does not go together."""
    tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    asked = body.logprobs is not None
    if body.stream and body.echo and asked:
        message = "field 'echo': a stream has no log-probabilities of its prompt; leave out echo, logprobs or stream"
        raise PefxError(message, "invalid_request")
    if body.stream and body.best_of is not None and body.best_of > (body.n or 1):
        raise PefxError("field 'best_of': a stream cannot take back what it began with", "invalid_request")
    if tokens == 0 and (body.stream or not body.echo):
        raise PefxError("field 'max_tokens': 0 only with echo, and without stream", "invalid_request")
    return {
        "max_tokens": tokens,
        "best_of": body.best_of,
        "logprobs": asked,
        "top_logprobs": body.logprobs or 0,
        "prompt_logprobs": bool(body.echo) and (asked or tokens == 0),
    }


class CompletionForm:
    """Answers of `job` as completions."""

    def __init__(self, job: Job, body: CompletionBody, spelling: Spelling):
        self.job, self.body, self.spelling = job, body, spelling
        self._shown: defaultdict[int, int] = defaultdict(int)  # characters of each streamed choice so far

    def whole(self, answers: list[Answered], usage: Usage) -> Completion:
        """The answer to a body that is not streamed."""
        choices = [
            self._choice(prompt, prompt * self.job.n + index, answered.row, choice)
            for prompt, answered in enumerate(answers)
            for index, choice in enumerate(answered.row.get("choices") or [answered.row])
        ]
        remembered = answers[0].row.get("remembered", UNSET)
        return Completion(**self.job.heading, choices=choices, usage=usage, remembered=remembered)

    def _choice(self, prompt: int, index: int, row: dict[str, Any], choice: dict[str, Any]) -> CompletionChoice:
        tokens, own = choice["tokens"], self.job.prompts[prompt]
        logprobs = None
        if self.body.logprobs is not None and self.body.echo:
            scores = [*row["prompt_logprobs"], *(choice["logprobs"] or [])]
            top = [[] for _ in own] + (choice.get("top_logprobs") or []) if self.body.logprobs else None
            logprobs = self.spelling.completion([*own, *tokens], scores, top, 0)
        elif self.body.logprobs is not None:
            logprobs = self.spelling.completion(tokens, choice["logprobs"], choice.get("top_logprobs"), 0)
        return CompletionChoice(
            index=index,
            text=self._echoed(prompt) + choice["text"],
            logprobs=logprobs,
            finish_reason=choice["finish_reason"],
            token_ids=tokens if self.body.return_token_ids else UNSET,
            prompt_token_ids=own if self.body.return_token_ids else UNSET,
        )

    def _echoed(self, prompt: int) -> str:
        return self.spelling.text(self.job.prompts[prompt]) if self.body.echo else ""

    def opening(self) -> list[Completion]:
        """What a stream begins with: the prompts, where they are wanted."""
        if not (self.body.echo or self.body.return_token_ids):
            return []
        found = []
        for index in range(len(self.job.prompts) * self.job.n):
            prompt, text = self.job.prompts[index // self.job.n], self._echoed(index // self.job.n)
            self._shown[index] = len(text)
            ids = prompt if self.body.return_token_ids else UNSET
            found.append(self._event(CompletionChoice(index=index, text=text, prompt_token_ids=ids)))
        return found

    def event(self, prompt: int, piece: Piece) -> Completion | None:
        """What a piece of an answer is in a stream; None: nothing yet."""
        ids, scored = self.body.return_token_ids, self.body.logprobs is not None
        if not piece.text and piece.finish_reason is None and not (ids and piece.tokens) and not scored:
            return None
        index = prompt * self.job.n + piece.choice
        logprobs: CompletionLogprobs | None = None
        if scored:
            top = piece.top if self.body.logprobs else None
            logprobs = self.spelling.completion(piece.tokens, piece.logprobs, top, self._shown[index])
            self._shown[index] += sum(map(len, logprobs.tokens))
        choice = CompletionChoice(
            index=index,
            text=piece.text,
            logprobs=logprobs,
            finish_reason=piece.finish_reason,  # type: ignore[arg-type]
            token_ids=list(piece.tokens) if ids else UNSET,
        )
        return self._event(choice)

    def closing(self, usage: Usage | UnsetType, remembered: str | UnsetType) -> Completion:
        """The last event, with the counts, and what its memory was kept as."""
        return Completion(**self.job.heading, choices=[], usage=usage, remembered=remembered)

    def _event(self, choice: CompletionChoice) -> Completion:
        return Completion(**self.job.heading, choices=[choice])
