"""`/v1/chat/completions`: a conversation goes on, written as the base's chat template has it."""

import asyncio
from typing import Any

from msgspec import UNSET, UnsetType

from pefx.errors import PefxError
from pefx.http.bodies import ChatBody
from pefx.http.jobs import LONG, Job
from pefx.http.objects import ChatAnswer, ChatChoice, ChatChunk, ChatCompletion, ChunkChoice, Delta, Usage
from pefx.http.served import Speller
from pefx.http.spelling import Spelling
from pefx.serving.jobs import Answered, Piece


def chat_fields(body: ChatBody, context: int) -> dict[str, Any]:
    """Fields of the request that only chats have; without a bound the answer may fill the base's `context`."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise PefxError("field 'max_tokens': differs from max_completion_tokens; give one of them", "invalid_request")
    if body.top_logprobs is not None and not body.logprobs:
        raise PefxError("field 'top_logprobs': only with logprobs true", "invalid_request")
    return {
        "max_tokens": body.max_completion_tokens or body.max_tokens or context,
        "logprobs": bool(body.logprobs),
        "top_logprobs": body.top_logprobs or 0,
    }


async def chat_prompt(tokenizer: Speller, body: ChatBody) -> list[int]:
    """The conversation as tokens, up to where the answer begins."""
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    try:
        if sum(len(message["content"]) for message in messages) < LONG:
            return tokenizer.chat(messages)
        return await asyncio.to_thread(tokenizer.chat, messages)
    except PefxError as error:
        what = str(error).split(": ", 1)[-1]  # without the file
        raise PefxError(f"field 'messages': {what}", "invalid_request") from error


class ChatForm:
    """Answers of `job` as chats."""

    def __init__(self, job: Job, body: ChatBody, spelling: Spelling):
        self.job, self.body, self.spelling = job, body, spelling

    def whole(self, answers: list[Answered], usage: Usage) -> ChatCompletion:
        """The answer to a body that is not streamed."""
        (answered,) = answers
        choices = [
            self._choice(index, choice) for index, choice in enumerate(answered.row.get("choices") or [answered.row])
        ]
        remembered = answered.row.get("remembered", UNSET)
        return ChatCompletion(**self.job.heading, choices=choices, usage=usage, remembered=remembered)

    def _choice(self, index: int, choice: dict[str, Any]) -> ChatChoice:
        tokens, ids, logprobs = choice["tokens"], self.body.return_token_ids, None
        if self.body.logprobs:
            logprobs = self.spelling.chat(tokens, choice["logprobs"], choice.get("top_logprobs"))
        return ChatChoice(
            index=index,
            message=ChatAnswer(content=choice["text"]),
            logprobs=logprobs,
            finish_reason=choice["finish_reason"],
            token_ids=tokens if ids else UNSET,
            prompt_token_ids=self.job.prompts[0] if ids else UNSET,
        )

    def opening(self) -> list[ChatChunk]:
        """What a stream begins with: who speaks."""
        ids = self.job.prompts[0] if self.body.return_token_ids else UNSET
        delta = Delta(role="assistant", content="")
        return [self._event(ChunkChoice(index=n, delta=delta, prompt_token_ids=ids)) for n in range(self.job.n)]

    def event(self, prompt: int, piece: Piece) -> ChatChunk | None:
        """What a piece of an answer is in a stream; None: nothing yet."""
        ids, scored = self.body.return_token_ids, bool(self.body.logprobs)
        if not piece.text and piece.finish_reason is None and not ((ids or scored) and piece.tokens):
            return None
        choice = ChunkChoice(
            index=piece.choice,
            delta=Delta(content=piece.text) if piece.text else Delta(),
            logprobs=self.spelling.chat(piece.tokens, piece.logprobs, piece.top) if scored else None,
            finish_reason=piece.finish_reason,  # type: ignore[arg-type]
            token_ids=list(piece.tokens) if ids else UNSET,
        )
        return self._event(choice)

    def closing(self, usage: Usage | UnsetType, remembered: str | UnsetType) -> ChatChunk:
        """The last event, with the counts, and what its memory was kept as."""
        return ChatChunk(**self.job.heading, choices=[], usage=usage, remembered=remembered)

    def _event(self, choice: ChunkChoice) -> ChatChunk:
        return ChatChunk(**self.job.heading, choices=[choice])
