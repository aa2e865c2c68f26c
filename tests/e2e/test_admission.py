"""One queue for the places at a backend, whichever of two workers a call came to."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.support.gateway import Gateway
from tests.support.load import Crowd, Load
from tests.support.raw import RawClient, build, chat
from tests.support.shards import connect_to
from tests.support.toml import backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tests.support.wire import Attempt

pytestmark = pytest.mark.usefixtures("at_rest")
CHAT = "/v1/chat/completions"
PLACES = 4


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers, four places at one backend and two at another."""
    config = "".join(
        (
            section("[stages.admission]", max_wait_s=20),
            backend("few", origin.base_url, max_concurrent=PLACES),
            backend("two", origin.base_url, max_concurrent=2),
            backend("free", origin.base_url),
        )
    )
    with Gateway(short_tmp / "places", config=config, workers=2) as started:
        yield started


def outcomes(attempts: list[Attempt]) -> Counter[str]:
    """What became of them."""
    return Counter(f"{a.outcome} {a.status} {a.why}".strip() for a in attempts)


def waiting(gateway: Gateway) -> float:
    """Calls in front of the inference stage."""
    return gateway.metric("orchestrator_queue_depth", stage="inference")


def test_a_hundred_at_once_over_two_workers_never_hold_more_than_the_places(
    gateway: Gateway, origin: Upstream
) -> None:
    """All are answered, four at a time, and those who waited are told how long."""
    all_here = threading.Event()
    origin.play(first_s=0.02, until=all_here)
    with Crowd(gateway.url, 100, model="few", stream=False, apart=True) as crowd:
        try:
            wait_for(lambda: waiting(gateway) == 100 - PLACES, 15, "all calls")
        finally:
            all_here.set()
        attempts = crowd.ended()
    assert outcomes(attempts) == {"ok 200": 100}
    assert {attempt.slot for attempt in attempts} == {0, 1}
    assert origin.counters.max_working == PLACES
    waited = [a for a in attempts if queued_ms(a) > 0]
    assert len(waited) == 100 - PLACES
    assert waiting(gateway) == 0


def test_a_killed_worker_leaves_no_place_behind(gateway: Gateway, origin: Upstream) -> None:
    """While calls run and wait: the other worker goes on at once, and never beyond the places."""
    dead = threading.Event()
    with ExitStack() as running:
        survivor = running.enter_context(connect_to(gateway.url, 1, model="free"))
        origin.play(first_s=0.1, until=dead)
        crowd = Crowd(gateway.url, 60, model="few", stream=False, prefix="killed")
        running.enter_context(crowd)
        head = {"Host": survivor.host, "Content-Type": "application/json"}
        survivor.send(build("POST", CHAT, head, json.dumps(chat("I live on", "few")).encode()))
        try:
            wait_for(lambda: waiting(gateway) == 61 - PLACES, 15, "all but those that run")
            victim = gateway.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
        finally:
            dead.set()
        attempts = crowd.ended()
        assert survivor.read_reply("POST").status == 200
    assert not [a for a in attempts if a.outcome == "hung"], outcomes(attempts)
    assert origin.counters.max_working == PLACES
    gateway.replaced(0, victim)
    origin.counters.max_working = 0
    with Crowd(gateway.url, 40, model="few", stream=False, prefix="after") as crowd:
        assert outcomes(crowd.ended()) == {"ok 200": 40}
    assert origin.counters.max_working == PLACES, "a place was lost, or one too many"


def test_a_stream_holds_its_place_until_it_ends(gateway: Gateway, origin: Upstream) -> None:
    """Two streams that have begun and stand still; the next call waits until they are left."""
    origin.play("hang_body", cut_after=2)
    seen = origin.counters.requests
    with Crowd(gateway.url, 2, model="two", text="a longer text") as streams:
        streams.flowing()
        with Crowd(gateway.url, 1, model="two", stream=False, prefix="next") as crowd:
            wait_for(lambda: waiting(gateway) == 1, 5, "one that waits")
            assert origin.counters.requests == seen + 2
            origin.play()
            streams.call(streams._cancel_all())  # their clients hang up
            after = crowd.ended()[0]
    assert after.status == 200
    assert queued_ms(after) > 0


def queued_ms(attempt: Attempt) -> float:
    """How long it waited for a place, by its own header."""
    return float(attempt.headers.get("x-tpo-queue-ms", 0))


def test_who_leaves_the_queue_makes_room(gateway: Gateway, origin: Upstream) -> None:
    """At once, and its call never reaches the backend."""
    origin.play("hang")
    seen = origin.counters.requests
    with Crowd(gateway.url, 2, model="two", stream=False):
        wait_for(lambda: origin.counters.requests == seen + 2, 5, "both places taken")
        with Crowd(gateway.url, 10, model="two", stream=False, prefix="leaves"):
            wait_for(lambda: waiting(gateway) == 10, 5, "ten that wait")
        wait_for(lambda: waiting(gateway) == 0, 2, "nobody that waits")
    origin.play()
    assert gateway.ask(CHAT, chat("still there?", "two")).status == 200
    assert origin.counters.requests == seen + 3


def test_a_backend_without_a_limit_has_no_queue(gateway: Gateway, origin: Upstream) -> None:
    """Fifty at once are all upstream at once."""
    everybody = threading.Event()
    origin.play(until=everybody)
    with Crowd(gateway.url, 50, model="free", stream=False) as crowd:
        try:
            wait_for(lambda: origin.counters.max_working == 50, 20, "all fifty upstream")
        finally:
            everybody.set()
        assert outcomes(crowd.ended()) == {"ok 200": 50}


def limits(gateway: Gateway, name: str) -> set[object]:
    """A backend's limit as both workers and the metrics tell it."""
    told: set[object] = set()
    for session in ("a", "b", "c", "d"):
        listed = gateway.ask("/api/v1/providers", headers={"x-session-id": session}).json()
        (entry,) = (b for b in listed["providers"] if b["name"] == name)
        told.add(entry["places"]["limit"])
    return told


def test_a_limit_is_found_where_a_backend_becomes_slow(short_tmp: Path, origin: Upstream) -> None:
    """Four at a time in 30 ms, the others wait there: of forty callers about as many are let in.

    All workers have the same limit, also when one of them is killed.
    """
    config = section("[stages.admission]", auto_start=32) + backend(
        "auto", origin.base_url, max_concurrent="auto"
    )
    origin.play(first_s=0.03, at_once=4)
    name = {"backend": "auto"}
    with Gateway(short_tmp / "auto", config=config, workers=2) as gateway:

        def limit() -> float:
            return gateway.metric("tpo_backend_concurrency_limit", **name)

        wait_for(lambda: limit() == 32, 5, "the limit at first")
        callers = Load(gateway.url, Random(1), clients=40, model="auto", streams=False, pause_s=0)
        with callers as load:

            def most_at_once() -> int:
                """Of a second or two, which is longer than a probe."""
                origin.counters.max_working = 0
                load.more(250)
                return origin.counters.max_working

            wait_for(lambda: 4 <= most_at_once() <= 20, 60, "few calls upstream")
            os.kill(gateway.worker_pids()[0], signal.SIGKILL)
            load.more(20)
            wait_for(lambda: 0 < limit() <= 20, 5, "the limit that was found before")
            wait_for(lambda: most_at_once() <= 24, 30, "few calls upstream all the same")
            load.stop()
        wait_for(lambda: limits(gateway, "auto") == {limit()}, 10, "one limit, told by all")


def test_who_answers_that_it_has_too_many_gets_no_more(short_tmp: Path, origin: Upstream) -> None:
    """Nobody is held back until a backend refuses, then hardly anybody is refused any more.

    As shipped, without a word about limits; on both workers, also when one was killed.
    """
    stages = section("[pipeline]", stages=["admission"])
    config = stages + backend("plain", origin.base_url)
    with Gateway(short_tmp / "overload", config=config, workers=2) as gateway:

        def limit() -> float:
            return gateway.metric("tpo_backend_concurrency_limit", backend="plain")

        callers = Load(gateway.url, Random(2), clients=40, model="plain", streams=False, pause_s=0)
        origin.play(first_s=0.05)
        with callers as load:
            load.more(400)
            assert origin.counters.max_working > 20
            assert limit() == 0
            origin.play(first_s=0.05, refuse_above=8)
            wait_for(lambda: 0 < limit() <= 10, 20, "a limit")

            def refused() -> float:
                """Of the calls that reach the backend now."""
                before = len(load.attempts)
                load.more(300)
                lately = load.attempts[before:]
                return sum(attempt.status == 503 for attempt in lately) / len(lately)

            wait_for(lambda: refused() < 0.1, 30, "hardly a refusal")
            os.kill(gateway.worker_pids()[0], signal.SIGKILL)
            load.more(50)
            wait_for(lambda: 0 < limit() <= 12, 5, "the limit that was found before")
            wait_for(lambda: refused() < 0.1, 30, "hardly a refusal")
            load.stop()


def test_a_number_is_kept_to(gateway: Gateway) -> None:
    """However fast the backend is, and shown as what it is."""
    assert limits(gateway, "few") == {PLACES}
    assert limits(gateway, "free") == {None}


# -- refusals ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers, one place, and room for three that wait."""
    config = "".join(
        (
            section("[pipeline.edges]", inference_to_post=3),
            section("[stages.admission]", max_wait_s=20),
            backend("one", origin.base_url, max_concurrent=1),
        )
    )
    with Gateway(short_tmp / "narrow", config=config, workers=2) as started:
        yield started


def letters(gateway: Gateway) -> Counter[str]:
    """Reasons of the dead letters."""
    entries = gateway.ask("/api/v1/dlq").json()["entries"]
    return Counter(entry["reason"] for entry in entries)


def test_a_full_room_is_told_in_every_dialect(narrow: Gateway, origin: Upstream) -> None:
    """503, 529, 429 `server_busy`: with a pause, and a dead letter each."""
    origin.play("hang")
    seen = origin.counters.requests
    with ExitStack() as open_calls:
        open_calls.enter_context(Crowd(narrow.url, 1, model="one", stream=False, prefix="first"))
        wait_for(lambda: origin.counters.requests == seen + 1, 5, "the place taken")
        open_calls.enter_context(Crowd(narrow.url, 3, model="one", stream=False, prefix="full"))
        wait_for(lambda: waiting(narrow) == 3, 5, "a full room")
        body = chat("x", "one", max_tokens=5)
        chats = narrow.ask(CHAT, body)
        message = narrow.ask("/v1/messages", body)
        native = narrow.ask("/v1/prompt", {"prompt": "x", "model": "one"})
        assert (chats.status, chats.json()["error"]["code"]) == (503, "backpressure")
        assert (message.status, message.json()["error"]["type"]) == (529, "overloaded_error")
        assert (native.status, native.json()["error"]["code"]) == (429, "server_busy")
        for refused in (chats, message, native):
            assert int(refused.headers["retry-after-ms"]) >= 50
            assert refused.headers["x-should-retry"] == "true"
        status = narrow.ask("/api/v1/pipeline/status").json()
        stage = next(s for s in status["stages"] if s["stage"] == "inference")
        assert (stage["waiting"], stage["capacity"]) == (3, 3)
        assert origin.counters.requests == seen + 1
    wait_for(lambda: letters(narrow)["backpressure"] == 3, 5, "three dead letters")


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"x-tpo-deadline-ms": "300"}, 504, "deadline_exceeded"),
        ({"x-stainless-read-timeout": "0.3"}, 503, "queue_timeout"),
        ({"x-stainless-timeout": "1", "x-stainless-read-timeout": "oo"}, 503, "queue_timeout"),
    ],
)
def test_nobody_waits_longer_than_its_client(
    narrow: Gateway, origin: Upstream, headers: dict[str, str], status: int, reason: str
) -> None:
    """The deadline it sent, or the time its SDK waits for a byte."""
    origin.play("hang")
    seen = origin.counters.requests
    with Crowd(narrow.url, 1, model="one", stream=False):
        wait_for(lambda: origin.counters.requests == seen + 1, 5, "the place taken")
        late = narrow.ask(CHAT, chat("x", "one"), headers)
        assert late.status == status, late
        assert late.json()["error"]["code"] in (reason, "deadline_in_queue")
        wait_for(lambda: waiting(narrow) == 0, 2, "nobody that waits")
    assert origin.counters.requests == seen + 1


def test_a_critical_call_is_next_whichever_worker_it_came_to(
    narrow: Gateway, origin: Upstream
) -> None:
    """Before two that came earlier."""
    asked = threading.Event()
    origin.play(until=asked)
    seen = len(origin.seen)
    with ExitStack() as open_calls:
        first = Crowd(narrow.url, 1, model="one", stream=False, prefix="first")
        open_calls.enter_context(first)
        wait_for(lambda: len(origin.seen) == seen + 1, 5, "the place taken")
        crowd = Crowd(narrow.url, 2, model="one", stream=False, prefix="normal")
        open_calls.enter_context(crowd)
        wait_for(lambda: waiting(narrow) == 2, 5, "two that wait")
        urgent = open_calls.enter_context(RawClient(narrow.url))
        body = json.dumps(chat("urgent", "one")).encode()
        headers = {
            "Host": urgent.host,
            "X-TPO-Priority": "critical",
            "Content-Type": "application/json",
        }
        urgent.send(build("POST", CHAT, headers, body))
        wait_for(lambda: waiting(narrow) == 3, 5, "three that wait")
        asked.set()
        assert urgent.read_reply("POST").status == 200
        crowd.ended()
        first.ended()
    order = ["urgent" in request.body.decode() for request in list(origin.seen)[seen:]]
    assert order == [False, True, False, False]


def test_a_tenant_is_never_before_those_it_may_not_pass(short_tmp: Path, origin: Upstream) -> None:
    """Its critical call came first and goes after a high one of another tenant, on any worker."""
    keys = {"trial": "key-of-the-trial-0123", "paying": "key-of-the-paying-012"}
    config = "".join(
        (
            section("[auth]", enabled=True),
            *(section("[[auth.keys]]", id=name, secret=key) for name, key in keys.items()),
            section("[stages.admission]", max_wait_s=20, highest={"trial": "normal"}),
            backend("one", origin.base_url, max_concurrent=1),
        )
    )
    with Gateway(short_tmp / "highest", config=config, workers=2) as gateway, ExitStack() as open_:

        def send(who: str, priority: str) -> RawClient:
            """A call whose answer is read later."""
            client = open_.enter_context(RawClient(gateway.url, timeout_s=30.0))
            body = json.dumps(chat(f"{who} {priority}", "one")).encode()
            headers = {"Host": client.host, "Authorization": f"Bearer {keys[who]}"}
            headers |= {"Content-Type": "application/json", "X-TPO-Priority": priority}
            client.send(build("POST", CHAT, headers, body))
            return client

        origin.play("hang")
        seen = len(origin.seen)
        first = send("paying", "normal")
        wait_for(lambda: len(origin.seen) == seen + 1, 10, "the place taken")
        trial = send("trial", "critical")
        wait_for(lambda: waiting(gateway) == 1, 10, "one that waits")
        paying = send("paying", "high")
        wait_for(lambda: waiting(gateway) == 2, 10, "two that wait")
        origin.play()
        first.close()
        assert [waits.read_reply().status for waits in (trial, paying)] == [200, 200]
    order = [b"paying high" in request.body for request in list(origin.seen)[seen + 1 :]]
    assert order == [True, False]
