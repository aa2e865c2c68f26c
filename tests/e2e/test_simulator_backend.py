"""A gateway whose backend is the simulator: its rules, recordings, faults and Gemini's API."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import toml
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat, sse_data
from tests.support.shards import connect_to
from tpo_mp.simulator import recordings
from tpo_mp.types import Dialect

CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-flash"
RECORDED: dict[str, Any] = chat("recorded", model="gpt-4o")
PLAYED = ['{"object":"chat.completion","choices":[{"message":{"content":"first"}}]}',
          '{"object":"chat.completion","choices":[{"message":{"content":"second"}}]}']  # fmt: skip
COLD_S = 0.4
WAKING = {
    "first_token_ms": {"shape": "fixed", "value": 0},
    "cold_start": {
        "after_idle_s": 1e9,
        "first_token_ms": {"shape": "fixed", "value": COLD_S * 1e3},
    },
}
CONFIG = """
[[backends]]
name = "sim"
kind = "simulator"
strategy = "echo"
replay = "{replay}"
replay_speed = 0
latency = {{ "gpt-4-turbo" = "waking" }}
profiles = {{ waking = {waking} }}

[[backends.rules]]
match = {{ contains = "only once" }}
reply = {{ text = "the first time" }}
times = 1

[[backends.rules]]
match = {{ contains = "weather", turn = 1 }}
reply = {{ text = "Let me look.", tool_calls = [{{ name = "get_weather", arguments = {{ city = "Rome" }} }}] }}

[[backends.rules]]
match = {{ regex = "^scarce" }}
reply = {{ error = "503; retry_after=0" }}
times = 7

[[backends.faults]]
error = "429; retry_after=2"
when = {{ model = "gpt-4o-mini", header = {{ x-team = "^blue" }} }}
sequence = {{ every = 4 }}

[[backends.faults]]
fault = "error_after=2"
when = {{ model = "gpt-4o-mini", streamed = true }}

[[backends]]
name = "other"
kind = "simulator"
models = ["other-*"]

[[backends.faults]]
error = "503; retry_after=0"
sequence = {{ first = 3 }}

[[backends]]
name = "third"
kind = "simulator"
models = ["third-*"]
latency = {{ "third-idle" = "waking" }}
profiles = {{ waking = {waking} }}

[[backends.rules]]
match = {{ contains = "only once" }}
reply = {{ text = "the first time" }}
times = 1

[surfaces.gemini_api]

[stages.retry]
enabled = false
"""  # noqa: E501 - a rule of answers is one line of TOML


@pytest.fixture(scope="module")
def gateway(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers of ``serve`` with one such backend."""
    # The module may be taken up twice by one test process.
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    replay = folder / "played.jsonl"
    found = recordings.what_is(CHAT, orjson.dumps(RECORDED))
    assert found is not None
    dialect, told = found
    assert dialect is Dialect.OPENAI_CHAT
    key = recordings.key_for(dialect, told)
    replay.write_bytes(b"".join(
        recordings.encode(recordings.Recording(
            path=CHAT, model="gpt-4o", key=key, stream=False, status=200,
            content_type="application/json", chunks=((0.0, text),),
        )) + b"\n" for text in PLAYED
    ))  # fmt: skip
    with Gateway(
        folder, config=CONFIG.format(replay=replay, waking=toml.value(WAKING)), workers=2
    ) as running:
        yield running


def at_once(gateway: Gateway, body: dict[str, Any], count: int, **headers: str) -> list[RawReply]:
    """Replies to so many requests, half of them to each worker, four at a time."""

    def ask(client: RawClient) -> list[RawReply]:
        return [client.post_json(CHAT, body, headers) for _ in range(count // 4)]

    with ExitStack() as opened, ThreadPoolExecutor(4) as pool:
        clients = [
            opened.enter_context(connect_to(gateway.url, n % 2, model="gpt-4o")) for n in range(4)
        ]
        return list(chain.from_iterable(pool.map(ask, clients)))


def test_rules_answer_and_fail_exactly_through_a_gateway(gateway: Gateway) -> None:
    """A tool nobody offered, and seven refusals in all by two workers."""
    reply = gateway.ask(CHAT, chat("the weather?", model="gpt-4o"))
    assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "sim")
    choice = reply.json()["choices"][0]
    assert choice["message"]["content"] == "Let me look."
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    replies = at_once(gateway, chat("scarce goods", model="gpt-4o"), 24)
    assert sorted(one.status for one in replies) == [200] * 17 + [503] * 7
    assert len({one.headers["x-tpo-shard"] for one in replies}) == 2


def test_recorded_answers_are_played_in_turn_by_either_worker(gateway: Gateway) -> None:
    """The first once, the last from then on; what was not recorded is made up."""
    bodies = [reply.body.decode() for reply in at_once(gateway, RECORDED, 12)]
    assert sorted(bodies) == sorted([PLAYED[0], *[PLAYED[1]] * 11])
    made_up = gateway.ask(CHAT, chat("not recorded", model="gpt-4o")).json()
    assert made_up["choices"][0]["message"]["content"] == "not recorded"


def test_faults_choose_by_model_header_and_stream(gateway: Gateway) -> None:
    """Headers of a client reach the rules behind the pipeline; every fourth is every fourth."""
    asked = chat("hi", model="gpt-4o-mini")
    replies = at_once(gateway, asked, 20, **{"x-team": "blue-1"})
    assert sorted(one.status for one in replies) == [200] * 15 + [429] * 5
    refused = next(one for one in replies if one.status == 429)
    assert refused.headers["retry-after"] == "2"
    assert {one.status for one in at_once(gateway, asked, 8, **{"x-team": "red"})} == {200}
    broken = gateway.ask(CHAT, chat("one two three four", model="gpt-4o-mini", stream=True))
    events = [orjson.loads(data) for data in sse_data(broken.body) if data != b"[DONE]"]
    words = [e["choices"][0]["delta"].get("content") for e in events if e.get("choices")]
    assert [word for word in words if word] == ["one", " two"]
    assert "error" in events[-1]


def test_two_simulators_of_a_host_count_apart(gateway: Gateway) -> None:
    """Their rules have the same name, their requests take turns; both counts stay exact."""
    asked = [chat("hi", model=model) for model in ("gpt-4o-mini", "other-1") * 20]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda b: gateway.ask(CHAT, b, {"x-team": "blue"}), asked))
    assert sorted(one.status for one in replies[::2]) == [200] * 15 + [429] * 5
    assert sorted(one.status for one in replies[1::2]) == [200] * 17 + [503] * 3


def test_gemini_is_spoken_with_the_same_rules(gateway: Gateway) -> None:
    """Whole and streamed; the fault of another model does not strike."""
    asked = {"contents": [{"role": "user", "parts": [{"text": "the weather?"}]}]}
    whole = gateway.ask(f"{GEMINI}:generateContent", asked).json()
    said, call = whole["candidates"][0]["content"]["parts"]
    assert said["text"] == "Let me look."
    assert call["functionCall"] == {"name": "get_weather", "args": {"city": "Rome"}}
    echoed = {"contents": [{"role": "user", "parts": [{"text": "one two three four"}]}]}
    stream = gateway.ask(f"{GEMINI}:streamGenerateContent?alt=sse", echoed)
    events = [orjson.loads(data) for data in sse_data(stream.body)]
    parts = [p for e in events for p in e["candidates"][0]["content"]["parts"]]
    assert "".join(part.get("text", "") for part in parts) == "one two three four"
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    count = gateway.ask(f"{GEMINI}:countTokens", echoed).json()["totalTokens"]
    assert count == events[-1]["usageMetadata"]["promptTokenCount"]
    refused = gateway.ask(f"{GEMINI}:generateContent", echoed, {"x-sim-error": "429"})
    assert (refused.status, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")


def test_two_simulators_share_no_state(gateway: Gateway) -> None:
    """Of a profile's idleness and of a rule's number of times; each has its own first call."""

    def took_s(model: str) -> float:
        began = time.monotonic()
        assert gateway.ask(CHAT, chat("hello", model=model)).status == 200
        return time.monotonic() - began

    for model in ("gpt-4-turbo", "third-idle"):
        assert took_s(model) >= COLD_S, model
    for model in ("gpt-4", "third-any"):
        replies = [gateway.ask(CHAT, chat("only once", model=model)).json() for _ in range(3)]
        said = [reply["choices"][0]["message"]["content"] for reply in replies]
        assert [text == "the first time" for text in said] == [True, False, False], (model, said)
