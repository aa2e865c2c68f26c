"""The unmodified JavaScript SDKs of OpenAI and Anthropic: echo, a real engine, an upstream."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from tests.support.dialects import REPLIES, TOOL_REPLIES, streamed
from tests.support.gateway import Gateway
from tests.support.javascript import Node
from tests.support.tiny_model import MlxServer
from tests.support.upstream import Upstream

SDKS = ("openai", "anthropic")
BACKENDS = {"gpt-1": "openai_chat", "claude-1": "anthropic_messages"}
CELLS = [(sdk, model) for sdk in SDKS for model in BACKENDS]
FINISHED = {"openai": "stop", "anthropic": "end_turn"}
pytestmark = pytest.mark.timeout(240)  # the first test waits for the packages


def counted(usage: dict[str, int]) -> tuple[int, int]:
    """Input and output tokens, by the words of either API."""
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage["completion_tokens"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"]


@pytest.mark.parametrize("sdk", SDKS)
def test_echo_answers_the_sdk(node: Node, echo_gateway: Gateway, sdk: str) -> None:
    """Words, finish reason, usage, and the caller's request id where the SDK looks for it."""
    seen = node.run(
        sdk, "chat", url=echo_gateway.url, model="echo", text="grüße an alle 🙂",
        headers={"x-request-id": "mine-1"},
    )  # fmt: skip
    assert seen["text"] == "grüße an alle 🙂"
    assert seen["finish_reason"] == FINISHED[sdk]
    assert counted(seen["usage"]) == (4, 4)
    assert seen["request_id"] == "mine-1"
    assert seen["call_id"]


@pytest.mark.parametrize("sdk", SDKS)
def test_echo_streams_to_the_sdk(node: Node, echo_gateway: Gateway, sdk: str) -> None:
    """Several events that join to the words, and no error at the end."""
    seen = node.run(sdk, "stream", url=echo_gateway.url, model="echo", text="one zwei trois 四")
    assert seen["text"] == "one zwei trois 四"
    assert seen["events"] >= 6
    assert seen["finish_reason"] == FINISHED[sdk]
    assert "error" not in seen


def test_stream_usage_comes_when_asked_for(node: Node, echo_gateway: Gateway) -> None:
    """``stream_options.include_usage`` of the OpenAI SDK; Anthropic's always has it."""
    asked: dict[str, Any] = {"url": echo_gateway.url, "model": "echo", "text": "a b"}
    more = {"stream_options": {"include_usage": True}}
    assert node.run("openai", "stream", **asked)["usage"] is None
    assert counted(node.run("openai", "stream", **asked, more=more)["usage"]) == (2, 2)
    assert counted(node.run("anthropic", "stream", **asked)["usage"]) == (2, 2)


@pytest.mark.parametrize("sdk", SDKS)
def test_models_are_listed_and_retrieved(node: Node, echo_gateway: Gateway, sdk: str) -> None:
    """In the fields that each SDK documents."""
    seen = node.run(sdk, "models", url=echo_gateway.url, model="echo")
    assert seen["listed"] == ["echo"]
    one = seen["one"]
    assert one["id"] == "echo"
    if sdk == "openai":
        assert (one["object"], one["owned_by"]) == ("model", "tpo-mp")
        assert isinstance(one["created"], int)
    else:
        assert (one["type"], one["display_name"]) == ("model", "echo")
        assert one["created_at"].endswith("Z")


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("scenario", ["chat", "models"])
def test_unknown_model_is_the_sdks_not_found(
    node: Node, echo_gateway: Gateway, sdk: str, scenario: str
) -> None:
    """The class, the status and the words, in the envelope of the SDK's own API."""
    error = node.run(sdk, scenario, url=echo_gateway.url, model="nobody-knows", text="hi")["error"]
    assert (error["class"], error["status"]) == ("NotFoundError", 404)
    assert "nobody-knows" in error["message"]
    assert error["request_id"]
    if sdk == "openai":
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    else:
        assert error["type"] == "not_found_error"


@pytest.mark.parametrize("sdk", SDKS)
def test_bad_field_is_the_sdks_bad_request(node: Node, echo_gateway: Gateway, sdk: str) -> None:
    """It names the field."""
    error = node.run(
        sdk, "chat", url=echo_gateway.url, model="echo", text="hi", more={"temperature": 9}
    )["error"]
    assert (error["class"], error["status"]) == ("BadRequestError", 400)
    assert error["type"] == "invalid_request_error"
    assert "temperature" in error["message"]


@pytest.mark.engine
@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("scenario", ["chat", "stream"])
def test_engine_says_the_same_to_every_sdk(
    node: Node, engine_gateway: Gateway, mlx: MlxServer, sdk: str, scenario: str
) -> None:
    """Under its own name and a mapped one: the text and the usage of the engine asked directly."""
    with OpenAI(base_url=mlx.base_url, api_key="unused", timeout=20) as direct:
        told = direct.chat.completions.create(
            model=mlx.model, messages=[{"role": "user", "content": "hello there"}],
            max_tokens=24, temperature=0,
        )  # fmt: skip
    said = told.choices[0].message.content
    assert said
    assert told.usage is not None
    more: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
    if (sdk, scenario) == ("openai", "stream"):
        more["stream_options"] = {"include_usage": True}
    for model in (mlx.model, "tiny"):
        seen = node.run(
            sdk, scenario, url=engine_gateway.url, model=model, text="hello there", more=more
        )
        assert seen["text"] == said
        assert counted(seen["usage"]) == (told.usage.prompt_tokens, told.usage.completion_tokens)
        assert seen["finish_reason"] in ("length", "max_tokens")


@pytest.mark.engine
@pytest.mark.parametrize("sdk", SDKS)
def test_engine_is_listed_to_every_sdk(
    node: Node, engine_gateway: Gateway, mlx: MlxServer, sdk: str
) -> None:
    """The engine's own list and the mapped name, which can be retrieved."""
    seen = node.run(sdk, "models", url=engine_gateway.url, model="tiny")
    assert {"tiny", mlx.model} <= set(seen["listed"])
    assert seen["one"]["id"] == "tiny"


@pytest.mark.engine
def test_engine_refusal_is_the_sdks_error(
    node: Node, engine_gateway: Gateway, mlx: MlxServer
) -> None:
    """What only the engine can refuse comes back as an error of the SDK, never as an answer."""
    error = node.run(
        "openai", "chat", url=engine_gateway.url, model=mlx.model, text="hi", more={"top_k": -5}
    )["error"]
    assert error["status"] >= 400


@pytest.mark.parametrize(("sdk", "model"), CELLS)
def test_upstream_statuses_reach_the_sdk_as_its_errors(
    node: Node, scripted: tuple[Gateway, Upstream], sdk: str, model: str
) -> None:
    """From either API: what the client can mend as it came, what it cannot as a server error."""
    gateway, upstream = scripted
    overloaded = ("InternalServerError", 503)
    if sdk == "anthropic":
        overloaded = ("OverloadedError", 529)
    for status, told in {
        422: ("UnprocessableEntityError", 422),
        429: ("RateLimitError", 429),
        401: ("InternalServerError", 502),  # our credential, not the caller's
        503: overloaded,
    }.items():
        no = {"type": "error", "error": {"type": "whatever_error", "message": "upstream says no"}}
        upstream.queue("status", status=status, reply=no)
        error = node.run(sdk, "chat", url=gateway.url, model=model, text="hi")["error"]
        assert (error["class"], error["status"]) == told
        assert ("upstream says no" in error["message"]) == (status != 401)


@pytest.mark.parametrize(("sdk", "model"), CELLS)
@pytest.mark.parametrize("mode", ["cut", "no_done"])
def test_broken_stream_raises_in_the_sdk(
    node: Node, scripted: tuple[Gateway, Upstream], sdk: str, model: str, mode: Any
) -> None:
    """Cut or just ended: an error after what came, never a finished answer."""
    gateway, upstream = scripted
    upstream.queue(mode, events=streamed(BACKENDS[model], REPLIES), cut_after=3)
    seen = node.run(sdk, "stream", url=gateway.url, model=model, text=f"break {mode}")
    assert seen["error"]["class"] in ("APIError", "InternalServerError")
    assert seen.get("final") is None


@pytest.mark.parametrize(("sdk", "model"), CELLS)
def test_tools_are_called_by_the_sdks_own_loop(
    node: Node, scripted: tuple[Gateway, Upstream], sdk: str, model: str
) -> None:
    """The SDK calls the tool with the arguments it was given, and its result goes upstream.

    Anthropic's asks for a conversation held by the server; it is told that ours may not.
    """
    gateway, upstream = scripted
    upstream.queue("answer", reply=TOOL_REPLIES[BACKENDS[model]])
    upstream.queue("answer", reply=REPLIES[BACKENDS[model]])
    seen = node.run(sdk, "tools", url=gateway.url, model=model, text="Weather in Rome?")
    assert seen["called"] == [{"city": "Rome"}]
    first, second = (request.json() for request in upstream.seen)
    assert len(first["messages"]) == 1
    assert len(first["tools"]) == 1
    if model == "gpt-1":
        assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert "sun" in str(second["messages"][-1])
    assert "call_9" in str(second["messages"][-1])
