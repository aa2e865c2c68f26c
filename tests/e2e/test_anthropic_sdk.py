"""The unmodified Anthropic SDK: before echo, before its own API and before somebody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam
from openai import OpenAI

from tests.support.configs import BOTH_FAMILIES
from tests.support.dialects import REPLIES, TOOL_REPLIES, streamed
from tests.support.gateway import Gateway
from tests.support.tiny_model import MlxServer
from tests.support.upstream import Upstream

TOOL: ToolParam = {
    "name": "weather",
    "description": "Asks.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def user(text: str) -> list[MessageParam]:
    """Make a one-message conversation."""
    return [{"role": "user", "content": text}]


def connect(url: str, **options: Any) -> Anthropic:
    """Make a client that does not retry, so that a test sees the first answer."""
    return Anthropic(
        base_url=url, api_key="sk-ant-of-the-client", max_retries=0, timeout=20, **options
    )


def said(message: anthropic.types.Message) -> str:
    """The text of a message."""
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.fixture(scope="module")
def chained(short_tmp: Path, echo_gateway: Gateway) -> Iterator[Gateway]:
    """A gateway whose two backends are another gateway, which speaks every dialect."""
    config = BOTH_FAMILIES.format(base_url=f"{echo_gateway.url}/v1")
    with Gateway(short_tmp / "chained", config=config, workers=2) as gateway:
        yield gateway


@pytest.fixture(params=["echo", "claude", "open"])
def served(
    request: pytest.FixtureRequest, echo_gateway: Gateway, chained: Gateway
) -> Iterator[tuple[Anthropic, str]]:
    """A client and a model: translated here, passed on, and translated at the first of two."""
    url = echo_gateway.url if request.param == "echo" else chained.url
    with connect(url) as client:
        yield client, "open-echo" if request.param == "open" else "echo"


def test_message_is_answered(served: tuple[Anthropic, str]) -> None:
    """A message parses, with the caller's words, a stop reason and usage."""
    client, model = served
    reply = client.messages.create(model=model, max_tokens=64, messages=user("grüße an alle 🙂"))
    assert said(reply) == "grüße an alle 🙂"
    assert (reply.type, reply.role, reply.stop_reason) == ("message", "assistant", "end_turn")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (4, 4)
    assert reply.id.startswith("msg_")


def test_message_is_streamed(served: tuple[Anthropic, str]) -> None:
    """The SDK's accumulator accepts the events and ends with the whole message."""
    client, model = served
    with client.messages.stream(
        model=model, max_tokens=64, system="be brief", messages=user("one two three four")
    ) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == "one two three four"
    assert len(pieces) > 2
    assert said(final) == "one two three four"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 4


def test_every_event_of_a_stream_is_named_as_documented(served: tuple[Anthropic, str]) -> None:
    """Start, blocks, delta, stop; pings may come anywhere."""
    client, model = served
    with client.messages.create(
        model=model, max_tokens=64, messages=user("a b"), stream=True
    ) as stream:
        seen = [event.type for event in stream]
    assert seen[0] == "message_start"
    assert seen[-2:] == ["message_delta", "message_stop"]
    assert seen.count("content_block_start") == seen.count("content_block_stop") == 1
    assert seen.count("content_block_delta") == 2


def test_unknown_model_is_the_sdks_not_found(served: tuple[Anthropic, str]) -> None:
    """In this dialect's envelope, whoever says so."""
    client, _ = served
    for model in ("claude-nope", "gpt-nope", "nobody-knows"):
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.messages.create(model=model, max_tokens=9, messages=user("hi"))
        body = cast("dict[str, Any]", caught.value.body)
        assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
        assert model in body["error"]["message"]


def test_bad_field_is_the_sdks_bad_request(served: tuple[Anthropic, str]) -> None:
    """The message names it."""
    client, model = served
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            model=model, max_tokens=9, messages=user("hi"), extra_body={"temperature": 9}
        )
    assert "temperature" in caught.value.message


def test_request_id_is_read_by_the_sdk(served: tuple[Anthropic, str]) -> None:
    """Ours where the caller sent none, else the caller's."""
    client, model = served
    raw = client.messages.with_raw_response.create(
        model=model, max_tokens=9, messages=user("hi"), extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == "mine-1"
    assert raw.parse()._request_id == "mine-1"
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nobody-knows", max_tokens=9, messages=user("hi"))
    assert caught.value.request_id


def test_models_are_listed(served: tuple[Anthropic, str]) -> None:
    """The two families share one list."""
    client, model = served
    assert model in {entry.id for entry in client.models.list()}


def test_tokens_are_counted_by_who_can(scripted: tuple[Gateway, Upstream]) -> None:
    """Passed on to a backend of this dialect; refused elsewhere, never guessed."""
    gateway, upstream = scripted
    upstream.queue("answer", reply={"input_tokens": 11})
    with connect(gateway.url) as client:
        counted = client.messages.count_tokens(model="claude-1", messages=user("hi"))
        assert counted.input_tokens == 11
        assert upstream.seen[-1].path == "/v1/messages/count_tokens"
        before = upstream.counters.requests
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.count_tokens(model="gpt-1", messages=user("hi"))
    assert "anthropic count" in caught.value.message
    assert upstream.counters.requests == before


def test_headers_of_this_api_reach_only_it(scripted: tuple[Gateway, Upstream]) -> None:
    """Version and betas go on; the client's key goes nowhere, ours goes where it belongs."""
    gateway, upstream = scripted
    with connect(gateway.url, default_headers={"anthropic-beta": "beta-1,beta-2"}) as client:
        upstream.queue("answer", reply=REPLIES["anthropic_messages"])
        client.messages.create(model="claude-1", max_tokens=9, messages=user("hi"))
        own = upstream.seen[-1]
        client.messages.create(model="gpt-1", max_tokens=9, messages=user("hi"))
        other = upstream.seen[-1]
    assert own.path == "/v1/messages"
    assert own.headers["anthropic-version"] == client.default_headers["anthropic-version"]
    assert own.headers["anthropic-beta"] == "beta-1,beta-2"
    assert own.headers["x-api-key"] == "sk-ant-of-the-gateway"
    assert "authorization" not in own.headers
    assert other.path == "/v1/chat/completions"
    assert other.headers["authorization"] == "Bearer sk-of-the-gateway"
    assert not {"anthropic-version", "anthropic-beta", "x-api-key"} & set(other.headers)
    for request in (own, other):
        assert "sk-ant-of-the-client" not in str(request.headers)


@pytest.mark.parametrize("model", ["claude-1", "gpt-1"])
@pytest.mark.parametrize(
    ("status", "answered", "error", "kind"),
    [
        (400, 400, anthropic.BadRequestError, "invalid_request_error"),
        (404, 404, anthropic.NotFoundError, "not_found_error"),
        (413, 413, anthropic.APIStatusError, "request_too_large"),
        (429, 429, anthropic.RateLimitError, "rate_limit_error"),
        (401, 502, anthropic.InternalServerError, "api_error"),  # our credential, not the caller's
        (500, 502, anthropic.InternalServerError, "api_error"),
        (503, 529, anthropic.InternalServerError, "overloaded_error"),
        (529, 529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_upstream_statuses_reach_the_sdk_as_its_errors(
    scripted: tuple[Gateway, Upstream],
    model: str,
    status: int,
    answered: int,
    error: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    """From either API: the status, the envelope and the upstream's words."""
    gateway, upstream = scripted
    said_no: dict[str, Any] = {"error": {"type": kind, "message": "upstream says no"}}
    if model == "claude-1":
        said_no["type"] = "error"
    upstream.queue("status", status=status, reply=said_no, headers={"Retry-After": "3"})
    with connect(gateway.url) as client, pytest.raises(error) as caught:
        client.messages.create(model=model, max_tokens=9, messages=user("hi"))
    assert caught.value.status_code == answered
    body = cast("dict[str, Any]", caught.value.body)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    if status != 401:
        assert "upstream says no" in body["error"]["message"]
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("model", "dialect"), [("claude-1", "anthropic_messages"), ("gpt-1", "openai_chat")]
)
@pytest.mark.parametrize("mode", ["cut", "no_done"])
def test_broken_stream_raises_in_the_sdk(
    scripted: tuple[Gateway, Upstream], model: str, dialect: str, mode: Any
) -> None:
    """Cut or just ended: an error event after what came, never a finished message."""
    gateway, upstream = scripted
    upstream.queue(mode, events=streamed(dialect, REPLIES), cut_after=3)
    seen = []
    with (
        connect(gateway.url) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.create(
            model=model, max_tokens=9, messages=user(f"break {mode}"), stream=True
        ) as stream,
    ):
        seen += [event.type for event in stream]
    assert "message_stop" not in seen
    assert "api_error" in str(caught.value.body)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_round_trip_through_an_openai_upstream(
    scripted: tuple[Gateway, Upstream], stream: bool
) -> None:
    """Call, result and answer: ids pair up, and the upstream sees a proper chat."""
    gateway, upstream = scripted
    upstream.queue(
        "answer", reply=TOOL_REPLIES["openai_chat"], events=streamed("openai_chat", TOOL_REPLIES)
    )
    question = user("Weather in Rome?")
    asked: dict[str, Any] = {"model": "gpt-1", "max_tokens": 99, "tools": [TOOL]}
    with connect(gateway.url) as client:
        if stream:
            with client.messages.stream(messages=question, **asked) as events:
                first = events.get_final_message()
        else:
            first = client.messages.create(messages=question, **asked)
        assert first.stop_reason == "tool_use"
        call = first.content[-1]
        assert call.type == "tool_use"
        assert (call.id, call.name, call.input) == ("call_9", "weather", {"city": "Rome"})
        sent = upstream.seen[-1].json()
        (tool,) = sent["tools"]
        assert tool["type"] == "function"
        assert tool["function"]["parameters"] == TOOL["input_schema"]
        result: MessageParam = {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "sun"},
                {"type": "text", "text": "and now?"},
            ],
        }
        turn = cast("MessageParam", {"role": "assistant", "content": first.content})
        last = client.messages.create(messages=[*question, turn, result], **asked)
    sent = upstream.seen[-1].json()["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "user"]
    (called,) = sent[1]["tool_calls"]
    assert called["id"] == sent[2]["tool_call_id"] == "call_9"
    assert called["function"]["name"] == "weather"
    assert json.loads(called["function"]["arguments"]) == {"city": "Rome"}
    assert sent[2]["content"] == "sun"
    assert said(last).startswith("answer to")


def test_untranslatable_field_is_refused_by_name(scripted: tuple[Gateway, Upstream]) -> None:
    """Before the upstream is asked."""
    gateway, upstream = scripted
    before = upstream.counters.requests
    search = {"type": "web_search_20250305", "name": "web_search"}
    with connect(gateway.url) as client, pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            model="gpt-1", max_tokens=9, messages=user("hi"), extra_body={"tools": [search]}
        )
    assert "tools[0].type" in caught.value.message
    assert upstream.counters.requests == before


def test_tool_runner_goes_on_without_a_thread(scripted: tuple[Gateway, Upstream]) -> None:
    """The SDK's own loop asks for a conversation held by the server, and is told that none is."""
    gateway, upstream = scripted
    called = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Ask for the weather.

        Args:
            city: Where.
        """
        called.append(city)
        return "sun"

    upstream.queue("answer", reply=TOOL_REPLIES["openai_chat"])
    upstream.queue("answer", reply=REPLIES["openai_chat"])
    with connect(gateway.url) as client:
        runner = client.beta.messages.tool_runner(
            model="gpt-1", max_tokens=99, messages=[{"role": "user", "content": "Rome?"}],
            tools=[weather],
        )  # fmt: skip
        last = runner.until_done()
    assert called == ["Rome"]
    assert last.stop_reason == "end_turn"
    first, second = (request.json()["messages"] for request in upstream.seen)
    assert len(first) == 1
    assert [message["role"] for message in second] == ["user", "assistant", "tool"]


@pytest.mark.engine
def test_engine_says_the_same_in_this_dialect(engine_gateway: Gateway, mlx: MlxServer) -> None:
    """Whole and streamed, under both its names: the words and counts of the engine itself."""
    asked: dict[str, Any] = {"max_tokens": 24, "extra_body": {"temperature": 0}}
    with OpenAI(base_url=mlx.base_url, api_key="unused", timeout=20) as direct:
        told = direct.chat.completions.create(
            model=mlx.model, messages=[{"role": "user", "content": "hello there"}], **asked
        )
    assert told.usage is not None
    with connect(engine_gateway.url) as client:
        for model in ("tiny", mlx.model):
            whole = client.messages.create(model=model, messages=user("hello there"), **asked)
            with client.messages.stream(
                model=model, messages=user("hello there"), **asked
            ) as stream:
                pieces = "".join(stream.text_stream)
                last = stream.get_final_message()
            assert said(whole) == pieces == said(last) == told.choices[0].message.content
            for usage in (whole.usage, last.usage):
                read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
                assert (read, usage.output_tokens) == (told.usage.prompt_tokens, 24)
            assert whole.stop_reason == last.stop_reason == "max_tokens"


@pytest.mark.engine
def test_engine_is_listed_and_refuses_in_this_dialect(
    engine_gateway: Gateway, mlx: MlxServer
) -> None:
    """Its models in the fields of this API; what only it can refuse as an error of the SDK."""
    with connect(engine_gateway.url) as client:
        assert {"tiny", mlx.model} <= {entry.id for entry in client.models.list()}
        one = client.models.retrieve("tiny")
        assert (one.type, one.display_name) == ("model", "tiny")
        assert one.created_at.year >= 2024
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(
                model="tiny", max_tokens=4, messages=user("hi"), extra_body={"top_k": -5}
            )
    assert cast("dict[str, Any]", caught.value.body)["type"] == "error"
