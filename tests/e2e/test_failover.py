"""Failover and retries of a running gateway: two workers before upstreams that fail as told.

Each scenario is asked for on both ways through the host: served where it came in, and forwarded.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.load import Crowd
from tests.support.messages import error_of
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import Way, ways
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import free_port, wait_for

PATIENT = {"connect_s": 20.0, "first_byte_s": 20.0, "idle_s": 20.0, "total_s": 60.0}
HASTY = PATIENT | {"connect_s": 0.3, "first_byte_s": 0.5, "idle_s": 0.4}
ORDER = ("one", "two", "three")


@dataclass(slots=True)
class Bench:
    """One gateway and its three upstreams, in the order of the route."""

    gateway: Gateway
    one: Upstream
    two: Upstream
    three: Upstream
    ways: list[Way]

    def forget(self) -> None:
        """All upstreams are well again, and nothing was asked."""
        for upstream in (self.one, self.two, self.three):
            upstream.forget()

    def asked(self) -> list[int]:
        """How many requests each upstream has seen."""
        return [len(upstream.seen) for upstream in (self.one, self.two, self.three)]

    def ask(self, model: str = "m", **body: Any) -> list[RawReply]:
        """Ask both ways, one after the other."""
        return [way.ask(chat("hi", model, **body)) for way in self.ways]


def route(model: str, *backends: str, strategy: str = "failover") -> str:
    """One route."""
    return section("[[routes]]", models=[model], strategy=strategy, backends=list(backends))


@pytest.fixture(scope="module")
def hole() -> Iterator[int]:
    """A port whose handshakes never complete."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def shared(short_tmp: Path, hole: int) -> Iterator[Bench]:
    """Two workers; retries by the dozen, and no stage but the one that is tested."""
    with ExitStack() as made:
        one, two, three = (made.enter_context(Upstream()) for _ in ORDER)
        urls = {"one": one.base_url, "two": two.base_url, "three": three.base_url,
                "refusing": f"http://127.0.0.1:{free_port()}/v1",
                "hole": f"http://127.0.0.1:{hole}/v1", "hasty": one.base_url}  # fmt: skip
        timeouts = dict.fromkeys(urls, PATIENT) | {"hole": HASTY, "hasty": HASTY}
        config = (
            section("[pipeline]", stages=["retry"])
            + section("[stages.retry]", base_s=0.01, max_s=20.0, budget_floor=1000)
            + ECHO
            + "".join(
                backend(name, url, "*", timeouts=timeouts[name]) for name, url in urls.items()
            )
            + route("echo", "echo", strategy="weighted")
            + route("m", *ORDER)
            + route("refused", "refusing", "two")
            + route("hole", "hole", "two")
            + route("hasty", "hasty", "two")
            + route("alone", "one")
            + route("shared", "one", "two", strategy="weighted")
        )
        gateway = made.enter_context(Gateway(short_tmp / "failover", config=config, workers=2))
        found = ways(gateway.url)
        pair = [found["local-fast"], found["forwarded-fast"]]
        yield Bench(gateway, one, two, three, pair)


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """The same, as if nothing had happened."""
    shared.forget()
    return shared


@dataclass(frozen=True, slots=True)
class Fault:
    """What the first backend does before the second is asked."""

    id: str
    mode: Any = "status"
    script: dict[str, Any] = field(default_factory=dict)
    model: str = "m"
    stream: bool | None = None


FAULTS = [
    Fault("refuses", model="refused", mode=None),
    Fault("black hole", model="hole", mode=None),
    Fault("resets", "reset"),
    Fault("500", script={"status": 500}),
    Fault("503", script={"status": 503}),
    Fault("429", script={"status": 429}),
    Fault("429 until a minute passed", script={"status": 429, "headers": {"Retry-After": "60"}}),
    Fault("wrong key", script={"status": 401}),
    Fault("slow first byte", "hang", model="hasty"),
    Fault("stalls in a body", "hang_body", model="hasty", stream=False),
    Fault("stalls before an event", "hang_body", {"cut_after": 0}, "hasty", stream=True),
    Fault("cut in a body", "cut", stream=False),
    Fault("cut before an event", "cut", {"cut_after": 0}, stream=True),
    Fault("malformed JSON", "malformed_json", stream=False),
    Fault("malformed event", "malformed_sse", stream=True),
    Fault("a page", "html"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id.replace(" ", "_"))
def test_secondary_answers_for_a_primary_that(bench: Bench, fault: Fault) -> None:
    """Whole or streamed, as if nothing had been; the headers say who it was and after how much."""
    if fault.mode is not None:
        bench.one.play(fault.mode, **fault.script)
    kinds = (False, True) if fault.stream is None else (fault.stream,)
    for stream in kinds:
        for reply in bench.ask(fault.model, stream=stream):
            assert reply.status == 200, reply
            assert reply.headers["x-tpo-backend"] == "two"
            assert reply.headers["x-tpo-attempts"] == "2"
            if stream:
                assert reply.events[-1] == b"[DONE]", reply
                assert reply.body.count(b'"finish_reason": "stop"') == 1
            else:
                assert reply.json()["choices"][0]["message"]["content"] == "answer to hi"
    times = 2 * len(kinds)
    first, *others = bench.asked()
    assert others == [times, 0]
    # A kept connection that is reset at once is tried on a new one, within the same attempt.
    assert fault.mode is None or times <= first <= 2 * times


def test_two_dead_leave_the_third(bench: Bench) -> None:
    """In order, and none is asked twice."""
    bench.one.play("status", status=503)
    bench.two.play("status", status=500)
    for reply in bench.ask():
        assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "three")
        assert reply.headers["x-tpo-attempts"] == "3"
    assert bench.asked() == [2, 2, 2]


def test_all_down_is_the_last_ones_error(bench: Bench) -> None:
    """After one request to each, told to client, account and dead letters alike."""
    for upstream in (bench.one, bench.two, bench.three):
        upstream.play("status", status=500, headers={"Retry-After": "9"})
    for reply in bench.ask():
        assert (reply.status, error_of(reply)["code"]) == (502, "upstream_error")
        assert reply.headers["x-tpo-backend"] == "three"
        assert (reply.headers["x-tpo-attempts"], reply.headers["retry-after"]) == ("3", "9")
        letter = f"/api/v1/dlq/{reply.headers['x-tpo-call-id']}"
        wait_for(partial(_is_there, bench, letter), 5, "its dead letter")
    assert bench.asked() == [2, 2, 2]


def _is_there(bench: Bench, target: str) -> bool:
    return bench.gateway.ask(target).status == 200


def test_clients_own_fault_goes_nowhere(bench: Bench) -> None:
    """The other backend is not asked whether it would take a bad request."""
    bench.one.play("status", status=422)
    for reply in bench.ask():
        assert (reply.status, reply.headers["x-tpo-backend"]) == (422, "one")
        assert "x-tpo-attempts" not in reply.headers
    assert bench.asked() == [2, 0, 0]


def test_flapping_primary_costs_no_answer(bench: Bench) -> None:
    """Every other request of it fails; none of its clients sees that."""
    for _ in range(10):
        bench.one.queue("status", status=503)
        bench.one.queue("answer")
    backends = [reply.headers["x-tpo-backend"] for _ in range(10) for reply in bench.ask()]
    assert sorted(backends) == ["one"] * 10 + ["two"] * 10
    bench.forget()
    assert {reply.headers["x-tpo-backend"] for reply in bench.ask()} == {"one"}


def test_recovered_primary_has_its_calls_again(bench: Bench) -> None:
    """It refuses connections, then takes them."""
    bench.one.refuse()
    try:
        assert {reply.headers["x-tpo-backend"] for reply in bench.ask()} == {"two"}
    finally:
        bench.one.accept()
    assert {reply.headers["x-tpo-backend"] for reply in bench.ask()} == {"one"}


def test_death_in_mid_stream_is_never_begun_again(bench: Bench) -> None:
    """What was sent stands, an error event ends it, and no second backend is asked."""
    bench.one.play("cut", cut_after=2)
    for reply in bench.ask(stream=True):
        events = [json.loads(event) for event in reply.events]
        assert events[-1]["error"]["code"] == "cut_off"
        assert len(events) == 3
        assert reply.headers["x-tpo-backend"] == "one"
    assert bench.asked() == [2, 0, 0]


def test_single_backend_is_asked_again_after_its_own_pause(bench: Bench) -> None:
    """A 429 that says how long, kept to; then the answer, and no trace but a header."""
    for reply_of in bench.ways:
        bench.one.queue("status", status=429, headers={"Retry-After-Ms": "400"})
        reply = reply_of.ask(chat("hi", "alone"))
        assert (reply.status, reply.headers["x-tpo-attempts"]) == (200, "2")
        assert bench.one.seen[-1].at - bench.one.seen[-2].at >= 0.4
    assert bench.asked() == [4, 0, 0]


def test_deadline_shorter_than_the_pause_is_answered_at_once(bench: Bench) -> None:
    """The upstream's refusal with its pause, long before the deadline would have passed."""
    bench.one.play("status", status=429, headers={"Retry-After-Ms": "9000"})
    for way in bench.ways:
        with way.open() as client:
            began = time.monotonic()
            headers = {"X-TPO-Deadline-Ms": "8000"}
            client.send(way.request(client, chat("hi", "alone"), headers))
            reply = client.read_reply("POST")
            assert time.monotonic() - began < 7
        assert (reply.status, reply.headers["retry-after-ms"]) == (429, "9000")
    assert bench.asked() == [2, 0, 0]


def test_client_that_leaves_in_a_pause_asks_no_more(bench: Bench) -> None:
    """Its call ends as cancelled, and the upstream hears nothing of it again."""
    pause_s = 4.0  # longer than a machine stands still before its client has left
    bench.one.play("status", status=503, headers={"Retry-After-Ms": f"{pause_s * 1e3:.0f}"})
    cancelled = _terminal(bench, "cancelled")
    with ExitStack() as leave:
        for way in bench.ways:
            client = leave.enter_context(way.open())
            client.send(way.request(client, chat("hi", "alone")))
        wait_for(lambda: len(bench.one.seen) == 2, 5, "the first tries")
    wait_for(lambda: _terminal(bench, "cancelled") >= cancelled + 2, 5, "cancelled calls")
    over = time.monotonic() + pause_s + 0.3
    wait_for(lambda: time.monotonic() > over, 10, "the pause to be over")
    assert len(bench.one.seen) == 2


def _terminal(bench: Bench, how: str) -> float:
    return metric(bench.gateway.metrics(), "tpo_calls_total", terminal=how)


def test_weighted_route_fails_over_too(bench: Bench) -> None:
    """Whichever of two is dead, the other answers, and its metrics say how often."""
    bench.two.play("status", status=500)
    before = _failed(bench)
    for _ in range(4):
        for reply in bench.ask("shared"):
            assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "one")
    assert _failed(bench) - before == 2 * len(bench.two.seen) > 0


def _failed(bench: Bench) -> float:
    """The further tries that the second upstream is the cause of, and its failures, together."""
    page = bench.gateway.metrics()
    more = metric(page, "orchestrator_retries_total", worker="two")
    name = "orchestrator_worker_errors_total"
    return more + metric(page, name, worker="two", error_kind="inference")


def test_retry_budget_is_one_for_the_host(short_tmp: Path) -> None:
    """A dead upstream is asked once per call and twenty times more, whoever of two workers asks."""
    with Upstream() as upstream:
        upstream.play("status", status=500)
        config = (
            section("[pipeline]", stages=["retry"])
            + section("[stages.retry]", base_s=0.001, max_s=0.001, budget=0.0, budget_floor=20)
            + ECHO
            + backend("up", upstream.base_url)
        )
        with Gateway(short_tmp / "budget", config=config, workers=2) as gateway:
            began = time.monotonic()
            with Crowd(gateway.url, 100, model="up", stream=False, apart=True) as crowd:
                attempts = crowd.ended()
            spans = (time.monotonic() - began) / 10
            assert {attempt.status for attempt in attempts} == {502}
            assert {attempt.slot for attempt in attempts} == {0, 1}
            assert 120 <= upstream.counters.requests <= 120 + 20 * spans + 1
            page = gateway.metrics()
            more = metric(page, "orchestrator_retries_total", worker="up")
            assert more == upstream.counters.requests - 100
            with RawClient(gateway.url) as client:
                reply = client.post_json("/v1/chat/completions", chat("hi", "up"))
            assert reply.status == 502


def test_amplification_of_an_outage_is_bounded(short_tmp: Path) -> None:
    """With what ships: at most one request and a fifth per call, over two workers."""
    with Upstream() as upstream:
        upstream.play("status", status=500)
        config = section("[pipeline]", stages=["retry"]) + ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "outage", config=config, workers=2) as gateway:
            for wave in range(3):
                with Crowd(gateway.url, 60, model="up", prefix=f"w{wave}", stream=False) as crowd:
                    assert {attempt.status for attempt in crowd.ended()} == {502}
        assert 180 < upstream.counters.requests <= 180 * 1.2
