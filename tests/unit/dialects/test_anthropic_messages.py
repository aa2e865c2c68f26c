"""Anthropic messages: signatures to the character, event order, refusals by name, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message as SdkMessage
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.support.dialects import PLAIN, SIGNATURE, TOOL_REPLIES, body, datas, decode, encode
from tpo_mp.dialects import anthropic_messages as dialect
from tpo_mp.dialects import openai_chat, openai_responses
from tpo_mp.dialects.canonical import (
    OpaqueBlock,
    Ping,
    ReplyFailed,
    TextBlock,
    ThinkingBlock,
    unsupported,
)
from tpo_mp.dialects.translate import (
    StreamTranslator,
    aggregate,
    events_of,
    translate_reply,
    translate_request,
)
from tpo_mp.errors import (
    BackendFailure,
    BackendTimeout,
    Draining,
    InvalidRequest,
    NotFound,
    PolicyViolation,
    RateLimited,
    TooLarge,
    TpoError,
    Unauthorized,
)

THOUGHTS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Hm — 漢", "signature": SIGNATURE},
    {"type": "redacted_thinking", "data": SIGNATURE[::-1]},
    {"type": "text", "text": "So."},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": [1, "é"]}},
]
REPLY = TOOL_REPLIES["anthropic_messages"] | {"content": THOUGHTS}


def request(**more: Any) -> bytes:
    """A request with more fields."""
    return body(PLAIN["anthropic_messages"], **more)


@pytest.mark.parametrize("client", [dialect, openai_chat, openai_responses])
@pytest.mark.parametrize("streamed", [False, True])
def test_signatures_make_the_round_trip(client: Any, streamed: bool) -> None:
    """What the model signed goes to any client and comes back as it was, to the character."""
    asked = client.request_to_canonical(body(PLAIN[client.NAME]))
    if streamed:
        upstream = encode(dialect.NAME, events_of(dialect.reply_to_canonical(body(REPLY))))
        stream = StreamTranslator(dialect, client, asked, created=1)
        got = aggregate(decode(client, stream.feed(upstream)))
        shown = json.loads(client.reply_from_canonical(got, asked))
    else:
        shown = json.loads(translate_reply(body(REPLY), dialect, client, asked, created=1))
    echoed = client.request_to_canonical(body(echo_of(client, shown)))
    sent = json.loads(translate_request(echoed, dialect))
    assert sent["messages"][1] == {"role": "assistant", "content": THOUGHTS}


def echo_of(client: Any, shown: dict[str, Any]) -> dict[str, Any]:
    """The next request of a client that sends back what it was shown."""
    asked = {"role": "user", "content": "Hello"}
    if client is openai_responses:
        return {"model": "m", "input": [asked, *shown["output"]]}
    if client is openai_chat:
        return {"model": "m", "messages": [asked, shown["choices"][0]["message"]]}
    said = {"role": "assistant", "content": shown["content"]}
    return {"model": "m", "max_tokens": 5, "messages": [asked, said]}


def test_events_come_in_the_order_sdks_expect() -> None:
    """Start, blocks one after the other, stop reason with usage, end; each named."""
    stream = encode(dialect.NAME, events_of(dialect.reply_to_canonical(body(REPLY))))
    kinds = [data["type"] for data in datas(stream)]
    blocks = [
        kind
        for deltas in (2, 0, 1, 1)
        for kind in (
            "content_block_start",
            *["content_block_delta"] * deltas,
            "content_block_stop",
        )
    ]
    assert kinds == ["message_start", *blocks, "message_delta", "message_stop"]
    names = [line[7:] for line in stream.decode().split("\n") if line.startswith("event: ")]
    assert names == kinds


def test_the_sdk_reads_every_event_and_reply() -> None:
    """Bodies and events parse as the SDK's own types."""
    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    canonical = dialect.reply_to_canonical(body(REPLY))
    for data in datas(encode(dialect.NAME, events_of(canonical))):
        assert events.validate_python(data, strict=True).type == data["type"]
    reply = SdkMessage.model_validate_json(dialect.reply_from_canonical(canonical))
    assert [block.type for block in reply.content] == [block["type"] for block in THOUGHTS]
    assert reply.usage.cache_read_input_tokens == 5


def test_pings_pass_and_unknown_events_are_skipped() -> None:
    """A ping keeps both legs alive; an event of the future harms nobody."""
    decoder = dialect.StreamDecoder()
    assert decoder.feed(b'event: ping\ndata: {"type":"ping"}\n\n') == [Ping()]
    assert decoder.feed(b'event: news\ndata: {"type":"news","index":3}\n\n') == []
    assert dialect.StreamEncoder(dialect.request_to_canonical(request())).encode(Ping()) == (
        b'event: ping\ndata: {"type":"ping"}\n\n'
    )


def test_blocks_of_the_provider_stay_with_its_own_clients() -> None:
    """Server tools pass to clients of this dialect, and leave no gap for others."""
    server = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    raw = REPLY | {"content": [server, {"type": "text", "text": "Found."}]}
    reply = dialect.reply_to_canonical(body(raw))
    assert isinstance(reply.choices[0].blocks[0], OpaqueBlock)
    assert json.loads(dialect.reply_from_canonical(reply))["content"] == raw["content"]
    asked = dialect.request_to_canonical(request())
    stream = StreamTranslator(dialect, openai_responses, asked, created=1)
    sent = stream.feed(encode(dialect.NAME, events_of(reply)))
    shown = aggregate(decode(openai_responses, sent))
    assert [type(block) for block in shown.choices[0].blocks] == [TextBlock]
    assert [d["output_index"] for d in datas(sent) if "output_index" in d] == [0] * 6
    whole = translate_reply(body(raw), dialect, openai_chat, asked, created=1)
    assert json.loads(whole)["choices"][0]["message"]["content"] == "Found."


def test_usage_counts_cached_tokens_once() -> None:
    """Input tokens here exclude cached ones; the gateway books the whole prompt."""
    counts = {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 10,
              "cache_creation_input_tokens": 100}  # fmt: skip
    usage = dialect.usage_of(body(REPLY | {"usage": counts}))
    assert usage is not None
    assert (usage.prompt, usage.completion, usage.cached) == (113, 2, 10)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"temperature": 1.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"verbosity": "low"}, "verbosity"),
        ({"min_p": 0.1}, "min_p"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "mood": "sad"}]},
            "messages[0].mood",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
                    },
                ]
            },
            "messages[1].content[0].arguments",
        ),
    ],
)
def test_what_messages_cannot_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A chat client learns which of its fields does not translate."""
    with pytest.raises(InvalidRequest) as refused:
        translate_request(
            openai_chat.request_to_canonical(body(PLAIN["openai_chat"], **fields)), dialect
        )
    assert refused.value.reason == "unsupported_translation"
    assert refused.value.param == param
    assert refused.value.status == 400


def test_hints_and_neutral_values_are_dropped() -> None:
    """Fields that change no answer, nulls and zero penalties refuse nothing."""
    fields: dict[str, Any] = {
        "store": True,
        "service_tier": "auto",
        "seed": None,
        "frequency_penalty": 0,
        "n": 1,
        "response_format": {"type": "text"},
        "prompt_cache_key": "k",
        "user": "u" * 100,
    }
    sent = json.loads(
        translate_request(
            openai_chat.request_to_canonical(body(PLAIN["openai_chat"], **fields)), dialect
        )
    )
    assert set(sent) == {"model", "max_tokens", "messages", "temperature", "top_p", "metadata"}


def test_own_requests_keep_every_field() -> None:
    """Through the canonical model and back, nothing this dialect said is lost."""
    rich = PLAIN["anthropic_messages"] | {
        "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "document", "source": {"type": "text"}}]},
            {"role": "assistant", "content": [*THOUGHTS]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": "no",
                        "is_error": True,
                        "cache_control": {"type": "ephemeral"},
                    }
                ],
            },
        ],
        "tools": [
            {"type": "web_search_20260209", "name": "web_search"},
            {"name": "f", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        "output_config": {"effort": "max", "task_budget": {"total": 5}},
        "metadata": {"user_id": "u", "other": 1},
        "container": "c",
        "service_tier": "auto",
        "stop_sequences": ["x"],
        "stream": True,
    }
    assert json.loads(translate_request(dialect.request_to_canonical(body(rich)), dialect)) == rich


def test_a_limit_is_always_sent() -> None:
    """The wire requires max_tokens; a client of another dialect need not set it."""
    plain = {k: v for k, v in PLAIN["openai_chat"].items() if k != "max_tokens"}
    sent = json.loads(translate_request(openai_chat.request_to_canonical(body(plain)), dialect))
    assert sent["max_tokens"] == dialect.DEFAULT_MAX_TOKENS


def test_reasoning_effort_becomes_thinking() -> None:
    """An OpenAI effort is adaptive thinking; none switches it off; a budget becomes an effort."""
    for effort, thinking, output in (
        ("high", {"type": "adaptive"}, {"effort": "high"}),
        ("minimal", {"type": "adaptive"}, {"effort": "low"}),
        ("none", {"type": "disabled"}, None),
    ):
        fields = body(PLAIN["openai_chat"], reasoning_effort=effort)
        sent = json.loads(translate_request(openai_chat.request_to_canonical(fields), dialect))
        assert sent["thinking"] == thinking
        assert sent.get("output_config") == output
    budget = request(thinking={"type": "enabled", "budget_tokens": 4000})
    sent = json.loads(translate_request(dialect.request_to_canonical(budget), openai_chat))
    assert sent["reasoning_effort"] == "medium"


def test_foreign_tool_ids_are_made_acceptable() -> None:
    """Some engines' call ids have dots and colons; call and result still pair up."""
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": ""}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": ""},
    ]
    fields = body(PLAIN["openai_chat"], messages=messages)
    sent = json.loads(translate_request(openai_chat.request_to_canonical(fields), dialect))
    assert sent["messages"][1]["content"] == [
        {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {}}
    ]
    assert sent["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "functions_f_0"}
    ]


def test_unsigned_thoughts_are_not_sent() -> None:
    """Another model's thoughts have no signature this provider would accept."""
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "hm"},
        {"role": "user", "content": "z"},
    ]
    asked = openai_chat.request_to_canonical(body(PLAIN["openai_chat"], messages=messages))
    assert ThinkingBlock("hm") in asked.messages[1].blocks
    sent = json.loads(translate_request(asked, dialect))
    assert sent["messages"][1] == {"role": "assistant", "content": "y"}


def test_malformed_tool_arguments_fail_the_reply() -> None:
    """An object cannot be made of them, and inventing one would be worse."""
    broken = json.loads(json.dumps(TOOL_REPLIES["openai_chat"]))
    broken["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = '{"city":'
    asked = dialect.request_to_canonical(request())
    with pytest.raises(BackendFailure) as failed:
        translate_reply(body(broken), openai_chat, dialect, asked, created=1)
    assert failed.value.reason == "bad_tool_arguments"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (Unauthorized("x"), 401, "authentication_error"),
        (PolicyViolation("x", status=402), 402, "billing_error"),
        (PolicyViolation("x", status=403), 403, "permission_error"),
        (NotFound("x"), 404, "not_found_error"),
        (TooLarge("x"), 413, "request_too_large"),
        (InvalidRequest("x", status=422), 422, "invalid_request_error"),
        (RateLimited("x"), 429, "rate_limit_error"),
        (TpoError("x"), 500, "api_error"),
        (BackendFailure("x"), 502, "api_error"),
        (BackendTimeout("x"), 504, "timeout_error"),
        (Draining("x"), 529, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_types(error: TpoError, status: int, kind: str) -> None:
    """Status and type as the real service pairs them; overload is 529."""
    assert dialect.error_status(error) == status
    shown = json.loads(dialect.error_body(error, "req_1"))
    assert shown == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }
    event = dialect.error_event(error)
    assert event.startswith(b"event: error\ndata: ")
    failed = decode(dialect, event)[-1]
    assert isinstance(failed, ReplyFailed)


def test_refused_thread_is_refused_in_the_words_that_sdks_recover_from() -> None:
    """A conversation held by the server is asked for by default; no other refusal has details."""
    refused = unsupported("thread", "openai_chat")
    told = json.loads(dialect.error_body(refused))["error"]
    assert told["type"] == "invalid_request_error"
    assert told["details"]["error_code"] == "thread_unsupported_request"
    other = json.loads(dialect.error_body(unsupported("container", "openai_chat")))["error"]
    assert "details" not in other


def test_an_upstreams_own_error_body_passes_as_it_came() -> None:
    """Between the same dialects the client sees what the provider said."""
    error = InvalidRequest("x", body=b'{"type":"error"}')
    assert dialect.error_body(error) == b'{"type":"error"}'


def test_a_token_count_needs_no_limit() -> None:
    """Counting is a request without max_tokens, and its answer one number."""
    plain = {k: v for k, v in PLAIN["anthropic_messages"].items() if k != "max_tokens"}
    assert dialect.decode_count_request(body(plain)).model == "m"
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode_request(body(plain))
    assert refused.value.param == "max_tokens"
    assert dialect.token_count(7) == b'{"input_tokens":7}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": 1, "content": ""}]}, "messages[0].role"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """The head's checks say which field is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode_request(request(**fields))
    assert refused.value.param == param


def test_a_session_is_named_by_the_metadata() -> None:
    """Claude Code names its session in ``metadata.user_id``."""
    assert dialect.decode_request(request(metadata={"user_id": "s"})).affinity == "s"
    assert dialect.decode_request(request()).affinity is None
