"""Gemini's dialect: what its requests mean, what is no field, replies, streams and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tpo_mp.dialects import gemini, gemini_request, gemini_wire
from tpo_mp.dialects.canonical import (
    ImageBlock,
    ModelReply,
    ModelRequest,
    ReplyChoice,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.errors import InvalidRequest, RateLimited, Shed
from tpo_mp.simulator.events import events_of

SCHEMA = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "nullable": True},
          "l": {"type": "ARRAY", "minItems": "2", "items": {"type": "STRING"}}},
          "propertyOrdering": ["n", "l"]}  # fmt: skip


def read(**body: Any) -> ModelRequest:
    """Decode a request about "hi"."""
    whole = {"model": "g", "contents": [{"parts": [{"text": "hi"}]}]} | body
    return gemini.request_to_canonical(json.dumps(whole).encode())


def test_camel_and_snake_case_mean_the_same() -> None:
    """As in all of Google's JSON."""
    camel = read(
        systemInstruction={"parts": [{"text": "s"}]},
        generationConfig={"maxOutputTokens": 5, "stopSequences": ["x"], "topK": 3},
    )
    snake = read(
        system_instruction={"parts": {"text": "s"}},
        generation_config={"max_output_tokens": 5, "stop_sequences": ["x"], "top_k": 3},
    )
    assert camel == snake
    assert (camel.max_tokens, camel.stop, camel.top_k) == (5, ("x",), 3)
    assert camel.system == (TextBlock("s"),)


def test_turns_calls_results_and_pictures() -> None:
    """Every kind of part has its block."""
    request = read(contents=[
        {"role": "user", "parts": [{"text": "look"},
                                   {"inlineData": {"mimeType": "image/png", "data": "AA=="}}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True},
                                    {"functionCall": {"name": "f", "args": {"a": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"b": 2}}}]},
    ])  # fmt: skip
    kinds = [[type(block) for block in message.blocks] for message in request.messages]
    assert kinds == [[TextBlock, ImageBlock], [ThinkingBlock, ToolUseBlock], [ToolResultBlock]]
    assert [message.role for message in request.messages] == ["user", "assistant", "user"]


def test_schemas_become_json_schema() -> None:
    """Of answers and of tools; a standard one stays as it is."""
    config = {"responseMimeType": "application/json", "responseSchema": SCHEMA}
    request = read(generationConfig=config, tools=[
        {"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}, {"googleSearch": {}},
    ])  # fmt: skip
    wanted = {"type": "object", "properties": {"n": {"type": ["integer", "null"]},
              "l": {"type": "array", "minItems": 2, "items": {"type": "string"}}}}  # fmt: skip
    assert request.response_format is not None
    assert request.response_format.schema == wanted
    assert request.tools[0].schema == wanted
    assert request.tools[1].raw == {"googleSearch": {}}


def test_calling_any_of_some_narrows_the_tools() -> None:
    """``ANY`` demands a call of one that is allowed."""
    declared = [{"name": name, "parameters": {"type": "OBJECT"}} for name in ("f", "g")]
    request = read(
        tools=[{"functionDeclarations": declared}],
        toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["g"]}},
    )
    assert [tool.name for tool in request.tools] == ["g"]
    assert request.tool_choice is not None
    assert request.tool_choice.mode == "required"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"contents": []}, "contents"),
        ({"contents": "hi"}, "contents"),
        ({"contents": [{"parts": [{}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}, "contents[0].role"),
        ({"messages": []}, "messages"),
        ({"generationConfig": {"temprature": 1}}, "generationConfig.temprature"),
        ({"generationConfig": {"temperature": 3}}, "generationConfig.temperature"),
        ({"generationConfig": {"candidateCount": 0}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"responseSchema": SCHEMA}}, "generationConfig.responseMimeType"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "SOME"}}},
         "toolConfig.functionCallingConfig.mode"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    """In the message's details too."""
    with pytest.raises(InvalidRequest) as refused:
        read(**body)
    assert refused.value.param == param
    told = json.loads(gemini.error_body(refused.value))["error"]
    assert (told["code"], told["status"]) == (400, "INVALID_ARGUMENT")
    assert told["details"][0]["fieldViolations"][0]["field"] == param


def reply(*choices: ReplyChoice) -> ModelReply:
    """An answer of a hundred and ten tokens, four of them thoughts."""
    usage = TokenUsage(100, 10, 32, reasoning=4)
    return ModelReply(id="r", model="g", choices=choices, usage=usage)


CHOICES = (
    ReplyChoice((ThinkingBlock("so"), TextBlock("one two"))),
    ReplyChoice((ToolUseBlock("f", "f", '{"a":1}'),), "tool_use"),
)


def test_a_whole_reply_has_google_s_fields() -> None:
    """Thoughts are counted apart, cached tokens named."""
    told = json.loads(gemini.reply_from_canonical(reply(*CHOICES)))
    first, second = told["candidates"]
    assert first["content"] == {
        "role": "model", "parts": [{"text": "so", "thought": True}, {"text": "one two"}],
    }  # fmt: skip
    assert second["content"]["parts"] == [{"functionCall": {"name": "f", "args": {"a": 1}}}]
    assert [c["finishReason"] for c in (first, second)] == ["STOP", "STOP"]
    usage = told["usageMetadata"]
    assert usage["promptTokenCount"] == 100
    assert usage["candidatesTokenCount"] == 6
    assert usage["thoughtsTokenCount"] == 4
    assert usage["totalTokenCount"] == 110
    assert usage["cachedContentTokenCount"] == 32
    assert (told["modelVersion"], told["responseId"]) == ("g", "r")
    seen = gemini.usage_of(json.dumps(told).encode())
    assert seen is not None
    assert (seen.prompt, seen.completion) == (100, 10)


def test_a_stream_s_parts_join_to_the_reply() -> None:
    """A call is told whole; only the last event says why it ended."""
    encoder = gemini.StreamEncoder(read())
    frames = [encoder.encode(event) for event, _ in events_of(reply(*CHOICES), {}, ping=False)]
    events = [json.loads(frame[6:]) for frame in frames if frame]
    assert all(frame.endswith(b"\r\n\r\n") for frame in frames if frame)
    parts = [(c["index"], p) for e in events[:-1] for c in e["candidates"]
             for p in c["content"]["parts"]]  # fmt: skip
    said = "".join(p["text"] for index, p in parts if index == 0 and "thought" not in p)
    assert said == "one two"
    call = {"functionCall": {"name": "f", "args": {"a": 1}}}
    assert [p for index, p in parts if index == 1] == [call]
    assert not [c for e in events[:-1] for c in e["candidates"] if "finishReason" in c]
    assert [c["finishReason"] for c in events[-1]["candidates"]] == ["STOP", "STOP"]
    assert events[-1]["usageMetadata"]["totalTokenCount"] == 110


def test_a_limit_says_when_to_come_back() -> None:
    """As ``RetryInfo``; an overload is 503 here."""
    told = json.loads(gemini.error_body(RateLimited("slow", retry_after_s=2)))["error"]
    assert told["status"] == "RESOURCE_EXHAUSTED"
    assert told["details"][0]["retryDelay"] == "2s"
    assert gemini_wire.error_status(Shed("full", status=529)) == 503


def test_embedding_requests_alone_and_in_a_batch() -> None:
    """The batch's model must be each one's."""
    content = {"parts": [{"text": "a"}, {"text": "b"}]}
    (one,), batch = gemini_request.embeddings_of(
        json.dumps({"model": "e", "content": content, "outputDimensionality": 8}).encode()
    )
    assert (one.text, one.dimensions, batch) == ("ab", 8, False)
    body = {"model": "e", "requests": [{"model": "models/other", "content": content}]}
    with pytest.raises(InvalidRequest) as refused:
        gemini_request.embeddings_of(json.dumps(body).encode())
    assert refused.value.param == "requests[0].model"
