"""The two endpoints that generate: from a body to an answer, whole or as a stream."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from pefx.http.api import Asked, as_json
from pefx.http.bodies import ChatBody, CompletionBody
from pefx.http.chat import ChatForm, chat_fields, chat_prompt
from pefx.http.completions import CompletionForm, completion_fields
from pefx.http.jobs import Job, token_prompts
from pefx.http.remembering import follow
from pefx.http.streaming import Form, Stream, unless_gone, usage_of


async def complete(asked: Asked) -> Response:
    """`POST /v1/completions`."""
    body: CompletionBody = asked.body
    asked.api.service.check()
    more = completion_fields(body)
    job = await _job(asked, "cmpl", await token_prompts(asked.api.served.tokenizer, body.prompt), more)
    return await _answer(asked, job, CompletionForm(job, body, asked.api.spelling))


async def chat(asked: Asked) -> Response:
    """`POST /v1/chat/completions`."""
    body: ChatBody = asked.body
    asked.api.service.check()
    more = chat_fields(body, asked.api.served.context)
    job = await _job(asked, "chatcmpl", [await chat_prompt(asked.api.served.tokenizer, body)], more)
    return await _answer(asked, job, ChatForm(job, body, asked.api.spelling))


async def _job(asked: Asked, kind: str, prompts: Sequence[Sequence[int]], more: dict[str, Any]) -> Job:
    job = await asked.api.jobs.make(kind, asked.body, prompts, more, asked.exchange.key)
    asked.exchange.model = job.model
    return job


async def _answer(asked: Asked, job: Job, form: Form) -> Response:
    body, exchange, service, receive = asked.body, asked.exchange, asked.api.service, asked.request.receive
    exchange.stream = bool(body.stream)
    call = service.submit(job.work, job.deadline, exchange.stream)
    exchange.prompt_tokens = sum(map(len, job.prompts))
    try:
        if exchange.stream:
            # What fails before the first token still has a status of its own.
            first = await unless_gone(receive, call.next())
            usage = body.stream_options is not None and body.stream_options.include_usage
            return Stream(service, call, first, form, exchange, partial(follow, asked.api.resolver), usage)
        answers = await unless_gone(receive, call.answers())
        await follow(asked.api.resolver, answers)
    except BaseException:
        service.cancel(call)
        raise
    for answered in answers:
        exchange.note(answered)
        exchange.tokens += answered.tokens
    return as_json(form.whole(answers, usage_of(answers)))
