"""What a simulator promises and others were found not to do: one test per promise.

Errors, sequences, changes while it runs, scenarios, delays, the breaker, legacy completions,
options of an answer and token counts are here.
Latency, determinism and limits have files of their own beside this one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat, sse_data
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
CONFIG = """
[simulator]
models = ["*"]
strategy = "fixed"
text = "one two three"

[[simulator.faults]]
error = "503; retry_after=0.05"
when = { model = "twice-openai" }
sequence = { first = 2 }

[[simulator.faults]]
error = "overloaded; retry_after=0.05"
when = { model = "twice-anthropic" }
sequence = { first = 2 }

[[simulator.faults]]
error = "500"
when = { model = "fifth" }
sequence = { every = 5 }

[[simulator.faults]]
error = "500"
when = { model = "seldom" }
limit = 7

[[simulator.faults]]
delay_ms = 300
when = { model = "late" }

[[simulator.faults]]
error = "rate_limit_tpm"
when = { header = { x-team = "^blue" } }

[simulator.scenarios.broken]
breaker = { open_s = 1.0 }
faults = [{ error = "500", when = { model = "bad" } }]

[simulator.scenarios.timeline]
steps = [
  { name = "down", lasts_s = 1.5, faults = [{ error = "503", when = { model = "timed" } }] },
  { name = "well", start_s = 1.5 },
]
"""


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator with rules, of two workers."""
    folder = short_tmp / "promises"
    with Gateway(folder, config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def asked(provider: Gateway, model: str, **headers: str) -> RawReply:
    """A chat on a connection of its own, which any worker may take."""
    return provider.ask(CHAT, chat("hi", model=model), headers)


def statuses(provider: Gateway, model: str, count: int) -> Counter[int]:
    """What so many requests are answered, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda _: asked(provider, model), range(count))
        return Counter(reply.status for reply in replies)


def told(provider: Gateway, patch: dict[str, Any]) -> None:
    """Change its options while it runs."""
    reply = provider.ask("/admin/config", patch)
    assert reply.status == 200, reply.body


def test_openai_sdk_is_failed_twice_and_then_answered(provider: Gateway) -> None:
    """Whichever worker each try meets; a third failure would raise."""
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="x", max_retries=2) as client:
        said = client.chat.completions.create(
            model="twice-openai", messages=[{"role": "user", "content": "hi"}]
        )
    assert said.choices[0].message.content == "one two three"
    assert statuses(provider, "twice-openai", 4) == {200: 4}


def test_anthropic_sdk_is_failed_twice_and_then_answered(provider: Gateway) -> None:
    """In its own dialect; one retry less is not enough, so exactly two fail."""
    with anthropic.Anthropic(base_url=provider.url, api_key="x", max_retries=1) as client:
        ask = client.messages.create
        body: dict[str, Any] = {"model": "twice-anthropic", "max_tokens": 9,
                                "messages": [{"role": "user", "content": "hi"}]}  # fmt: skip
        with pytest.raises(anthropic.InternalServerError) as failed:
            ask(**body)
        assert failed.value.status_code == 529
        assert ask(**body).content[0].type == "text"


def test_every_fifth_is_exact_over_two_workers(provider: Gateway) -> None:
    """Twenty of a hundred, however they are spread."""
    assert statuses(provider, "fifth", 100) == {200: 80, 500: 20}


def test_limit_is_exact_over_two_workers(provider: Gateway) -> None:
    """Seven in all."""
    assert statuses(provider, "seldom", 60) == {200: 53, 500: 7}


def test_delay_of_a_rule_is_measurable(provider: Gateway) -> None:
    """The answer is the same, and comes that much later."""
    began = time.monotonic()
    assert asked(provider, "late").status == 200
    assert time.monotonic() - began >= 0.3


def test_what_would_take_too_long_is_the_providers_504(provider: Gateway) -> None:
    """In each dialect, from the change on; in a stream that has begun as its error event."""
    told(provider, {"request_timeout_s": 0.5, "token_ms": 3_000})
    try:
        message = {"model": "any", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        late = asked(provider, "any")
        assert (late.status, late.json()["error"]["code"]) == (504, "upstream_timeout")
        late = provider.ask("/v1/messages", message)
        assert (late.status, late.json()["error"]["type"]) == (504, "timeout_error")
        late = provider.ask(
            "/v1beta/models/gemini-2.5-flash:generateContent",
            {"contents": [{"parts": [{"text": "x"}]}]},
        )
        assert (late.status, late.json()["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
        stream = provider.ask(CHAT, chat("hi", model="any", stream=True))
        assert (stream.status, stream.body.count(b'"content":"one"')) == (200, 1)
        assert json.loads(sse_data(stream.body)[-1])["error"]["code"] == "upstream_timeout"
    finally:
        told(provider, {"request_timeout_s": None, "token_ms": None})
    assert asked(provider, "any").status == 200
    refused = provider.ask("/admin/config", {"request_timeout_s": 0})
    assert (refused.status, refused.json()["error"]["param"]) == (400, "request_timeout_s")


def test_header_chooses_who_fails(provider: Gateway) -> None:
    """With the type, the code and the wait of that error."""
    refused = asked(provider, "any", **{"x-team": "blue-7"})
    assert refused.status == 429
    assert refused.headers["retry-after"] == "60"
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert asked(provider, "any", **{"x-team": "red"}).status == 200


def test_change_is_obeyed_by_the_next_request_on_every_worker(provider: Gateway) -> None:
    """On and off again, each time at once."""
    rules = [{"error": "409", "when": {"model": "hot"}}]
    file = provider.ask("/admin/config").json()["config"]["faults"]
    for patch, status in ((rules, 409), (file, 200), (rules, 409), (file, 200)):
        told(provider, {"faults": patch})
        assert statuses(provider, "hot", 24) == {status: 24}


def test_half_a_change_is_none(provider: Gateway) -> None:
    """A rule that makes no sense is named, and nothing of the change is in force."""
    before = provider.ask("/admin/config").json()["config"]
    bad = {"seed": 99, "faults": [{"error": "409"}, {"error": "429", "probability": 7}]}
    reply = provider.ask("/admin/config", bad)
    assert reply.status == 400
    assert "faults[1].probability" in reply.json()["error"]["message"]
    assert provider.ask("/admin/config").json()["config"] == before


def test_scenario_runs_through_its_timeline_on_every_worker(provider: Gateway) -> None:
    """Down at once, well after its first step."""
    told(provider, {"scenario": "timeline"})
    try:
        assert statuses(provider, "timed", 8)[503] > 0
        wait_for(lambda: statuses(provider, "timed", 8) == {200: 8}, 10, "the second step")
        (timeline,) = provider.ask("/admin/scenarios").json()["timelines"]
        assert (timeline["scenario"], timeline["active"]) == ("timeline", ["well"])
        assert timeline["at_s"] >= 1.5
    finally:
        told(provider, {"scenario": None})


def test_breaker_opens_tries_and_closes_on_the_whole_host(provider: Gateway) -> None:
    """Five failures refuse everybody; after a second three answers close it again."""
    told(provider, {"scenario": "broken"})
    try:
        failed = [asked(provider, "bad").status for _ in range(5)]
        assert failed == [500] * 5
        refused = [asked(provider, "good") for _ in range(4)]
        for reply in refused:
            assert reply.status == 503
            assert reply.json()["error"]["code"] == "circuit_breaker_open"
        wait_for(lambda: asked(provider, "good").status == 200, 10, "the first try")
        assert [asked(provider, "good").status for _ in range(3)] == [200] * 3
        assert [asked(provider, "bad").status for _ in range(4)] == [500] * 4
        assert asked(provider, "good").status == 200
    finally:
        told(provider, {"scenario": None})


def test_legacy_completions_are_not_chats(provider: Gateway) -> None:
    """Objects of their own, whole and streamed; every prompt has its choice."""
    asked = {"model": "any", "prompt": ["once", "twice"]}
    whole = provider.ask("/v1/completions", asked).json()
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    for choice in whole["choices"]:
        assert (choice["text"], choice["finish_reason"]) == ("one two three", "stop")
        assert "message" not in choice
    streamed = provider.ask("/v1/completions", asked | {"stream": True})
    *events, last = sse_data(streamed.body)
    assert last == b"[DONE]"
    said = Counter[int]()
    for event in map(json.loads, events):
        assert event["object"] == "text_completion"
        for choice in event["choices"]:
            assert "delta" not in choice
            said[choice["index"]] += len(choice["text"])
    assert said == {0: len("one two three"), 1: len("one two three")}
    echoed = provider.ask("/v1/completions", asked | {"echo": True}).json()
    assert [c["text"] for c in echoed["choices"]] == ["onceone two three", "twiceone two three"]


def test_tools_choices_stops_and_logprobs_are_honoured(provider: Gateway) -> None:
    """Each of them changes the answer as it says, alone and with the others."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}},
        "required": ["n"], "additionalProperties": False}}}  # fmt: skip
    asked = chat("hi", model="any")
    called = provider.ask(CHAT, asked | {"tools": [tool], "tool_choice": "required"}).json()
    choice = called["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert (call["function"]["name"], list(arguments)) == ("add", ["n"])
    assert arguments["n"] in (3, 4, 5)
    silent = provider.ask(CHAT, asked | {"tools": [tool], "tool_choice": "none"}).json()
    assert silent["choices"][0]["message"]["content"] == "one two three"
    told = provider.ask(CHAT, asked | {
        "n": 3, "stop": [" three"], "logprobs": True, "top_logprobs": 2}).json()  # fmt: skip
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    for choice in told["choices"]:
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "stop")
        listed = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in listed) == "one two"
        assert all(len(entry["top_logprobs"]) == 2 for entry in listed)
        assert all(entry["logprob"] <= 0 for entry in listed)


def test_openais_own_bounds_are_those_of_its_models(provider: Gateway) -> None:
    """Told by field, whole or streamed; a model of another name takes what its servers take."""
    legacy = "/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "x"}
    vectors = "/v1/embeddings", {"model": "text-embedding-3-small"}
    for (path, body), more, param in (
        ((CHAT, chat("hi", model="gpt-4o")), {"stop": list("abcde")}, "stop"),
        ((CHAT, chat("hi", model="gpt-4o", stream=True)), {"stop": list("abcde")}, "stop"),
        (legacy, {"logprobs": 6}, "logprobs"),
        (vectors, {"input": ["x", 1]}, "input"),
    ):
        refused = provider.ask(path, body | more)
        assert (refused.status, refused.json()["error"]["param"]) == (400, param)
    other = chat("hi", model="llama", stop=list("12345"), logprobs=True, top_logprobs=21)
    assert provider.ask(CHAT, other).status == 200


def test_one_rule_counts_tokens_everywhere(provider: Gateway) -> None:
    """Usage, what a count is asked for, limits, logprobs and events agree; not four characters."""
    text = "a b c d e f g h"
    usage = provider.ask(CHAT, chat(text, model="any")).json()["usage"]
    assert usage["completion_tokens"] == 3  # "one", " two", " three"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    shorter = provider.ask(CHAT, chat("a b c d", model="any")).json()["usage"]
    assert usage["prompt_tokens"] - shorter["prompt_tokens"] == 4
    message = {"model": "any", "messages": [{"role": "user", "content": text}]}
    counted = provider.ask("/v1/messages/count_tokens", message).json()["input_tokens"]
    answered = provider.ask("/v1/messages", message | {"max_tokens": 9}).json()["usage"]
    assert (answered["input_tokens"], answered["output_tokens"]) == (counted, 3)
    cut = provider.ask(CHAT, chat(text, model="any", max_tokens=2, logprobs=True)).json()
    assert cut["choices"][0]["message"]["content"] == "one two"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert len(cut["choices"][0]["logprobs"]["content"]) == cut["usage"]["completion_tokens"] == 2
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = provider.ask(CHAT, chat(text, model="any", **options))
    events = [json.loads(data) for data in sse_data(streamed.body) if data != b"[DONE]"]
    spoken = [e for e in events if e["choices"] and e["choices"][0]["delta"].get("content")]
    assert (len(spoken), events[-1]["usage"]) == (3, usage)
