"""Timings of a running simulator: the schedule a key draws, kept by every worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.fake_env import FakeWorld
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, build, chat
from tests.support.shards import session_on
from tests.support.wait import quickest
from tpo_mp.simulator.distributions import LogNormal
from tpo_mp.simulator.profiles import Profile, ProfileTiming
from tpo_mp.simulator.seeds import key_of
from tpo_mp.simulator.timer import timer_of

CHAT = "/v1/chat/completions"
WORDS = "one two three four five six seven eight nine ten eleven twelve"
TOKENS = 12
"""Of ``WORDS``, each of at most six letters."""
CONFIG = f"""
[simulator]
strategy = "fixed"
text = "{WORDS}"

[simulator.latency]
"gpt-4o" = "mine"
"gpt-5" = "busy"
"claude-opus-5" = "counted"
"gemini-2.5-pro" = "counted"

[simulator.profiles.mine]
first_token_ms = {{ shape = "lognormal", p50 = 120, sigma = 0.4 }}
token_ms = {{ shape = "lognormal", mean = 25, sd = 12 }}
speed_cv = 0.2

[simulator.profiles.counted]
first_token_ms = {{ shape = "fixed", value = 250 }}

[simulator.profiles.busy]
first_token_ms = {{ shape = "fixed", value = 40 }}

[simulator.profiles.busy.degradation]
curve = "piecewise"
base_per_s = 0.05
window_s = 60
points = [[0.05, 1], [0.06, 60]]
"""
MINE = Profile(
    first_token_ms=LogNormal(p50=120, sigma=0.4),
    token_ms=LogNormal(mean=25, sd=12),
    speed_cv=0.2,
)


@pytest.fixture(scope="module")
def waiting(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers that takes its time."""
    with Gateway(short_tmp / "waiting", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def sessions(waiting: Gateway) -> list[str]:
    """A session on each worker."""
    return [session_on(waiting.url, shard, model="gpt-4") for shard in (0, 1)]


def planned(key: str) -> list[float]:
    """When each token of a call with this key is due, in seconds from its arrival."""
    world = FakeWorld()
    timing = ProfileTiming("mine", MINE, timer_of(world.env), world.env.ledger)
    drawn = key_of(0, {"key": key, "model": "gpt-4o"})
    steps = timing.steps(timing.drawing(drawn), drawn, 0.0, TOKENS, 1.0)
    return [at for at, _ in steps]


def arrivals(gateway: Gateway, key: str, session: str = "") -> tuple[float, list[float]]:
    """When the head and each token of a stream came, in seconds from the request."""
    asked = json.dumps(chat("hi", model="gpt-4o", stream=True)).encode()
    with RawClient(gateway.url) as client:
        head = {"content-type": "application/json", "Host": client.host, "x-sim-key": key}
        head |= {"x-session-id": session} if session else {}
        began = time.monotonic()
        client.send(build("POST", CHAT, head, asked))
        client.read_head()
        headed = time.monotonic() - began
        came: list[float] = []
        for chunk in client.chunks():
            words = chunk.count(b'"content":"') - chunk.count(b'"content":""')
            came += [time.monotonic() - began] * words
    return headed, came


def test_tokens_come_when_their_key_says_on_every_worker(
    waiting: Gateway, sessions: list[str]
) -> None:
    """Never early, the head with the first token, no two gaps alike; other keys, other times."""
    due = planned("a")
    gaps = [b - a for a, b in pairwise(due)]
    assert len(set(gaps)) == len(gaps)
    assert planned("b") != due

    def late_s(session: str) -> float:
        headed, came = arrivals(waiting, "a", session)
        assert len(came) == TOKENS
        assert headed >= due[0]
        late = [seen - at for seen, at in zip(came, due, strict=True)]
        assert min(late) >= 0
        return max(late)

    for session in sessions:
        # A second is far from the seconds a drawn schedule could be off by.
        quickest(lambda: late_s(session), 2, 1.0)  # noqa: B023


def test_whole_reply_takes_as_long_as_its_last_token(waiting: Gateway) -> None:
    """First token and all gaps, not the first token alone."""
    due = planned("whole")

    def late_s() -> float:
        began = time.monotonic()
        reply = waiting.ask(CHAT, chat("hi", model="gpt-4o"), {"x-sim-key": "whole"})
        took_s = time.monotonic() - began
        assert reply.json()["usage"]["completion_tokens"] == TOKENS
        assert took_s >= due[-1]
        return took_s - due[-1]

    quickest(late_s, 1, 2.0)


def test_load_counts_the_calls_of_both_workers(waiting: Gateway, sessions: list[str]) -> None:
    """Three of a minute wait their 40 ms; the fourth, on either worker, 60 times as long."""
    waits = []
    for session in sessions * 2:
        began = time.monotonic()
        waiting.ask(CHAT, chat("hi", model="gpt-5"), {"x-session-id": session})
        waits.append(time.monotonic() - began)
    assert min(waits[:3]) < 2.0
    assert waits[-1] > 2.3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens",
         {"model": "claude-opus-5", "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1beta/models/gemini-2.5-pro:countTokens", {"contents": [{"parts": [{"text": "hi"}]}]}),
    ],
)  # fmt: skip
def test_counting_tokens_takes_its_time(waiting: Gateway, path: str, body: dict[str, Any]) -> None:
    """The profile's first token, in both families."""
    began = time.monotonic()
    assert waiting.ask(path, body).status == 200
    assert time.monotonic() - began >= 0.25


def test_no_latency_wins_over_the_file(start_gateway: StartGateway) -> None:
    """A preset of six seconds answers at once."""
    config = "[simulator]\nlatency = { '*' = 'gemini-2.5-pro-thinking@2026' }\n"
    gateway = start_gateway("--no-latency", config=config, verb="simulate")

    def took_s() -> float:
        began = time.monotonic()
        assert gateway.ask(CHAT, chat("hi", model="gpt-4o")).status == 200
        return time.monotonic() - began

    quickest(took_s, 1, 2.0)


def test_gateway_with_the_backend_keeps_the_same_times(start_gateway: StartGateway) -> None:
    """``serve`` with a backend of the kind: the profile, through the whole pipeline."""
    config = CONFIG + "\n[[backends]]\nname = 'sim'\nkind = 'simulator'\n"
    gateway = start_gateway(config=config)
    due = planned("served")
    _, came = arrivals(gateway, "served")
    assert len(came) == TOKENS
    assert min(seen - at for seen, at in zip(came, due, strict=True)) >= 0
