"""From bodies to requests."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pefx.config import HttpConfig
from pefx.errors import PefxError
from pefx.http.bodies import CompletionBody, JsonObject, JsonSchema, Schema
from pefx.http.jobs import LONG, Jobs, fields, token_prompts
from pefx.http.keys import EVERYONE
from pefx.http.resolving import Resolver
from pefx.http.tracks import Tracks
from tests.http_fakes import FakeEngine, Letters, served, small_catalog


def body(**given: Any) -> CompletionBody:
    fields: dict[str, Any] = {"model": "tiny", "prompt": "abc"} | given
    return CompletionBody(**fields)


def test_fields_are_passed_on_where_they_are_given() -> None:
    assert fields(body()) == {"regex": None}
    assert fields(body(temperature=0.5, top_k=3, stop="x", guided_regex="a+")) == {
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["x"],
        "regex": "a+",
    }
    assert fields(body(response_format=JsonObject()))["json_schema"] == {"type": "object"}
    assert fields(body(response_format=JsonSchema(Schema({"a": 1}))))["json_schema"] == {"a": 1}


def test_long_prompts_are_the_same_tokens() -> None:
    text = "abc" * LONG
    assert asyncio.run(token_prompts(Letters(), text)) == [list(text.encode())]


def test_a_job(tmp_path: Path) -> None:
    given = served(FakeEngine(), small_catalog(tmp_path, "ann"))
    assert given.readiness is not None
    resolver = Resolver(given, Tracks(given.readiness, 4), timeout=5.0, fresh=1.0)
    jobs = Jobs(given, HttpConfig(timeout=30.0), resolver)

    async def make(**fields: Any) -> Any:
        made = body(model="ann", **fields)
        return await jobs.make("cmpl", made, [[1, 2], [3]], {"max_tokens": 5}, EVERYONE)

    job = asyncio.run(make(seed=3, n=2, logit_bias={"7": 1.5}))
    assert (job.model, job.fingerprint, job.n) == ("ann@1", "a" * 12, 2)
    (first, revision), (second, _) = job.work
    assert (first.prompt, first.policy, first.revision, first.max_tokens) == ((1, 2), "ann", 1, 5)
    assert (first.seed, first.n, first.logit_bias) == (3, 2, ((7, 1.5),))
    assert first.id != second.id
    assert revision is not None
    assert revision.key == "ann@1"
    with pytest.raises(PefxError, match="'priority'"):
        asyncio.run(make(priority=101))
