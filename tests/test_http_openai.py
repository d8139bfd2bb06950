"""The official `openai` client, as it is, against a live server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.http_fakes import FakeEngine, Live, live, small_catalog

POLICIES = [f"users/{number:02d}" for number in range(64)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(FakeEngine(pause=0.001), small_catalog(tmp_path_factory.mktemp("openai"), *POLICIES)) as started:
        yield started


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none needed", max_retries=0, timeout=30) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == ["tiny", *POLICIES]
    found = client.models.retrieve("users/07")
    assert (found.id, found.object, found.owned_by) == ("users/07", "model", "pefx")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("users/none")
    assert caught.value.code == "model_not_found"


def test_a_chat_and_its_stream(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="users/01", messages=messages, seed=3, n=2)  # type: ignore[arg-type]
    assert whole.model == "users/01@1"
    assert whole.usage is not None
    texts = ["", ""]
    with client.chat.completions.create(
        model="users/01@latest",
        messages=messages,  # type: ignore[arg-type]
        seed=3,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], logprobs=True, top_logprobs=3, max_tokens=4
    )
    assert found.choices[0].logprobs is not None
    assert found.choices[0].logprobs.content is not None
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 3
    plain = client.completions.create(model="tiny", prompt="abc", logprobs=2, echo=True, max_tokens=2)
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.token_logprobs is not None
    assert plain.choices[0].logprobs.token_logprobs[0] is None


def test_a_completion_that_stops_and_its_stream(client: openai.OpenAI) -> None:
    more = {"ignore_eos": True, "return_token_ids": True}
    whole = client.completions.create(model="users/02@1", prompt="abc", seed=1, extra_body=more)
    text = whole.choices[0].text
    stopped = client.completions.create(model="users/02", prompt="abc", seed=1, stop=[text[4:6]], extra_body=more)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (text[:4], "stop")
    stream = client.completions.create(model="users/02", prompt="abc", seed=1, stream=True, extra_body=more)
    assert "".join(chunk.choices[0].text for chunk in stream) == text


def test_a_form_is_asked_for(server: Live, client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},  # type: ignore[arg-type]
        max_tokens=1,
    )
    assert server.engine.submitted[-1].json_schema == '{"type": "object", "properties": {"a": {"type": "integer"}}}'


def test_errors(server: Live, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="abc", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="abc")
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    server.engine.gate.clear()
    with pytest.raises(openai.InternalServerError) as late:
        client.completions.create(model="tiny", prompt="abc", extra_body={"timeout": 0.05})
    server.engine.gate.set()
    assert late.value.status_code == 504


def test_a_stream_that_is_closed_is_cancelled(server: Live, client: openai.OpenAI) -> None:
    before = len(server.engine.cancelled)
    stream = client.completions.create(
        model="tiny", prompt="abc", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.until(lambda: len(server.engine.cancelled) > before)


def test_many_callers_of_many_policies(server: Live, client: openai.OpenAI) -> None:
    """Each gets the answer of its own policy, the same as when it asks alone."""

    def ask(policy: str) -> tuple[str, str, str | None]:
        messages = [{"role": "user", "content": f"who is {policy}?"}]
        found = client.chat.completions.create(model=policy, messages=messages, seed=5, max_tokens=32)  # type: ignore[arg-type]
        return policy, found.model, found.choices[0].message.content

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, POLICIES))
    assert [model for _, model, _ in together] == [f"{policy}@1" for policy in POLICIES]
    assert together[::16] == [ask(policy) for policy in POLICIES[::16]]
    assert len({text for _, _, text in together}) > 50
