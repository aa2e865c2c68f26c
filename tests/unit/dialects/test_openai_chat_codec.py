"""OpenAI chat through the canonical model: thoughts, choices, log probabilities, odd streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

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
from tpo_mp.dialects import anthropic_messages, openai_completions
from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.dialects.canonical import (
    BlockStart,
    BlockStop,
    ModelReply,
    ReplyChoice,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import (
    StreamTranslator,
    aggregate,
    events_of,
    translate_reply,
    translate_request,
)
from tpo_mp.errors import InvalidRequest

LOGPROBS: list[dict[str, Any]] = [
    {
        "token": "Hé",
        "logprob": -0.5,
        "bytes": [72, 195, 169],
        "top_logprobs": [{"token": "Hé", "logprob": -0.5, "bytes": [72, 195, 169]}],
    },
    {"token": "!", "logprob": -1.5, "bytes": [33], "top_logprobs": []},
]


def chunks(*deltas: dict[str, Any], finish: str | None = "stop") -> bytes:
    """A stream of deltas."""
    out = [dialect.event(dialect.chunk("chatcmpl-1", 5, "m", delta)) for delta in deltas]
    if finish:
        out.append(dialect.event(dialect.chunk("chatcmpl-1", 5, "m", {}, finish)) + dialect.DONE)
    return b"".join(out)


def test_the_sdk_reads_every_chunk_and_reply() -> None:
    """Bodies and chunks parse as the SDK's own types."""
    reply = dialect.reply_to_canonical(body(TOOL_REPLIES[dialect.NAME]))
    for data in datas(encode(dialect.NAME, events_of(reply))):
        ChatCompletionChunk.model_validate(data, strict=True)
    shown = ChatCompletion.model_validate_json(dialect.reply_from_canonical(reply))
    assert shown.choices[0].finish_reason == "tool_calls"
    assert shown.usage is not None
    assert shown.usage.prompt_tokens_details is not None
    assert shown.usage.prompt_tokens_details.cached_tokens == 5


def test_blocks_are_opened_and_closed_as_the_wire_implies() -> None:
    """Thoughts, words and calls are blocks of their own."""
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    stream = chunks(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "a"},
        {"content": "b"},
        {"tool_calls": [call]},
        {"tool_calls": [more]},
        finish="tool_calls",
    )
    events = decode(dialect, stream)
    starts = [event.block for event in events if isinstance(event, BlockStart)]
    assert starts == [ThinkingBlock(""), TextBlock(""), ToolUseBlock("c", "f", "")]
    assert [event.index for event in events if isinstance(event, BlockStop)] == [0, 1, 2]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["a", "b"]
    assert isinstance(events[-1], ReplyEnd)
    assert ReplyStop("tool_use") in events


def test_usage_is_shown_only_to_who_asked() -> None:
    """The last chunk without choices is for clients with include_usage."""
    reply = dialect.reply_to_canonical(body(TOOL_REPLIES[dialect.NAME]))
    asked = dialect.request_to_canonical(body(PLAIN[dialect.NAME], stream=True))
    encoder = dialect.StreamEncoder(asked)
    sent = b"".join(encoder.encode(event) for event in events_of(reply))
    assert all("usage" not in data for data in datas(sent))
    assert "usage" in datas(encode(dialect.NAME, events_of(reply)))[-1]


def test_upstreams_are_asked_for_usage() -> None:
    """Whoever translates a stream needs its counts."""
    asked = anthropic_messages.request_to_canonical(body(PLAIN["anthropic_messages"], stream=True))
    for target in (dialect, openai_completions):
        sent = json.loads(translate_request(asked, target))
        assert sent["stream_options"] == {"include_usage": True}
        assert "stream_options" not in json.loads(translate_request(asked, target, stream=False))


def test_several_choices_stay_apart() -> None:
    """Interleaved choices of a stream come out whole, in both dialects that know them."""
    reply = ModelReply(
        id="chatcmpl-1",
        model="m",
        choices=tuple(ReplyChoice((TextBlock(f"answer {i}"),)) for i in range(3)),
    )
    for name in (dialect.NAME, openai_completions.NAME):
        codec = {dialect.NAME: dialect, openai_completions.NAME: openai_completions}[name]
        found = aggregate(decode(codec, encode(name, events_of(reply))))
        assert found.choices == reply.choices


def test_log_probabilities_translate_to_the_legacy_columns_and_back() -> None:
    """Rows become columns with text offsets, whole and streamed."""
    choice = ReplyChoice((TextBlock("Hé!"),), "end", None, LOGPROBS)
    reply = ModelReply(id="chatcmpl-1", model="m", created=1, choices=(choice,))
    asked = openai_completions.request_to_canonical(body(PLAIN["openai_completions"], logprobs=1))
    whole = dialect.reply_from_canonical(reply)
    sent = translate_reply(whole, dialect, openai_completions, asked, created=1)
    columns = json.loads(sent)["choices"][0]["logprobs"]
    assert columns["tokens"] == ["Hé", "!"]
    assert columns["text_offset"] == [0, 2]
    assert columns["top_logprobs"] == [{"Hé": -0.5}, {}]
    assert openai_completions.reply_to_canonical(sent).choices[0].logprobs == LOGPROBS
    stream = StreamTranslator(dialect, openai_completions, asked, created=1)
    streamed = stream.feed(encode(dialect.NAME, events_of(reply)))
    assert aggregate(decode(openai_completions, streamed)).choices[0].logprobs == LOGPROBS


def test_signed_thoughts_reach_chat_clients() -> None:
    """Words as reasoning models send them, and signed blocks to echo."""
    reply = ModelReply(
        id="msg_1", model="m", choices=(ReplyChoice((ThinkingBlock("hm", SIGNATURE),)),)
    )
    message = json.loads(dialect.reply_from_canonical(reply))["choices"][0]["message"]
    assert message["reasoning_content"] == "hm"
    assert message["thinking_blocks"] == [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
    ]


def test_thoughts_of_others_are_not_sent() -> None:
    """A strict server refuses unknown message fields."""
    thought = {"type": "thinking", "thinking": "t", "signature": "s"}
    said = {"role": "assistant", "content": [thought, {"type": "text", "text": "a"}]}
    messages = [{"role": "user", "content": "x"}, said]
    fields = body(PLAIN["anthropic_messages"], messages=messages)
    asked = anthropic_messages.request_to_canonical(fields)
    sent = json.loads(translate_request(asked, dialect))
    assert sent["messages"][1] == {"role": "assistant", "content": "a"}


def test_own_requests_keep_every_field() -> None:
    """Through the canonical model and back, nothing this dialect said is lost."""
    rich = TOOLS[dialect.NAME] | {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "name": "ann", "content": "x"},
            {
                "role": "assistant",
                "content": "y",
                "reasoning_content": "hm",
                "audio": {"id": "a"},
            },
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"file_id": "f"}},
                    {"type": "text", "text": "z", "prompt_cache_breakpoint": {"mode": "explicit"}},
                    {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
                ],
            },
        ],
        "max_completion_tokens": 9,
        "min_p": 0.1,
        "store": True,
        "seed": 3,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
        },
        "metadata": {"a": "b"},
        "user": "u",
        "prompt_cache_key": "k",
        "verbosity": "low",
    }
    del rich["max_tokens"]
    assert json.loads(translate_request(dialect.request_to_canonical(body(rich)), dialect)) == rich


def test_an_in_band_error_ends_the_stream() -> None:
    """Servers report what broke in a chunk; nothing after it counts."""
    error = b'data: {"error":{"message":"no memory","type":"server_error","code":500}}\n\n'
    events = decode(dialect, chunks({"content": "a"}, finish=None) + error + dialect.DONE)
    assert isinstance(events[0], ReplyStart)
    assert isinstance(events[-1], ReplyFailed)
    assert events[-1].error.message == "no memory"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "x", "function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_translation_names_the_field_at_fault(fields: dict[str, Any], param: str) -> None:
    """What the head did not look at is checked when it matters."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.request_to_canonical(body(PLAIN[dialect.NAME], **fields))
    assert refused.value.param == param
