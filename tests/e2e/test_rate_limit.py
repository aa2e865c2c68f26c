"""Rate limits of a running gateway: exact over two workers, and over the death of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import orjson
import psutil
import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.load import Crowd
from tests.support.raw import RawClient, build, chat
from tests.support.shards import connect_to
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tests.support.wire import Attempt

CHAT = "/v1/chat/completions"
ANY_MODEL = ECHO.replace('models = ["echo"]', 'models = ["*"]')
CONFIG = (
    ANY_MODEL
    + """
[stages.rate_limit]
session = { rph = 40 }
model = { rpm = 20 }
"""
)
KEYS = {"slow": "key-of-the-slow-0123", "fast": "key-of-the-fast-0123"}
TIERS = (
    ANY_MODEL
    + """
[stages.rate_limit.tenant]
tiers = { free = { rph = 3 } }
[auth]
enabled = true
"""
    + "".join(
        f'[[auth.keys]]\nid = "{name}"\nsecret = {{ env = "KEY_{name.upper()}" }}\n'
        for name in KEYS
    ).replace('id = "slow"', 'id = "slow"\ntier = "free"')
)


@pytest.fixture(scope="module")
def limited(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers; 20 calls a minute of each model, 40 an hour of each session."""
    with Gateway(short_tmp / "limited", config=CONFIG, workers=2) as gateway:
        yield gateway


def outcomes(attempts: list[Attempt]) -> tuple[int, int]:
    """How many came in and how many were refused; nothing else may happen."""
    statuses = [attempt.status for attempt in attempts]
    passed, refused = statuses.count(200), statuses.count(429)
    assert passed + refused == len(statuses), statuses
    return passed, refused


def test_a_hundred_at_once_are_let_in_up_to_the_limit(limited: Gateway) -> None:
    """Twenty, whichever of two workers serves them, and what drained meanwhile."""
    began = monotonic()
    with Crowd(limited.url, 100, model="crowded", stream=False, apart=True) as crowd:
        attempts = crowd.ended()
    drained = int((monotonic() - began) / 3)
    assert {attempt.slot for attempt in attempts} == {0, 1}
    assert 20 <= outcomes(attempts)[0] <= 20 + drained
    refused = next(attempt for attempt in attempts if attempt.status == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert int(refused.headers["retry-after-ms"]) <= 3000
    assert refused.headers["x-ratelimit-limit-requests"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.error is not None
    assert refused.error["type"] == "rate_limit_error"
    assert "the model limit of 20 requests per minute is reached" in refused.error["message"]


def test_a_killed_worker_gives_nobody_a_second_allowance(limited: Gateway) -> None:
    """Forty of a session within the hour: some before the death of a worker, the rest after."""
    before = [ask(limited, f"m{i}", {"x-session-id": "one"}) for i in range(15)]
    assert before == [200] * 15
    old = limited.worker_pids()
    os.kill(old[0], signal.SIGKILL)

    def replaced() -> bool:
        slots = limited.status()["slots"]
        return slots[0]["pid"] not in (None, old[0]) and slots[0]["state"] == "ready"

    wait_for(replaced, 20, "another worker in the slot", every_s=0.1)
    passed = refused = 0
    for wave in range(5):  # each with a model of its own, whose limit is out of the way
        crowd = Crowd(
            limited.url, 20, model=f"wave-{wave}", sessions=["one"], prefix=f"w{wave}", stream=False
        )
        with crowd:
            more = outcomes(crowd.ended())
        passed, refused = passed + more[0], refused + more[1]
    assert (passed, refused) == (25, 75)
    assert ask(limited, "m15", {"x-session-id": "another"}) == 200
    refusals = (
        line for line in limited_metrics(limited) if line.startswith("tpo_rate_limited_total{")
    )
    told = sum(float(line.rpartition(" ")[2]) for line in refusals if 'level="session"' in line)
    assert told == 75


def ask(gateway: Gateway, model: str, headers: dict[str, str]) -> int:
    """The status of one chat."""
    return gateway.ask(CHAT, chat("hi", model=model), headers).status


def limited_metrics(gateway: Gateway) -> list[str]:
    """The lines of the ops port."""
    return gateway.metrics().splitlines()


def test_a_key_has_the_limits_of_its_tier(start_gateway: StartGateway) -> None:
    """And each dialect its own words for the refusal."""
    env = {f"KEY_{name.upper()}": key for name, key in KEYS.items()}
    gateway = start_gateway(config=TIERS, env=env)
    slow, fast = ({"authorization": f"Bearer {KEYS[name]}"} for name in ("slow", "fast"))
    assert [ask(gateway, "m", slow) for _ in range(5)] == [200] * 3 + [429] * 2
    assert [ask(gateway, "m", fast) for _ in range(5)] == [200] * 5
    body = chat("hi", model="m", max_tokens=5)
    refused = gateway.ask("/v1/messages", body, slow)
    assert (refused.status, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert refused.headers["anthropic-ratelimit-requests-limit"] == "3"
    assert "anthropic-ratelimit-requests-reset" in refused.headers
    assert 1100 <= int(refused.headers["retry-after"]) <= 1200
    native = gateway.ask("/v1/prompt", {"prompt": "hi", "model": "m"}, slow)
    assert (native.status, native.json()["error"]["code"]) == (429, "rate_limited")


SLOW = """
[[backends]]
name = "echo"
kind = "echo"
models = ["echo"]

[[backends]]
name = "long"
kind = "simulator"
models = ["long"]
strategy = "echo"
first_token_ms = 0
token_ms = 500

[stages.rate_limit]
session = { concurrent = 5 }
model = { tpm = 4000 }
"""


@pytest.fixture(scope="module")
def busy(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers; five calls at once of each session, 4000 tokens a minute of each model."""
    config = SLOW + backend("slow", origin.base_url)
    with Gateway(short_tmp / "busy", config=config, workers=2) as gateway:
        yield gateway


def at_once(
    gateway: Gateway, origin: Upstream, number: int, prefix: str, **more: Any
) -> list[Attempt]:
    """So many calls: what is let in stays under way until all the others were refused."""
    go_on = Event()
    origin.play(until=go_on)
    with Crowd(gateway.url, number, prefix=prefix, stream=False, model="slow", **more) as crowd:

        def all_there() -> bool:
            ended = sum(attempt.outcome != "open" for attempt in crowd.attempts)
            return ended + origin.counters.working == number

        try:
            wait_for(all_there, 20, "each to be refused or under way")
        finally:
            go_on.set()
        return crowd.ended()


def test_so_many_calls_at_once_and_no_more(busy: Gateway, origin: Upstream) -> None:
    """Five of a session over two workers; when they have ended, five again."""
    for wave in range(2):
        attempts = at_once(busy, origin, 30, f"at-once-{wave}", sessions=["five"], max_tokens=9)
        assert outcomes(attempts) == (5, 25)
        refused = next(attempt for attempt in attempts if attempt.status == 429)
        assert refused.error is not None
        assert refused.error["code"] == "too_many_at_once"
        assert refused.headers["retry-after"] == "1"


HEADERS = {"Host": "h", "Content-Type": "application/json", "x-session-id": "seen"}


def test_every_worker_tells_who_is_under_way(busy: Gateway) -> None:
    """Also of the calls of the other one; those that ended are not."""

    def under_way(client: RawClient) -> list[int]:
        told = client.request("GET", "/api/v1/rate-limiter/stats?level=session").json()
        return [one["in_flight"] for one in told["limits"] if one["name"] == "seen"]

    with connect_to(busy.url, 0) as one, connect_to(busy.url, 1) as other:
        body = chat(" ".join(["word"] * 80), model="long", stream=True, max_tokens=99)
        with RawClient(busy.url) as first, connect_to(busy.url, 1) as second:
            for client in (first, second):
                client.send(build("POST", CHAT, HEADERS, orjson.dumps(body)))
                assert client.read_head()[0] == 200
            for client in (one, other):
                wait_for(lambda c=client: under_way(c) == [2], 10, "both")  # type: ignore[misc]
        for client in (one, other):
            wait_for(lambda c=client: under_way(c) == [0], 10, "none")  # type: ignore[misc]


def test_a_killed_worker_gives_its_places_back(busy: Gateway, origin: Upstream) -> None:
    """Those of its calls; whoever still streams elsewhere keeps the place."""
    text = " ".join(["word"] * 80)
    with Crowd(
        busy.url, 5, model="long", text=text, prefix="held", sessions=["held"], max_tokens=99
    ) as crowd:
        crowd.flowing()
        assert ask(busy, "echo", {"x-session-id": "held"}) == 429
        serving = int(crowd.attempts[0].headers["x-tpo-shard"])
        pids = busy.worker_pids()
        # The one that only passes streams on, if it has any; else all were taken by the other.
        killed = pids[1 - serving] if clients_of(busy, pids[1 - serving]) else pids[serving]
        os.kill(killed, signal.SIGKILL)
        wait_for(
            lambda: ask(busy, "echo", {"x-session-id": "held"}) == 200, 20, "a place", every_s=0.02
        )
        wait_for(lambda: len(replaced_by(busy, killed)) == 2, 20, "two workers", every_s=0.05)
        still = [attempt for attempt in crowd.attempts if attempt.outcome == "open"]
        more = at_once(busy, origin, 12, "after", sessions=["held"], max_tokens=9)
        assert outcomes(more)[0] == 5 - len(still)
        assert [a for a in crowd.attempts if a.outcome == "open"] == still


def clients_of(gateway: Gateway, pid: int) -> int:
    """How many clients' connections a worker has."""
    found = psutil.Process(pid).net_connections("tcp")
    open_ = (c for c in found if c.status == psutil.CONN_ESTABLISHED)
    return sum(c.laddr.port == gateway.port for c in open_)


def replaced_by(gateway: Gateway, dead: int) -> list[int]:
    """The workers that serve, without a dead one."""
    slots = gateway.status()["slots"]
    return [slot["pid"] for slot in slots if slot["pid"] != dead and slot["state"] == "ready"]


def test_tokens_are_reserved_and_settled(busy: Gateway, origin: Upstream) -> None:
    """A thousand each: three at once, but many one after the other, for they use few."""
    attempts = at_once(busy, origin, 8, "tokens", max_tokens=1200)
    assert outcomes(attempts) == (3, 5)
    refused = next(attempt for attempt in attempts if attempt.status == 429)
    assert refused.headers["x-ratelimit-limit-tokens"] == "4000"
    assert refused.error is not None
    assert "the model limit of 4000 tokens per minute is reached" in refused.error["message"]
    body = chat("three short words", model="echo", max_tokens=1200)
    for _ in range(12):
        busy.settle()  # what a call did not use comes back just after its answer
        assert busy.ask(CHAT, body, {}).status == 200
    over = busy.ask(CHAT, body | {"max_tokens": 5000}, {})
    assert (over.status, over.json()["error"]["param"]) == (413, "max_tokens")


def test_answers_say_what_is_left(start_gateway: StartGateway) -> None:
    """Each family in its own words, once; a native body's session is a session."""
    config = ECHO + "[stages.rate_limit]\nsession = { rph = 5, tpm = 9000 }\n"
    gateway = start_gateway(config=config + '[server.cors]\norigins = ["https://app.test"]\n')
    one = {"x-session-id": "one", "origin": "https://app.test"}
    body = chat("three short words", model="echo", max_tokens=100)
    left = [
        gateway.ask(CHAT, body, one).headers["x-ratelimit-remaining-requests"] for _ in range(2)
    ]
    assert left == ["4", "3"]
    told = gateway.ask("/v1/messages", body, one).headers
    assert told["anthropic-ratelimit-requests-limit"] == "5"
    assert told["anthropic-ratelimit-requests-remaining"] == "2"
    assert int(told["anthropic-ratelimit-tokens-remaining"]) > 8000
    for name in ("anthropic-ratelimit-requests-reset", "x-ratelimit-reset-tokens"):
        assert name in told["access-control-expose-headers"]
    native = {"prompt": "hi", "model": "echo", "session_id": "one", "max_tokens": 9}
    told = gateway.ask("/v1/prompt", native, {}).headers
    assert told["x-ratelimit-remaining-requests"] == "1"
    assert gateway.ask("/api/v1/infer", native, {}).status == 200
    refused = gateway.ask("/v1/prompt", native, {})
    assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert refused.json()["error"]["retry_after_ms"] > 600_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-should-retry"] == "false"
    assert "x-ratelimit-limit-requests" not in gateway.ask(CHAT, body, {}).headers


def test_every_worker_tells_the_same_of_the_limits(limited: Gateway) -> None:
    """What came in over two workers, and what was refused; the worker that counted may be dead."""
    with Crowd(limited.url, 60, model="shown", stream=False) as crowd:
        passed, refused = outcomes(crowd.ended())

    def told() -> set[tuple[int, int]]:
        """What each of some answers says, from whichever worker."""
        stats = "/api/v1/rate-limiter/stats?level=model"
        answers = [limited.ask(stats).json()["models"] for _ in range(6)]
        return {
            (one["requests_allowed"], one["requests_denied"])
            for models in answers
            for one in models
            if one["model_id"] == "shown" and one["capacity"] == 20
        }

    wait_for(lambda: told() == {(passed, refused)}, 10, "the same from every worker")
    old = limited.worker_pids()[1]
    os.kill(old, signal.SIGKILL)

    def replaced() -> bool:
        slots = limited.status()["slots"]
        return all(one["pid"] not in (None, old) and one["state"] == "ready" for one in slots)

    wait_for(replaced, 20, "another worker in the slot", every_s=0.1)
    assert told() == {(passed, refused)}
