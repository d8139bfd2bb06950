"""From a body to requests for the engine: prompts as tokens, fields as `pefx.serving.requests` has them."""

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pefx.config import HttpConfig
from pefx.errors import PefxError
from pefx.http.bodies import MAX_PROMPTS, Generating, JsonObject, JsonSchema
from pefx.http.keys import Key
from pefx.http.remembering import check_keeps
from pefx.http.resolving import Resolver
from pefx.http.served import Served, Speller
from pefx.http.service import Work
from pefx.serving.requests import checked
from pefx.store.listing import short

LONG = 4096  # characters of a prompt from which on it becomes tokens in a thread
# Fields that are the same in a body and in a request.
PASSED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "n", "stop_token_ids", "ignore_eos", "priority"),
    *("writes", "remember"),
)


@dataclass(frozen=True)
class Job:
    """What a body asks for, ready to be handed over. `model` is the answer's: the base's name or `policy@number`."""

    id: str
    created: int
    model: str
    fingerprint: str
    prompts: list[list[int]]
    n: int
    work: Work
    deadline: float

    @property
    def heading(self) -> dict[str, Any]:
        """What all objects of the answer begin with."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Jobs:
    """Makes jobs for what is `served`."""

    def __init__(self, served: Served, settings: HttpConfig, resolver: Resolver):
        self.served, self.settings, self.resolver = served, settings, resolver

    async def make(
        self, kind: str, body: Generating, prompts: Sequence[Sequence[int]], more: dict[str, Any], key: Key
    ) -> Job:
        """A job named `kind`-... with a request for each prompt (token ids). `more` are fields of the requests.

        Raises PefxError naming the field that is wrong, or that the model is not there.
        """
        revision = await self.resolver.resolve(body.model, key)
        if (body.priority or 0) > key.priority:
            message = f"field 'priority': this key may claim up to {key.priority}, got {body.priority}"
            raise PefxError(message, "invalid_request")
        check_keeps(body, prompts, key)
        row = fields(body) | more
        if revision is not None:
            row |= {"policy": revision.policy, "revision": revision.number}
        id = f"{kind}-{uuid.uuid4().hex}"
        work = [
            (checked(row | {"id": f"{id}-{index}", "prompt": list(prompt)}, "the body"), revision)
            for index, prompt in enumerate(prompts)
        ]
        return Job(
            id=id,
            created=int(time.time()),
            model=self.served.name if revision is None else revision.key,
            fingerprint=short(self.served.digest),
            prompts=[list(prompt) for prompt in prompts],
            n=body.n or 1,
            work=work,
            deadline=time.monotonic() + min(body.timeout or math.inf, self.settings.timeout),
        )


def fields(body: Generating) -> dict[str, Any]:
    """What `body` says, as fields of a request."""
    row: dict[str, Any] = {name: value for name in PASSED if (value := getattr(body, name)) is not None}
    if body.stop is not None:
        row["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if body.regex is not None and body.guided_regex is not None:
        raise PefxError("field 'guided_regex': the same as field 'regex'; give one of them", "invalid_request")
    row["regex"] = body.regex or body.guided_regex
    if isinstance(body.response_format, JsonObject):
        row["json_schema"] = {"type": "object"}
    if isinstance(body.response_format, JsonSchema):
        row["json_schema"] = body.response_format.json_schema.schema
    return row


async def encoded(tokenizer: Speller, text: str) -> list[int]:
    """The tokens of a prompt. Long ones are cut in a thread, so that neither the loop nor the engine waits."""
    if len(text) < LONG:
        return tokenizer.encode(text)
    return await asyncio.to_thread(tokenizer.encode, text)


async def token_prompts(tokenizer: Speller, prompt: str | list[Any]) -> list[list[int]]:
    """The prompts of a completion as tokens, none of them empty. PefxError for a mixture."""
    given = [prompt] if isinstance(prompt, str) or all(isinstance(item, int) for item in prompt) else prompt
    if not prompt or any(item in ("", []) for item in given):
        raise PefxError("field 'prompt': is empty", "invalid_request")
    if len(given) > MAX_PROMPTS:
        raise PefxError(f"field 'prompt': {len(given)} prompts, at most {MAX_PROMPTS} may be", "invalid_request")
    if all(isinstance(item, str) for item in given):
        return [await encoded(tokenizer, str(item)) for item in given]
    if all(isinstance(item, list) and all(isinstance(token, int) for token in item) for item in given):
        return [[int(token) for token in item] for item in given]
    message = "field 'prompt': must be a text, a list of texts, a list of token ids, or a list of such lists"
    raise PefxError(message, "invalid_request")
