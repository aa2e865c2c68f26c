"""Gemini's API of a running simulator, over plain HTTP as its reference shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import sse_data

MODEL = "gemini-2.5-flash"
BODY: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Tell me of rivers"}]}]}


def path(method: str, model: str = MODEL, version: str = "v1beta") -> str:
    """The path of a method."""
    return f"/{version}/models/{model}:{method}"


def words(told: list[dict[str, Any]]) -> str:
    """What the first candidate says in all events."""
    return "".join(
        part.get("text", "")
        for event in told
        for part in event["candidates"][0]["content"]["parts"]
    )


def test_whole_events_and_array_say_the_same(simulator: Gateway) -> None:
    """Under both versions' paths, with the same counts."""
    whole = simulator.ask(path("generateContent"), BODY).json()
    other = simulator.ask(path("generateContent", version="v1"), BODY).json()
    sse = simulator.ask(path("streamGenerateContent") + "?alt=sse", BODY)
    array = simulator.ask(path("streamGenerateContent"), BODY)
    assert sse.headers["content-type"].startswith("text/event-stream")
    assert array.headers["content-type"].startswith("application/json")
    events = [json.loads(data) for data in sse_data(sse.body)]
    said = {words(told) for told in ([whole], [other], events, array.json())}
    assert len(said) == 1
    assert said.pop()
    assert whole["usageMetadata"] == events[-1]["usageMetadata"]
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    assert whole["responseId"] != other["responseId"]


def test_tools_schemas_limits_and_several_candidates(simulator: Gateway) -> None:
    """A call, an answer that fits, a cut, two at once."""
    weather: dict[str, Any] = {"name": "get_weather", "parameters": {"type": "OBJECT",
               "properties": {"city": {"type": "STRING"}}, "required": ["city"]}}  # fmt: skip
    asked: dict[str, Any] = {"contents": [{"parts": [{"text": "What is the weather?"}]}],
             "tools": [{"functionDeclarations": [weather]}]}  # fmt: skip
    part = simulator.ask(path("generateContent"), asked).json()["candidates"][0]["content"]
    call = part["parts"][0]["functionCall"]
    assert call["name"] == "get_weather"
    assert isinstance(call["args"]["city"], str)
    told = [part, {"role": "user", "parts": [
        {"functionResponse": {"name": "get_weather", "response": {"sky": "blue"}}}]}]  # fmt: skip
    after = asked | {"contents": [*asked["contents"], *told]}
    assert words([simulator.ask(path("generateContent"), after).json()])
    config = {"responseMimeType": "application/json", "responseSchema": weather["parameters"]}
    shaped = simulator.ask(path("generateContent"), BODY | {"generationConfig": config}).json()
    assert set(json.loads(words([shaped]))) == {"city"}
    cut = simulator.ask(path("generateContent"), BODY | {
        "generationConfig": {"maxOutputTokens": 3, "candidateCount": 2}}).json()  # fmt: skip
    assert [c["finishReason"] for c in cut["candidates"]] == ["MAX_TOKENS", "MAX_TOKENS"]
    assert cut["usageMetadata"]["candidatesTokenCount"] == 6


def test_counts_vectors_and_models(simulator: Gateway) -> None:
    """A count is what usage says; vectors have length one; the catalogue has limits."""
    usage = simulator.ask(path("generateContent"), BODY).json()["usageMetadata"]
    count = simulator.ask(path("countTokens"), BODY).json()
    whole = simulator.ask(path("countTokens"), {"generateContentRequest": BODY}).json()
    assert count["totalTokens"] == whole["totalTokens"] == usage["promptTokenCount"]
    one = {"content": {"parts": [{"text": "hi"}]}, "outputDimensionality": 16}
    vector = simulator.ask(path("embedContent", "gemini-embedding-001"), one).json()
    values = vector["embedding"]["values"]
    assert len(values) == 16
    assert sum(v * v for v in values) == pytest.approx(1, abs=1e-5)
    batch = {"requests": [one | {"model": "models/gemini-embedding-001"}] * 2}
    many = simulator.ask(path("batchEmbedContents", "gemini-embedding-001"), batch).json()
    assert [entry["values"] for entry in many["embeddings"]] == [values, values]
    listed = simulator.ask("/v1beta/models?pageSize=1000").json()["models"]
    card = simulator.ask(f"/v1beta/models/{MODEL}").json()
    assert card in listed
    assert card["supportedGenerationMethods"] == ["generateContent", "countTokens"]


@pytest.mark.parametrize(
    ("target", "body", "headers", "status", "word"),
    [
        (path("generateContent"), {"contents": []}, {}, 400, "INVALID_ARGUMENT"),
        (path("generateContent"), BODY | {"nope": 1}, {}, 400, "INVALID_ARGUMENT"),
        (path("explode"), BODY, {}, 404, "NOT_FOUND"),
        (path("generateContent", "nope"), BODY, {}, 404, "NOT_FOUND"),
        (path("embedContent"), {"content": {"parts": [{"text": "x"}]}}, {}, 404, "NOT_FOUND"),
        (path("generateContent"), BODY, {"x-sim-error": "429"}, 429, "RESOURCE_EXHAUSTED"),
        (path("generateContent"), BODY, {"x-sim-error": "529"}, 503, "UNAVAILABLE"),
        ("/v1beta/nowhere", BODY, {}, 404, "NOT_FOUND"),
    ],
)
def test_errors_are_google_s(
    simulator: Gateway, target: str, body: Any, headers: dict[str, str], status: int, word: str
) -> None:
    """Code, message and status, wherever they come from."""
    reply = simulator.ask(target, body, headers)
    assert reply.status == status
    error = reply.json()["error"]
    assert (error["code"], error["status"]) == (status, word)
    assert error["message"]


def test_a_fault_within_a_stream_ends_in_google_s_words(simulator: Gateway) -> None:
    """As an event, and as the array's last element."""
    order = {"x-sim-fault": "error_after=2"}
    sse = simulator.ask(path("streamGenerateContent") + "?alt=sse", BODY, order)
    array = simulator.ask(path("streamGenerateContent"), BODY, order).json()
    events = [json.loads(data) for data in sse_data(sse.body)]
    assert len(events) == len(array) == 3
    assert events[-1]["error"]["code"] == array[-1]["error"]["code"] == 500
