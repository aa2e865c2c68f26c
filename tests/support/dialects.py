"""The same conversation, answer and stream in every wire dialect, as its own API writes them."""

from __future__ import annotations

import json
from typing import Any

from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import StreamEvent
from tpo_mp.dialects.codec import Codec
from tpo_mp.dialects.translate import events_of

FOUR = ("openai_chat", "openai_completions", "anthropic_messages", "openai_responses")
PAIRS = [(client, backend) for client in FOUR for backend in FOUR]
TOOL_PAIRS = [(c, b) for c, b in PAIRS if "openai_completions" not in (c, b)]
SIGNATURE = "EqoBCkgIARABGAIiQL2UoU0b1OHYi+/=\\u003c <&> é 漢 \x7f"
PIXEL = "iVBORw0KGgo="
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}

PLAIN: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "openai_completions": {
        "model": "m",
        "prompt": "Hello",
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "anthropic_messages": {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "openai_responses": {
        "model": "m",
        "input": "Hello",
        "max_output_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    },
}
"""One question, the same in each dialect."""

TOOLS: dict[str, dict[str, Any]] = {
    "openai_chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Rome and Oslo?"},
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                    },
                    {
                        "id": "call_2",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            {"role": "tool", "tool_call_id": "call_2", "content": "snow"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And here?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Asks.", "parameters": SCHEMA},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "max_tokens": 50,
    },
    "anthropic_messages": {
        "model": "m",
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Weather in Rome and Oslo?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me look."},
                    {
                        "type": "tool_use",
                        "id": "call_1",
                        "name": "weather",
                        "input": {"city": "Rome"},
                    },
                    {
                        "type": "tool_use",
                        "id": "call_2",
                        "name": "weather",
                        "input": {"city": "Oslo"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_1",
                        "content": [{"type": "text", "text": "sun"}],
                    },
                    {"type": "tool_result", "tool_use_id": "call_2", "content": "snow"},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And here?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
                    },
                ],
            },
        ],
        "tools": [{"name": "weather", "description": "Asks.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "max_tokens": 50,
    },
    "openai_responses": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Weather in Rome and Oslo?"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Let me look."}],
            },
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city":"Rome"}',
            },
            {
                "type": "function_call",
                "call_id": "call_2",
                "name": "weather",
                "arguments": '{"city":"Oslo"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
            {"type": "function_call_output", "call_id": "call_2", "output": "snow"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "And here?"},
                    {
                        "type": "input_image",
                        "image_url": f"data:image/png;base64,{PIXEL}",
                        "detail": "auto",
                    },
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "name": "weather",
                "description": "Asks.",
                "parameters": SCHEMA,
                "strict": None,
            }
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "max_output_tokens": 50,
    },
}
"""System prompt, two tool calls with results, an image: the same in each dialect that has tools."""

_CALLS = [
    {
        "id": "call_9",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
    }
]
_OPENAI_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_RESPONSES_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 27,
}
_ANTHROPIC_USAGE = {
    "input_tokens": 15,
    "output_tokens": 7,
    "cache_read_input_tokens": 5,
    "cache_creation_input_tokens": 0,
    "output_tokens_details": {"thinking_tokens": 3},
}


def _chat_reply(message: dict[str, Any], finish: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m-1",
        "choices": [choice],
        "usage": _OPENAI_USAGE,
    }


def _message_reply(content: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    return {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": _ANTHROPIC_USAGE,
    }


def _response_reply(output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "resp_7",
        "object": "response",
        "created_at": 1700000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "m-1",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": _RESPONSES_USAGE,
    }


_ITEM = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hi there", "annotations": []}],
}
_CALL_ITEM = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_9",
    "name": "weather",
    "arguments": '{"city":"Rome"}',
    "status": "completed",
}

REPLIES: dict[str, dict[str, Any]] = {
    "openai_chat": _chat_reply({"content": "Hi there"}, "stop"),
    "openai_completions": {
        "id": "cmpl-7",
        "object": "text_completion",
        "created": 1700000000,
        "model": "m-1",
        "choices": [{"text": "Hi there", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": _OPENAI_USAGE,
    },
    "anthropic_messages": _message_reply([{"type": "text", "text": "Hi there"}], "end_turn"),
    "openai_responses": _response_reply([_ITEM]),
}
"""One answer."""

TOOL_REPLIES: dict[str, dict[str, Any]] = {
    "openai_chat": _chat_reply({"content": "Hi there", "tool_calls": _CALLS}, "tool_calls"),
    "anthropic_messages": _message_reply(
        [
            {"type": "text", "text": "Hi there"},
            {"type": "tool_use", "id": "call_9", "name": "weather", "input": {"city": "Rome"}},
        ],
        "tool_use",
    ),
    "openai_responses": _response_reply([_ITEM, _CALL_ITEM]),
}
"""One answer that calls a tool."""


def body(fields: dict[str, Any], **more: Any) -> bytes:
    """A JSON body."""
    return json.dumps(fields | more).encode()


def decode(codec: Codec, stream: bytes, size: int = 1 << 20) -> list[StreamEvent]:
    """Decode a stream that arrives in pieces of ``size`` bytes."""
    decoder = codec.StreamDecoder()
    events: list[StreamEvent] = []
    for start in range(0, len(stream), size):
        events += decoder.feed(stream[start : start + size])
    return events + decoder.close()


def encode(name: str, events: list[StreamEvent]) -> bytes:
    """Events as the stream of a dialect, for a client that wants usage."""
    codec = support.codec(name)
    request = codec.request_to_canonical(body(PLAIN[name], **WANTS_USAGE.get(name, {})))
    encoder = codec.StreamEncoder(request)
    return b"".join(encoder.encode(event) for event in events)


def streamed(dialect: str, replies: dict[str, dict[str, Any]]) -> tuple[bytes, ...]:
    """A reply as the events of its dialect's stream."""
    reply = support.codec(dialect).reply_to_canonical(json.dumps(replies[dialect]).encode())
    events = encode(dialect, events_of(reply)).split(b"\n\n")
    return tuple(event + b"\n\n" for event in events if event)


WANTS_USAGE: dict[str, dict[str, Any]] = {
    "openai_chat": {"stream": True, "stream_options": {"include_usage": True}},
    "openai_completions": {"stream": True, "stream_options": {"include_usage": True}},
}


def datas(stream: bytes) -> list[dict[str, Any]]:
    """The JSON of every event of a stream."""
    lines = stream.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
