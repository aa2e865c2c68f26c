"""Every client dialect before every backend dialect: whole, streamed, tools, errors, breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai import OpenAI

from tests.support.dialects import (
    FOUR,
    PLAIN,
    REPLIES,
    TOOL_REPLIES,
    TOOLS,
    WANTS_USAGE,
    decode,
    encode,
)
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply
from tests.support.toml import NO_CACHE, NO_RETRIES
from tests.support.upstream import Upstream
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import (
    ModelReply,
    ReplyChoice,
    ReplyFailed,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import aggregate, events_of

ROUTES = {
    "openai_chat": "/v1/chat/completions",
    "openai_completions": "/v1/completions",
    "openai_responses": "/v1/responses",
    "anthropic_messages": "/v1/messages",
}
APIS = {
    "openai_chat": "chat",
    "openai_completions": "completions",
    "openai_responses": "responses",
    "anthropic_messages": "messages",
}
CELLS = [(client, backend) for client in ROUTES for backend in FOUR]
TOOL_CELLS = [cell for cell in CELLS if "openai_completions" not in cell]
BACKEND = """
[[backends]]
name = "{name}"
kind = "{kind}"
base_url = "{base_url}"
api_key = "sk-of-the-gateway"
models = ["{name}"]
apis = ["{api}"]
"""
CLIENT_KEY = {"Authorization": "Bearer sk-of-the-client", "x-api-key": "sk-of-the-client"}


@pytest.fixture(scope="module")
def table(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway with one backend per dialect, named after it, all at one scripted upstream."""
    with Upstream() as upstream:
        config = (
            NO_CACHE
            + NO_RETRIES
            + "".join(
                BACKEND.format(
                    name=name, kind=name.partition("_")[0], base_url=upstream.base_url, api=api
                )
                for name, api in APIS.items()
            )
        )
        with Gateway(short_tmp / "table", config=config, workers=2) as gateway:
            yield gateway, upstream


def canonical(backend: str, replies: dict[str, dict[str, Any]]) -> ModelReply:
    """What a backend's reply means."""
    return support.codec(backend).reply_to_canonical(json.dumps(replies[backend]).encode())


def events(backend: str, replies: dict[str, dict[str, Any]]) -> tuple[bytes, ...]:
    """A backend's reply as the events of its stream."""
    text = encode(backend, events_of(canonical(backend, replies)))
    return tuple(event + b"\n\n" for event in text.split(b"\n\n") if event)


def asked(client: str, backend: str, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    """A client's request for the model of that backend."""
    wish = (WANTS_USAGE.get(client) or {"stream": True}) if stream else {}
    return body | {"model": backend} | wish


def told(client: str, reply: Any, stream: bool) -> ModelReply:
    """What the client's own dialect makes of an answer."""
    spoken = support.codec(client)
    if not stream:
        return spoken.reply_to_canonical(reply.body)
    return aggregate(decode(spoken, reply.body))


def essence(reply: ModelReply) -> list[tuple[str, ...]]:
    """Words and tool calls of a reply, and why it ended."""
    (choice,) = reply.choices
    found: list[tuple[str, ...]] = [("stop", choice.stop or "")]
    for block in choice.blocks:
        if isinstance(block, TextBlock):
            found.append(("text", block.text))
        elif isinstance(block, ToolUseBlock):
            arguments = json.dumps(json.loads(block.arguments))
            found.append(("tool", block.id, block.name, arguments))
    return found


@pytest.mark.parametrize(("client", "backend"), CELLS)
@pytest.mark.parametrize("stream", [False, True])
def test_question_is_answered(
    table: tuple[Gateway, Upstream], client: str, backend: str, stream: bool
) -> None:
    """Words, stop reason and usage arrive; the upstream gets a request of its own dialect."""
    gateway, upstream = table
    upstream.queue("answer", reply=REPLIES[backend], events=events(backend, REPLIES))
    body = asked(client, backend, PLAIN[client], stream=stream)
    reply = gateway.ask(ROUTES[client], body, CLIENT_KEY)
    assert reply.status == 200, reply
    assert reply.headers["x-tpo-backend"] == backend
    shown, meant = told(client, reply, stream), canonical(backend, REPLIES)
    assert essence(shown) == essence(meant)
    assert shown.usage is not None
    assert meant.usage is not None
    assert (shown.usage.prompt, shown.usage.completion) == (20, 7)
    seen = upstream.seen[-1]
    assert seen.path == f"/v1/{support.codec(backend).API}"
    assert bool(seen.json().get("stream")) is stream
    support.codec(backend).decode_request(seen.body)
    assert "sk-of-the-client" not in str(seen.headers)


NEWER: dict[str, str] = {
    "openai_chat": """ "messages": [{"role":"user","content":[{"type":"text","text":"h\\u00e9"},
        {"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}},
        {"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}},
        {"type":"file","file":{"file_id":"f-1"}}]}],
        "n": 2, "logprobs": true, "top_logprobs": 3, "stop": ["a","b"], "seed": 7,
        "response_format": {"type":"json_schema","json_schema":{"name":"x","schema":{}}},
        "tools": [{"type":"function","function":{"name":"f","strict":true}},{"type":"custom"}],
        "prediction": {"type":"content","content":"x"}, "service_tier": "flex", "verbosity":"low",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s" """,
    "openai_completions": """ "prompt": ["a", "b"], "suffix": "!", "n": 2, "best_of": 3,
        "logprobs": 2, "echo": true, "stop": "x" """,
    "openai_responses": """ "input": [{"role":"user","content":[
        {"type":"input_file","file_id":"f-1"},
        {"type":"input_image","image_url":"https://x/y.png","detail":"high"}]}],
        "tools": [{"type":"web_search"},{"type":"mcp","server_label":"s"}], "include": ["a.b"],
        "text": {"format":{"type":"json_schema","name":"x","schema":{}},"verbosity":"high"},
        "reasoning": {"effort":"high","summary":"auto"}, "truncation": "auto", "store": false """,
    "anthropic_messages": """ "max_tokens": 99, "system": [{"type":"text","text":"s",
        "cache_control":{"type":"ephemeral","ttl":"1h"}}],
        "thinking": {"type":"enabled","budget_tokens":2048}, "service_tier":"auto",
        "messages": [{"role":"user","content":[{"type":"document","source":{"type":"url",
        "url":"https://x/y.pdf"},"citations":{"enabled":true}}]},
        {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"Eq+/=\\u003c"},
        {"type":"redacted_thinking","data":"zz"},{"type":"tool_use","id":"t","name":"n","input":{}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"ok"}]}],
        "tools": [{"type":"bash_20250124","name":"bash"}], "mcp_servers": [{"type":"url"}],
        "container": "c", "context_management": {"edits": []} """,
}
"""Fields and parts of each dialect, newer than this gateway or not, as a client may write them."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", ROUTES)
def test_same_dialect_passes_bytes(
    table: tuple[Gateway, Upstream], client: str, stream: bool
) -> None:
    """Request, whole reply and stream are the very bytes: spaces, escapes, unknown fields."""
    gateway, upstream = table
    sent = events(client, REPLIES)
    reply = REPLIES[client] | {"x_unknown": {"a": [None]}}
    upstream.queue("answer", reply=reply, events=sent)
    head = '{ "x_unknown" : [1, {"deep": null}],\r\n\t"model":'
    text = f'{head}"{client}",{NEWER[client]}'
    if stream:
        text += ', "stream" : true'
        if client in WANTS_USAGE:
            text += ', "stream_options": {"include_usage": true, "x_more": 1}'
    raw = (text + " }\n").encode()
    headers = {"Content-Type": "application/json"} | CLIENT_KEY
    with RawClient(gateway.url) as connection:
        answer = connection.request("POST", ROUTES[client], headers, raw)
    assert answer.status == 200, answer
    assert upstream.seen[-1].body == raw
    assert answer.body == (b"".join(sent) if stream else json.dumps(reply).encode())


def awkward(backend: str) -> tuple[str, bytes]:
    """Words that look like a stream's own, and a stream of them as no one should write it."""
    said = "data: [DONE]\n\nevent: error\n\u00e9\u6f22\U0001f642 [DONE]"
    reply = msgspec.structs.replace(
        canonical(backend, REPLIES),
        choices=(ReplyChoice((TextBlock(said),), "end"),),
    )
    text = encode(backend, events_of(reply)).decode()
    awkwardly = ": a comment\n: and another\n\n" + text.replace("\n\n", "\n\n:\n\n", 3)
    return said, awkwardly.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(("client", "backend"), CELLS)
def test_stream_is_read_however_it_is_written_and_cut(
    table: tuple[Gateway, Upstream], client: str, backend: str
) -> None:
    """Comments, CRLF, one byte at a time, and ``[DONE]`` among the words."""
    gateway, upstream = table
    said, text = awkward(backend)
    assert "\u6f22".encode() in text
    upstream.queue("drip", events=(text,))
    reply = gateway.ask(ROUTES[client], asked(client, backend, PLAIN[client], stream=True))
    assert reply.status == 200, reply
    assert told(client, reply, True).choices[0].blocks[0].text == said  # type: ignore[union-attr]
    if client == backend:
        assert reply.body == text


EVERY_KIND = b"""\
event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",\
"model":"m","content":[],"usage":{"input_tokens":20,"output_tokens":1}}}

event: ping
data: {"type": "ping"}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking",\
"thinking":"","signature":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta",\
"thinking":"h\xc3\xa9"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta",\
"signature":"EqoB+/=\\u003c <&> \xe6\xbc\xa2 \x7f"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t",\
"name":"n","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta",\
"partial_json":"{\\"a\\": 1}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"citations_delta",\
"citation":{"type":"page_location"}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"delta_of_tomorrow","x":[1]}}

event: event_of_tomorrow
data: {"type":"event_of_tomorrow"}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},\
"usage":{"output_tokens":7}}

event: message_stop
data: {"type":"message_stop"}"""
"""What a message's stream may hold, and what it may hold one day."""


def test_every_event_kind_passes_byte_for_byte(table: tuple[Gateway, Upstream]) -> None:
    """Pings, thoughts, signatures, citations and what is not known yet."""
    gateway, upstream = table
    sent = tuple(event + b"\n\n" for event in EVERY_KIND.split(b"\n\n"))
    upstream.queue("answer", events=sent)
    name = "anthropic_messages"
    reply = gateway.ask(ROUTES[name], asked(name, name, PLAIN[name], stream=True))
    assert reply.body == b"".join(sent)


@pytest.mark.parametrize(("client", "backend"), TOOL_CELLS)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_round_trip(
    table: tuple[Gateway, Upstream], client: str, backend: str, stream: bool
) -> None:
    """Definitions, earlier calls and results, an image and the new call: all arrive."""
    gateway, upstream = table
    upstream.queue("answer", reply=TOOL_REPLIES[backend], events=events(backend, TOOL_REPLIES))
    reply = gateway.ask(ROUTES[client], asked(client, backend, TOOLS[client], stream=stream))
    assert reply.status == 200, reply
    assert essence(told(client, reply, stream)) == essence(canonical(backend, TOOL_REPLIES))
    arrived = support.codec(backend).request_to_canonical(upstream.seen[-1].body)
    meant = support.codec(client).request_to_canonical(json.dumps(TOOLS[client]).encode())
    assert [tool.name for tool in arrived.tools] == [tool.name for tool in meant.tools]
    blocks = [block for message in arrived.messages for block in message.blocks]
    ids = [block.id for block in blocks if isinstance(block, ToolUseBlock)]
    results = [block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)]
    assert ids == results == ["call_1", "call_2"]


@pytest.mark.parametrize("client", sorted(TOOLS))
@pytest.mark.parametrize("stream", [False, True])
def test_tools_before_legacy_completions_are_refused(
    table: tuple[Gateway, Upstream], client: str, stream: bool
) -> None:
    """By the client's own name for the first of them, and the upstream hears nothing."""
    gateway, upstream = table
    before = upstream.counters.requests
    named = {"openai_chat": "messages", "openai_responses": "instructions"}.get(client, "system")
    body = asked(client, "openai_completions", TOOLS[client], stream=stream)
    refused(client, gateway.ask(ROUTES[client], body), named)
    only = PLAIN[client] | {"tools": TOOLS[client]["tools"]}
    body = asked(client, "openai_completions", only, stream=stream)
    refused(client, gateway.ask(ROUTES[client], body), "tools")
    assert upstream.counters.requests == before


@pytest.mark.parametrize("backend", sorted(set(FOUR) - {"openai_completions"}))
def test_legacy_completions_cannot_ask_for_tools(
    table: tuple[Gateway, Upstream], backend: str
) -> None:
    """The dialect has no such field: what is not known is refused, never dropped."""
    gateway, upstream = table
    before = upstream.counters.requests
    client = "openai_completions"
    body = asked(client, backend, PLAIN[client] | {"tools": []}, stream=False)
    refused(client, gateway.ask(ROUTES[client], body), "tools")
    assert upstream.counters.requests == before


def refused(client: str, reply: RawReply, field: str) -> None:
    """A 400 of the client's family that names the field."""
    assert reply.status == 400, reply
    error = reply.json()["error"]
    assert f"{field} cannot be translated" in error["message"]
    if client != "anthropic_messages":
        assert (error["code"], error["param"]) == ("unsupported_translation", field)


@pytest.mark.parametrize(("client", "backend"), CELLS)
@pytest.mark.parametrize(("status", "answered"), [(404, 404), (429, 429), (400, 400), (503, 503)])
def test_upstreams_error_is_told_in_the_clients_envelope(
    table: tuple[Gateway, Upstream], client: str, backend: str, status: int, answered: int
) -> None:
    """Status, words and when to come back."""
    gateway, upstream = table
    words: dict[str, Any] = {"error": {"type": "some_error", "message": "upstream says no"}}
    if backend == "anthropic_messages":
        words["type"] = "error"
    upstream.queue("status", status=status, reply=words, headers={"Retry-After": "2"})
    reply = gateway.ask(ROUTES[client], asked(client, backend, PLAIN[client], stream=False))
    family = "anthropic" if client == "anthropic_messages" else "openai"
    if (family, status) == ("anthropic", 503):
        answered = 529
    assert reply.status == answered
    shown = reply.json()
    assert shown["error"]["message"] == "upstream says no"
    assert (shown.get("type") == "error") is (family == "anthropic")
    if status == 429:
        assert reply.headers["retry-after"] == "2"


@pytest.mark.parametrize(("client", "backend"), CELLS)
@pytest.mark.parametrize("mode", ["cut", "no_done"])
def test_cut_stream_ends_in_the_clients_error_event(
    table: tuple[Gateway, Upstream], client: str, backend: str, mode: Any
) -> None:
    """Once, last, and never with a proper end."""
    gateway, upstream = table
    upstream.queue(mode, events=events(backend, REPLIES), cut_after=2)
    reply = gateway.ask(ROUTES[client], asked(client, backend, PLAIN[client], stream=True))
    assert reply.status == 200
    seen = decode(support.codec(client), reply.body)
    assert isinstance(seen[-1], ReplyFailed)
    assert sum(isinstance(event, ReplyFailed) for event in seen) == 1
    assert b"[DONE]" not in reply.body
    assert b"message_stop" not in reply.body


@pytest.mark.parametrize("client", ROUTES)
def test_error_within_the_gateway_has_the_clients_envelope(
    table: tuple[Gateway, Upstream], client: str
) -> None:
    """A model nobody serves, a body that is none, a wrong method."""
    gateway, _ = table
    bodies: list[Any] = [PLAIN[client] | {"model": "nobody"}, [], {"model": 5}]
    for body in bodies:
        shown = gateway.ask(ROUTES[client], body)
        assert shown.status in (400, 404)
        assert (shown.json().get("type") == "error") is (client == "anthropic_messages")
    refused = gateway.ask(ROUTES[client])
    assert refused.status == 405
    assert (refused.json().get("type") == "error") is (client == "anthropic_messages")


@pytest.fixture
def sdk(table: tuple[Gateway, Upstream]) -> Iterator[OpenAI]:
    """An OpenAI client of the table's gateway."""
    url = f"{table[0].url}/v1"
    with OpenAI(base_url=url, api_key="sk-of-the-client", max_retries=0, timeout=20) as made:
        yield made


def test_openai_sdk_before_an_anthropic_backend(
    table: tuple[Gateway, Upstream], sdk: OpenAI
) -> None:
    """Chat, stream and legacy completions of the unmodified SDK."""
    _, upstream = table
    model, said = "anthropic_messages", "Hi there"
    upstream.queue("answer", times=4, reply=REPLIES[model], events=events(model, REPLIES))
    question: Any = [{"role": "user", "content": "hi"}]
    whole = sdk.chat.completions.create(model=model, messages=question)
    assert whole.choices[0].message.content == said
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (20, 7)
    assert whole.created > 0
    chunks = list(
        sdk.chat.completions.create(
            model=model, messages=question, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert chunks[-1].usage is not None
    legacy = sdk.completions.create(model=model, prompt="hi")
    assert legacy.choices[0].text == said
    parts = sdk.completions.create(model=model, prompt="hi", stream=True)
    assert "".join(part.choices[0].text for part in parts) == said


def test_openai_sdk_calls_a_tool_of_an_anthropic_backend(
    table: tuple[Gateway, Upstream], sdk: OpenAI
) -> None:
    """And sends its result back."""
    _, upstream = table
    model = "anthropic_messages"
    upstream.queue("answer", reply=TOOL_REPLIES[model])
    question: Any = [{"role": "user", "content": "weather?"}]
    tools: Any = TOOLS["openai_chat"]["tools"]
    first = sdk.chat.completions.create(model=model, messages=question, tools=tools)
    assert first.choices[0].finish_reason == "tool_calls"
    assert first.choices[0].message.tool_calls is not None
    (call,) = first.choices[0].message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    upstream.queue("answer", reply=REPLIES[model])
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    turn: Any = first.choices[0].message.model_dump(exclude_none=True)
    last = sdk.chat.completions.create(model=model, messages=[*question, turn, result], tools=tools)
    assert last.choices[0].message.content == "Hi there"
    sent = upstream.seen[-1].json()
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    (used,) = [b for b in sent["messages"][1]["content"] if b["type"] == "tool_use"]
    (given,) = sent["messages"][2]["content"]
    assert used["id"] == given["tool_use_id"] == call.id
    assert given["type"] == "tool_result"


def test_broken_anthropic_stream_raises_in_the_openai_sdk(
    table: tuple[Gateway, Upstream], sdk: OpenAI
) -> None:
    """Not just fewer words."""
    _, upstream = table
    model = "anthropic_messages"
    upstream.queue("cut", events=events(model, REPLIES), cut_after=3)
    question: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.APIError):
        list(sdk.chat.completions.create(model=model, messages=question, stream=True))
