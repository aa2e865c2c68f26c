"""OpenAI responses: events that SDKs read, state that must be resolved first, refusals by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.dialects import (
    PLAIN,
    SIGNATURE,
    TOOL_REPLIES,
    TOOLS,
    body,
    datas,
    decode,
    encode,
)
from tpo_mp.dialects import anthropic_messages, openai_chat
from tpo_mp.dialects import openai_responses as dialect
from tpo_mp.dialects.canonical import (
    ModelReply,
    RefusalBlock,
    ReplyChoice,
    ReplyFailed,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import StreamTranslator, aggregate, events_of, translate_request
from tpo_mp.errors import BackendFailure, InvalidRequest, RateLimited

RICH = ModelReply(
    id="resp_1",
    model="m",
    created=1700000000,
    choices=(
        ReplyChoice(
            (
                ThinkingBlock("hm", SIGNATURE),
                TextBlock("Say: data: [DONE]"),
                RefusalBlock("no"),
                ToolUseBlock("call_1", "look", '{"a": 1}'),
            ),
            "tool_use",
        ),
    ),
    usage=TokenUsage(10, 5, 2, 1, 3),
)


def request(**more: Any) -> bytes:
    """A request with more fields."""
    return body(PLAIN["openai_responses"], **more)


def test_the_sdk_reads_every_event_and_reply() -> None:
    """Bodies and events parse as the SDK's own types."""
    events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    stream = encode(dialect.NAME, events_of(RICH))
    for data in datas(stream):
        assert events.validate_python(data).type == data["type"]
    asked = dialect.request_to_canonical(body(TOOLS[dialect.NAME]))
    reply = SdkResponse.model_validate_json(dialect.reply_from_canonical(RICH, asked))
    assert reply.output_text == "Say: data: [DONE]"
    assert reply.instructions == "Be brief."
    assert reply.usage is not None
    assert reply.usage.input_tokens_details.cache_write_tokens == 1


def test_events_are_numbered_and_the_last_repeats_the_whole() -> None:
    """Sequence numbers count from 0; the completed response is what was streamed."""
    found = datas(encode(dialect.NAME, events_of(RICH)))
    assert [data["sequence_number"] for data in found] == list(range(len(found)))
    done = [data["item"] for data in found if data["type"] == "response.output_item.done"]
    last = found[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"] == done
    assert last["response"]["status"] == "completed"
    whole = json.loads(dialect.reply_from_canonical(RICH))
    assert last["response"]["output"] == whole["output"]
    assert last["response"]["usage"] == whole["usage"]


def test_an_answer_cut_by_its_limit_is_incomplete() -> None:
    """Length is a status with a reason, whole and streamed."""
    reply = ModelReply(id="resp_1", model="m", choices=(ReplyChoice((TextBlock("a"),), "length"),))
    whole = json.loads(dialect.reply_from_canonical(reply))
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert datas(encode(dialect.NAME, events_of(reply)))[-1]["type"] == "response.incomplete"


def test_a_server_that_sends_no_deltas_is_understood() -> None:
    """Some engines send items only when they are done."""
    item = TOOL_REPLIES["openai_responses"]["output"][1]
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SIGNATURE,
                 "content": [{"type": "reasoning_text", "text": "hm"}]}  # fmt: skip
    events = [
        {"type": "response.created", "response": {"id": "resp_1", "model": "m"}},
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning},
        {"type": "response.output_item.done", "output_index": 1, "item": item},
        {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}},
    ]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    reply = aggregate(decode(dialect, stream))
    assert reply.choices[0].blocks == (
        ThinkingBlock("hm", SIGNATURE),
        ToolUseBlock("call_9", "weather", '{"city":"Rome"}'),
    )
    assert reply.choices[0].stop == "tool_use"


def test_a_failed_response_is_an_error_whole_and_streamed() -> None:
    """Status failed with 200 is not success."""
    error = {"code": "rate_limit_exceeded", "message": "slow"}
    failed = TOOL_REPLIES["openai_responses"] | {"status": "failed", "error": error}
    with pytest.raises(RateLimited):
        dialect.reply_to_canonical(body(failed))
    event = {"type": "response.failed", "response": failed}
    last = decode(dialect, b"data: " + body(event) + b"\n\n")[-1]
    assert isinstance(last, ReplyFailed)
    assert last.error.status == 429


def test_a_broken_stream_fails_for_every_kind_of_reader() -> None:
    """Readers of terminal events see ``response.failed``; the SDK raises on ``error``."""
    asked = dialect.request_to_canonical(request(stream=True))
    stream = StreamTranslator(openai_chat, dialect, asked, created=1)
    chunk = openai_chat.event(openai_chat.chunk("chatcmpl-1", 1, "m", {"content": "a"}))
    sent = stream.feed(chunk) + stream.fail(BackendFailure("gone"))
    found = datas(sent)
    assert [data["type"] for data in found[-2:]] == ["response.failed", "error"]
    assert found[-1]["error"]["message"] == "gone"
    assert found[-1]["sequence_number"] == len(found) - 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
    ],
)
def test_state_and_provider_tools_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Another provider has neither this one's memory nor its tools."""
    for target in (openai_chat, anthropic_messages):
        with pytest.raises(InvalidRequest) as refused:
            translate_request(dialect.request_to_canonical(request(**fields)), target)
        assert refused.value.reason == "unsupported_translation"
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"stop": "x"}, "stop"), ({"n": 2}, "n"), ({"seed": 1}, "seed"), ({"top_k": 5}, "top_k")],
)
def test_what_responses_cannot_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A chat client learns which of its fields does not translate."""
    asked = openai_chat.request_to_canonical(body(PLAIN["openai_chat"], **fields))
    with pytest.raises(InvalidRequest) as refused:
        translate_request(asked, dialect)
    assert refused.value.param == param


def test_own_requests_keep_every_field() -> None:
    """Through the canonical model and back, nothing this dialect said is lost."""
    rich = TOOLS[dialect.NAME] | {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SIGNATURE},
            {"type": "function_call_output", "call_id": "c", "output": "r", "status": "completed"},
        ],
        "tools": [{"type": "web_search"}],
        "tool_choice": {"type": "web_search"},
        "text": {"verbosity": "low", "format": {"type": "json_object"}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": True,
        "previous_response_id": "resp_0",
        "background": True,
        "metadata": {"a": "b"},
        "stream": True,
    }
    asked = dialect.request_to_canonical(body(rich))
    sent = json.loads(translate_request(asked, dialect))
    # What the model said itself carries its id; the gateway need not invent one.
    assert sent["input"][2].pop("id").startswith("rs_")
    expected = json.loads(json.dumps(rich))
    expected["input"][2].pop("id")
    assert sent == expected


def test_foreign_requests_leave_nothing_with_the_provider() -> None:
    """A chat client never asked for storage; thoughts come back encrypted for it to echo."""
    asked = openai_chat.request_to_canonical(
        body(PLAIN["openai_chat"], reasoning_effort="low", logprobs=True, top_logprobs=2)
    )
    sent = json.loads(translate_request(asked, dialect))
    assert sent["store"] is False
    assert sent["include"] == ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert sent["reasoning"] == {"effort": "low", "summary": "auto"}
    assert sent["top_logprobs"] == 2


def test_input_is_always_a_list_of_items() -> None:
    """Whoever stores or prepends history sees one shape."""
    assert dialect.input_items(request()) == [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Hello"}],
        }
    ]
    assert dialect.input_items(b"{}") == []
    for wrong in (5, [1]):
        with pytest.raises(InvalidRequest):
            dialect.input_items(request(input=wrong))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"model": ""}, "model"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """The head's checks say which field is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode_request(request(**fields))
    assert refused.value.param == param


def test_a_session_is_named_by_key_conversation_or_user() -> None:
    """The first that is there, in this order."""
    fields: dict[str, Any] = {"prompt_cache_key": "k", "conversation": "c", "user": "u"}
    assert dialect.decode_request(request(**fields)).affinity == "k"
    del fields["prompt_cache_key"]
    assert dialect.decode_request(request(**fields)).affinity == "c"
    assert dialect.decode_request(request(user="u")).affinity == "u"
