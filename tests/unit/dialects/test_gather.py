"""Streams put together: the same whole reply, in each dialect, whatever fields it has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.dialects import REPLIES, TOOL_REPLIES, body, encode
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import ModelReply
from tpo_mp.dialects.gather import GATHERERS, Gatherer, add_event
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.dialects.translate import events_of
from tpo_mp.errors import BackendFailure
from tpo_mp.types import Dialect

CASES = [(name, replies) for replies in (REPLIES, TOOL_REPLIES) for name in replies]


def gather(name: str, *events: dict[str, Any]) -> Gatherer:
    """Give a new gatherer some events."""
    gatherer = GATHERERS[Dialect(name)]()
    for event in events:
        add_event(gatherer, json.dumps(event).encode())
    return gatherer


def chat(delta: dict[str, Any], index: int = 0, **choice: Any) -> dict[str, Any]:
    """One chunk of a chat."""
    choices = [{"index": index, "delta": delta, "finish_reason": None} | choice]
    return {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m",
            "choices": choices, "usage": None}  # fmt: skip


def bare(reply: ModelReply) -> list[Any]:
    """What was said, without the names a stream gives its parts."""
    return [
        (choice.stop, [replace(block, extra=None) for block in choice.blocks])
        for choice in reply.choices
    ]


@pytest.mark.parametrize(("name", "replies"), CASES)
def test_stream_is_gathered_to_the_reply_it_came_from(
    name: str, replies: dict[str, dict[str, Any]]
) -> None:
    """Words, tool calls, stop reason and usage."""
    codec = support.codec(name)
    meant = codec.reply_to_canonical(body(replies[name]))
    gatherer = GATHERERS[Dialect(name)]()
    for _, data in EventCutter().feed(encode(name, events_of(meant))):
        add_event(gatherer, data)
    shown = codec.reply_to_canonical(gatherer.body())
    assert bare(shown) == bare(meant)
    assert (shown.id, shown.model, shown.usage) == (meant.id, meant.model, meant.usage)
    assert gatherer.error is None


def test_chat_keeps_fields_nobody_knows() -> None:
    """Words join, lists join, the rest is the last word; a chunk's nulls change nothing."""
    said = gather(
        "openai_chat",
        chat({"role": "assistant", "content": ""}) | {"system_fingerprint": "f"},
        chat({"reasoning_content": "let "}, logprobs={"content": [{"token": "a"}]}),
        chat({"reasoning_content": "me", "content": None}),
        chat({"content": "Hi "}, logprobs={"content": [{"token": "b"}], "refusal": None}),
        chat({"content": "there", "x_new": {"a": [1], "b": "c"}}),
        chat({"x_new": {"a": [2], "b": "d"}}, finish_reason="stop", stop_reason=7),
        {"id": "c", "choices": [], "usage": {"total_tokens": 3}, "timings": {"x": 1.5}},
    )
    whole = json.loads(said.body())
    assert whole == {
        "id": "c",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "system_fingerprint": "f",
        "usage": {"total_tokens": 3},
        "timings": {"x": 1.5},
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi there",
                    "reasoning_content": "let me",
                    "x_new": {"a": [1, 2], "b": "cd"},
                },
                "logprobs": {"content": [{"token": "a"}, {"token": "b"}], "refusal": None},
                "finish_reason": "stop",
                "stop_reason": 7,
            }
        ],
    }


def test_chat_keeps_choices_and_parallel_tool_calls_apart() -> None:
    """By their numbers; calls without one are whole, and have none afterwards."""

    def piece(index: int | None, **function: str) -> dict[str, Any]:
        call: dict[str, Any] = {"function": function}
        if "name" in function:
            call |= {"id": f"call_{function['name']}", "type": "function"}
        return call if index is None else call | {"index": index}

    said = gather(
        "openai_chat",
        chat({"tool_calls": [piece(0, name="a", arguments=""), piece(1, name="b", arguments="{")]}),
        chat({"content": "other"}, 1),
        chat({"tool_calls": [piece(1, arguments="}"), piece(0, arguments="{}")]}),
        chat({"tool_calls": [piece(None, name="c", arguments="1")]}, 1),
        chat({"tool_calls": [piece(None, name="d", arguments="2")]}, 1, finish_reason="tool_calls"),
    )
    one, two = json.loads(said.body())["choices"]
    called = [(c["id"], c["function"]["arguments"]) for c in one["message"]["tool_calls"]]
    assert called == [("call_a", "{}"), ("call_b", "{}")]
    called = [(c["id"], c["function"]["arguments"]) for c in two["message"]["tool_calls"]]
    assert called == [("call_c", "1"), ("call_d", "2")]
    assert all("index" not in c for c in one["message"]["tool_calls"])
    assert one["message"]["content"] is None
    assert (one["finish_reason"], two["finish_reason"]) == (None, "tool_calls")


def test_message_keeps_thoughts_signatures_and_citations() -> None:
    """To the character; an input that never came is an empty one."""
    start: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "x",
        "stop_reason": None,
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
    deltas: list[tuple[int, dict[str, Any]]] = [
        (0, {"type": "thinking_delta", "thinking": "hm"}),
        (0, {"type": "signature_delta", "signature": "EqoB+/="}),
        (1, {"type": "text_delta", "text": "said"}),
        (1, {"type": "citations_delta", "citation": {"type": "page", "n": 1}}),
        (2, {"type": "input_json_delta", "partial_json": ""}),
    ]
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "t", "name": "n", "input": {}},
        {"type": "redacted_thinking", "data": "zz"},
    ]
    said = gather(
        "anthropic_messages",
        {"type": "message_start", "message": start},
        {"type": "ping"},
        *({"type": "content_block_start", "index": i, "content_block": b}
          for i, b in enumerate(blocks)),
        *({"type": "content_block_delta", "index": i, "delta": d} for i, d in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    )  # fmt: skip
    whole = json.loads(said.body())
    assert whole["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "EqoB+/="},
        {"type": "text", "text": "said", "citations": [{"type": "page", "n": 1}]},
        {"type": "tool_use", "id": "t", "name": "n", "input": {}},
        {"type": "redacted_thinking", "data": "zz"},
    ]
    assert whole["usage"] == {"input_tokens": 3, "output_tokens": 9}
    assert whole["stop_reason"] == "tool_use"


def test_legacy_log_probabilities_join() -> None:
    """Four lists side by side."""

    def chunk(text: str, at: int) -> dict[str, Any]:
        probs = {"tokens": [text], "token_logprobs": [-0.5], "text_offset": [at]}
        return {"choices": [{"index": 0, "text": text, "logprobs": probs, "finish_reason": None}]}

    (choice,) = json.loads(gather("openai_completions", chunk("a", 0), chunk("b", 1)).body())[
        "choices"
    ]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 1]


@pytest.mark.parametrize("name", [str(name) for name in GATHERERS])
def test_error_in_the_stream_is_known(name: str) -> None:
    """With the upstream's own status and words."""
    error = {"type": "rate_limit_error", "message": "slow down", "code": "rate_limit_exceeded"}
    known = gather(name, {"type": "error", "error": error}).error
    assert known is not None
    assert (known.status, known.message) == (429, "slow down")


@pytest.mark.parametrize("name", [str(name) for name in GATHERERS])
@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"7", b"null", b'"x"', b'{"choices":[7],"type":"message_start"}',
     b'{"choices":[{"delta":7}],"type":"content_block_delta"}',
     b'{"choices":[{"index":[],"delta":{}}],"type":"response.completed"}'],
)  # fmt: skip
def test_garbage_is_a_failure(name: str, data: bytes) -> None:
    """Never another exception, and never an empty success."""
    gatherer = GATHERERS[Dialect(name)]()

    def try_it() -> None:
        add_event(gatherer, data)
        gatherer.body()

    with pytest.raises(BackendFailure):
        try_it()
    with pytest.raises(BackendFailure):
        GATHERERS[Dialect(name)]().body()
