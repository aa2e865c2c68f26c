"""The unmodified OpenAI SDK, through echo, through a faulty upstream and through a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionUserMessageParam

from tests.support.configs import ONE_BACKEND
from tests.support.gateway import Gateway
from tests.support.raw import ask, chat
from tests.support.tiny_model import MlxServer
from tests.support.upstream import Upstream


def user(text: str) -> list[ChatCompletionMessageParam]:
    """Make a one-message conversation."""
    message: ChatCompletionUserMessageParam = {"role": "user", "content": text}
    return [message]


def connect(url: str, **options: object) -> OpenAI:
    """Make a client that does not retry, so that a test sees the first answer."""
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20)


@pytest.fixture
def client(echo_gateway: Gateway) -> Iterator[OpenAI]:
    """A client of the shared echo gateway."""
    with connect(echo_gateway.url) as made:
        yield made


@pytest.fixture(scope="module")
def faulty(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway in front of an upstream that misbehaves on request."""
    with Upstream() as upstream:
        config = ONE_BACKEND.format(base_url=upstream.base_url)
        with Gateway(short_tmp / "faulty", config=config) as gateway:
            yield gateway, upstream


def streamed(client: OpenAI, model: str, text: str, **options: object) -> str:
    """Stream one answer and join its deltas."""
    said = ""
    stream = client.chat.completions.create(
        model=model, messages=user(text), stream=True, max_tokens=24, temperature=0
    )
    for event in stream:
        if event.choices:
            said += event.choices[0].delta.content or ""
    return said


def test_echo_answers_the_sdk(client: OpenAI) -> None:
    """A chat completion parses, with the caller's words, a finish reason and usage."""
    reply = client.chat.completions.create(model="echo", messages=user("grüße an alle 🙂"))
    assert reply.choices[0].message.content == "grüße an alle 🙂"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_echo_streams_to_the_sdk(client: OpenAI) -> None:
    """A stream arrives in several chunks that join to the words."""
    stream = client.chat.completions.create(
        model="echo", messages=user("one two three four"), stream=True
    )
    events = list(stream)
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == (
        "one two three four"
    )
    assert len(events) > 2
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "stop"


def test_stream_usage_comes_only_when_asked_for(client: OpenAI) -> None:
    """The usage chunk follows ``stream_options.include_usage`` and nothing else."""
    plain = client.chat.completions.create(model="echo", messages=user("a b"), stream=True)
    assert [e.usage for e in plain if e.usage] == []
    asked = client.chat.completions.create(
        model="echo", messages=user("a b"), stream=True, stream_options={"include_usage": True}
    )
    last = list(asked)[-1]
    assert last.choices == []
    assert last.usage is not None


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    """Echo lists its model, and each listed name can be asked for."""
    listed = [model.id for model in client.models.list()]
    assert listed == ["echo"]
    assert client.models.retrieve("echo").id == "echo"


def test_unknown_model_is_the_sdks_not_found(client: OpenAI) -> None:
    """An unknown name is a 404 in chat and in retrieve, never a guess."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=user("hi"))
    assert isinstance(caught.value.body, dict)
    assert "no-such-model" in caught.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_bad_parameter_is_the_sdks_bad_request(client: OpenAI) -> None:
    """A wrong value is a 400 that names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=user("hi"), temperature=9)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"


def test_request_id_is_echoed_to_the_sdk(client: OpenAI) -> None:
    """The SDK reads the id it sent, and the answer names shard and call."""
    raw = client.chat.completions.with_raw_response.create(
        model="echo", messages=user("hi"), extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-tpo-call-id"]
    assert raw.headers["x-tpo-shard"] in ("0", "1")


@pytest.mark.parametrize(
    ("status", "answered", "error"),
    [
        (400, 400, openai.BadRequestError),
        (404, 404, openai.NotFoundError),
        (422, 422, openai.UnprocessableEntityError),
        (429, 429, openai.RateLimitError),
        (401, 502, openai.InternalServerError),  # our credential, not the caller's
        (500, 502, openai.InternalServerError),
        (503, 503, openai.InternalServerError),
    ],
)
def test_upstream_statuses_reach_the_sdk_as_its_errors(
    faulty: tuple[Gateway, Upstream],
    status: int,
    answered: int,
    error: type[openai.APIStatusError],
) -> None:
    """What the client can mend passes as it came; what it cannot becomes a server error."""
    gateway, upstream = faulty
    upstream.play("status", status=status)
    with connect(gateway.url) as client, pytest.raises(error) as caught:
        client.chat.completions.create(model="up-1", messages=user("hi"))
    assert caught.value.status_code == answered


def test_broken_stream_raises_in_the_sdk(faulty: tuple[Gateway, Upstream]) -> None:
    """A stream that breaks off after its first bytes raises instead of just ending."""
    gateway, upstream = faulty
    with connect(gateway.url) as client:
        for mode in ("cut", "no_done", "stream_error"):
            upstream.play(mode)
            with pytest.raises(openai.APIError):
                list(
                    client.chat.completions.create(
                        model="up-1", messages=user(f"break {mode} please"), stream=True
                    )
                )


@pytest.mark.engine
def test_engine_says_the_same_through_the_gateway(engine_gateway: Gateway, mlx: MlxServer) -> None:
    """Unary and streamed text equal what the engine says when asked directly."""
    with connect(engine_gateway.url) as client, connect(mlx.url) as direct:
        for text in ("hello there", "another question entirely"):
            asked = [
                made.chat.completions.create(
                    model=name, messages=user(text), max_tokens=24, temperature=0
                )
                for made, name in ((direct, mlx.model), (client, mlx.model), (client, "tiny"))
            ]
            texts = {reply.choices[0].message.content for reply in asked}
            assert len(texts) == 1
            assert len(texts.pop() or "") > 10
            assert streamed(client, "tiny", text) == streamed(direct, mlx.model, text)


@pytest.mark.engine
def test_engine_usage_passes_through(engine_gateway: Gateway, mlx: MlxServer) -> None:
    """Token counts are the engine's own."""
    with connect(engine_gateway.url) as client, connect(mlx.url) as direct:
        through, straight = (
            made.chat.completions.create(
                model=mlx.model, messages=user("count me"), max_tokens=8, temperature=0, seed=1
            ).usage
            for made in (client, direct)
        )
    assert through is not None
    assert straight is not None
    assert through.completion_tokens == straight.completion_tokens == 8
    assert through.prompt_tokens == straight.prompt_tokens


@pytest.mark.engine
def test_glob_backend_lists_what_the_engine_lists(engine_gateway: Gateway, mlx: MlxServer) -> None:
    """``models = ["*"]`` shows the upstream's list and the mapped names, all retrievable."""
    with connect(engine_gateway.url) as client, connect(mlx.url) as direct:
        upstream_names = {model.id for model in direct.models.list()}
        assert {model.id for model in client.models.list()} == upstream_names | {"tiny"}
        assert client.models.retrieve("tiny").id == "tiny"
        assert client.models.retrieve(mlx.model).id == mlx.model


@pytest.mark.engine
def test_engine_refusal_reaches_the_client(engine_gateway: Gateway, mlx: MlxServer) -> None:
    """A request only the engine can refuse comes back as its status and words."""
    bad = chat("hi", model=mlx.model, max_tokens=4, top_k=-5)
    straight = ask(mlx.url, "/v1/chat/completions", bad)
    through = engine_gateway.ask("/v1/chat/completions", bad)
    assert straight.status >= 400
    assert through.status in (straight.status, 502)
