"""The unmodified Anthropic SDK against the simulator, and through a gateway in front of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam

from tests.support.gateway import Gateway
from tests.support.json_schema import Validator
from tests.support.raw import ask
from tests.support.simulated import front_of

MODEL = "claude-haiku-4-5"
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Asks a weather station.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city", "days"],
    },
}


@pytest.fixture(scope="module")
def front(simulator: Gateway, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway in front of the simulator."""
    with front_of(simulator, short_tmp / "front-anthropic") as gateway:
        yield gateway


@pytest.fixture(params=["direct", "gateway"])
def url(request: pytest.FixtureRequest, simulator: Gateway, front: Gateway) -> str:
    """The simulator's address, or that of the gateway in front of it."""
    return simulator.url if request.param == "direct" else front.url


@pytest.fixture
def client(url: str) -> Iterator[Anthropic]:
    """A client that does not retry."""
    with Anthropic(base_url=url, api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def user(text: str) -> list[MessageParam]:
    """Make a one-message conversation."""
    return [{"role": "user", "content": text}]


def text_of(message: anthropic.types.Message) -> str:
    """The words of a message."""
    return "".join(block.text for block in message.content if block.type == "text")


def test_message_has_every_field_of_the_real_answer(client: Anthropic) -> None:
    """Id, stop reason, usage with cache fields and tier, a text about the prompt."""
    reply = client.messages.create(model=MODEL, max_tokens=900, messages=user("About glaciers?"))
    assert reply.id.startswith("msg_01")
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", MODEL)
    assert reply.stop_reason == "end_turn"
    assert reply.stop_sequence is None
    assert "glaciers" in text_of(reply).lower()
    assert reply.usage.service_tier == "standard"
    assert reply.usage.cache_read_input_tokens == 0
    assert reply.usage.cache_creation is not None


def test_stream_has_every_event_in_order(client: Anthropic) -> None:
    """Start, block, ping, deltas, stop; the words and counts of the whole reply."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 900, "messages": user("Glaciers?")}
    whole = client.messages.create(**asked)
    with client.messages.create(**asked, stream=True) as stream:
        seen = [event.type for event in stream]
    assert seen[:2] == ["message_start", "content_block_start"]
    assert seen[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert seen.count("content_block_delta") == whole.usage.output_tokens
    with client.messages.stream(**asked) as helped:
        final = helped.get_final_message()
    assert text_of(final) == text_of(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_ping_follows_the_first_block(client: Anthropic) -> None:
    """The SDK hides it; the wire has it."""
    with client.messages.with_streaming_response.create(
        model=MODEL, max_tokens=9, messages=user("hi"), stream=True
    ) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("event:")]
    assert lines[:3] == ["event: message_start", "event: content_block_start", "event: ping"]


def test_limit_and_stop_sequence_end_an_answer(client: Anthropic) -> None:
    """``max_tokens`` is exact; the sequence that stopped it is named."""
    short = client.messages.create(model=MODEL, max_tokens=3, messages=user("Bridges?"))
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 900, "messages": user("Old bridges?")}
    stopped = client.messages.create(**asked, stop_sequences=["e"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "e")
    assert "e" not in text_of(stopped)


def test_tools_make_a_round_trip(client: Anthropic) -> None:
    """A tool use with fitting input, streamed as ``input_json_delta``, then words."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 900, "tools": [WEATHER]}
    question = user("What is the weather in Oslo?")
    first = client.messages.create(**asked, messages=question)
    assert first.stop_reason == "tool_use"
    (use,) = (block for block in first.content if block.type == "tool_use")
    assert use.id.startswith("toolu_01")
    assert not Validator(WEATHER["input_schema"]).errors(use.input)  # type: ignore[arg-type]
    with client.messages.stream(**asked, messages=question) as stream:
        kinds = {e.delta.type for e in stream if e.type == "content_block_delta"}
        final = stream.get_final_message()
    assert kinds == {"input_json_delta"}
    assert [b.input for b in final.content if b.type == "tool_use"] == [use.input]
    told: list[MessageParam] = [
        *question,
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": use.id, "content": "4 °C, rain"}]},
    ]  # fmt: skip
    second = client.messages.create(**asked, messages=told)
    assert second.stop_reason == "end_turn"
    assert text_of(second)


def test_thinking_is_shown_and_signed(client: Anthropic) -> None:
    """A thinking block with a signature, deltas of both kinds, counted as output."""
    asked: dict[str, Any] = {
        "model": MODEL, "max_tokens": 4000, "messages": user("Why is ice slippery?"),
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }  # fmt: skip
    whole = client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    thought = whole.content[0]
    assert thought.type == "thinking"
    assert len(base64.b64decode(thought.signature, validate=True)) > 32
    with client.messages.stream(**asked) as stream:
        kinds = {e.delta.type for e in stream if e.type == "content_block_delta"}
        final = stream.get_final_message()
    assert kinds == {"thinking_delta", "signature_delta", "text_delta"}
    assert final.content[0] == thought


def test_thinking_budgets_have_the_real_bounds(client: Anthropic) -> None:
    """Below 1 024, or not below ``max_tokens``: a 400 that says so."""
    for budget, limit in ((1000, 4000), (2000, 2000)):
        with pytest.raises(anthropic.BadRequestError, match="budget_tokens"):
            client.messages.create(
                model=MODEL, max_tokens=limit, messages=user("hi"),
                thinking={"type": "enabled", "budget_tokens": budget},
            )  # fmt: skip


def test_counted_tokens_are_those_of_the_usage(client: Anthropic) -> None:
    """System prompt and tools included."""
    asked: dict[str, Any] = {
        "model": MODEL, "messages": user("hi"), "system": "be kind", "tools": [WEATHER],
    }  # fmt: skip
    counted = client.messages.count_tokens(**asked)
    used = client.messages.create(max_tokens=9, **asked).usage
    assert counted.input_tokens == used.input_tokens


def test_legacy_completions_continue_a_transcript(url: str) -> None:
    """Whole and streamed; today's SDK has no words for them any more."""
    body = {
        "model": "claude-2.1", "max_tokens_to_sample": 400,
        "prompt": "\n\nHuman: Tell me about glaciers\n\nAssistant:",
    }  # fmt: skip
    whole = ask(url, "/v1/complete", body).json()
    assert whole["type"] == "completion"
    assert whole["stop_reason"] == "stop_sequence"
    assert whole["id"].startswith("compl_01")
    pieces = [
        json.loads(event)["completion"]
        for event in ask(url, "/v1/complete", body | {"stream": True}).events
    ]
    assert "".join(pieces) == whole["completion"]
    assert len(pieces) > 3


def test_headers_are_the_providers(client: Anthropic) -> None:
    """Rate limits with instants, and a request id the SDK reads."""
    raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=9, messages=user("hi"))
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "10000"
    assert raw.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    assert raw.headers["request-id"]
    assert raw.parse()._request_id


ERRORS = [
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (413, anthropic.APIStatusError, "request_too_large"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (504, anthropic.InternalServerError, "timeout_error"),
    (529, anthropic.InternalServerError, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "kind", "name"), ERRORS)
def test_every_ordered_status_is_the_sdks_error(
    simulator: Gateway, status: int, kind: type[anthropic.APIStatusError], name: str
) -> None:
    """The SDK raises its class for it; the body has the provider's type and the request's id."""
    with (
        Anthropic(base_url=simulator.url, api_key="k", max_retries=0) as client,
        pytest.raises(kind) as caught,
    ):
        client.messages.create(
            model=MODEL, max_tokens=9, messages=user("hi"),
            extra_headers={"X-Sim-Error": str(status)},
        )  # fmt: skip
    assert caught.value.status_code == status
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == name
    assert body["request_id"] == caught.value.request_id


def test_sdk_retries_until_it_is_answered(url: str) -> None:
    """Two failures, then the answer, whichever worker each try meets."""
    with Anthropic(base_url=url, api_key="k", max_retries=2, timeout=20) as client:
        raw = client.messages.with_raw_response.create(
            model=MODEL, max_tokens=9, messages=user("hi"),
            extra_headers={"X-Sim-Error": "529; first=2; retry_after=0.01"},
        )  # fmt: skip
    assert raw.retries_taken == 2
    assert text_of(raw.parse())


def test_error_event_in_mid_stream_is_raised(client: Anthropic) -> None:
    """As a real provider's in-band error is."""
    stream = client.messages.create(
        model=MODEL, max_tokens=900, messages=user("hi"), stream=True,
        extra_headers={"X-Sim-Fault": "error_after=2"},
    )  # fmt: skip
    with pytest.raises(anthropic.APIStatusError):
        list(stream)


def test_missing_limit_is_refused_by_name(client: Anthropic) -> None:
    """``max_tokens`` is required here."""
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.post("/v1/messages", body={"model": MODEL, "messages": user("hi")}, cast_to=object)


def test_fields_that_do_not_agree_are_refused(client: Anthropic) -> None:
    """Thinking leaves no room for other draws, and a result answers a call."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"thinking": thinking, "temperature": 0.5}, "temperature"),
        ({"thinking": thinking, "top_k": 5}, "top_k"),
        ({"thinking": thinking | {"budget_tokens": 4096}}, "max_tokens"),
        ({"messages": [*user("hi"), {"role": "user", "content": [result]}]}, "tool_use_id"),
    ]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 4096, "messages": user("hi")}
    for more, word in bad:
        with pytest.raises(anthropic.BadRequestError, match=word):
            client.messages.create(**asked, extra_body=more)
