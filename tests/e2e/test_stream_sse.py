"""Streams that any worker can attach to: by request id, by session, after the last event seen."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.events import Event, EventClient
from tests.support.gateway import Gateway
from tests.support.shards import connect_to, session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

ROUTES = ("/v1/stream/sse", "/api/v1/stream/sse")
HEARTBEAT_S = 0.5
SLOW = {"chunks": 10, "delay_s": 0.12}


@dataclass(slots=True)
class Bench:
    """Two shards before echo and an upstream."""

    gateway: Gateway
    upstream: Upstream

    def on(self, shard: int) -> EventClient:
        """A connection that this shard took."""
        client = EventClient.__new__(EventClient)
        client.__dict__.update(connect_to(self.gateway.url, shard).__dict__)
        return client

    def post(self, shard: int, path: str = "/api/v1/stream", **body: Any) -> EventClient:
        """Start a stream of the upstream on a connection of this shard."""
        return self.on(shard).post(path, {"prompt": "hi", "model": "up"} | body)

    def attach(self, shard: int, call_id: str) -> EventClient:
        """Attach to a call from this shard."""
        return self.on(shard).get(f"/v1/stream/sse?request_id={call_id}")


def config_of(upstream: Upstream, **settings: Any) -> str:
    """An upstream, echo, short heartbeats."""
    config = ECHO + backend("up", upstream.base_url)
    return config + section("[server.streams]", heartbeat_s=HEARTBEAT_S, **settings)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """One gateway for all tests that leave it as it was."""
    with Upstream() as upstream:
        config = config_of(upstream)
        with Gateway(short_tmp / "stream-sse", config=config, workers=2) as gateway:
            yield Bench(gateway, upstream)


def check_whole(events: list[Event], text: str = "answer to hi") -> None:
    """Fail unless these are all events of one stream, in order."""
    assert [e.name for e in events[:1]] == ["start"]
    assert events[-1].name == "done", events[-1]
    assert "".join(e.data["text"] for e in events[1:-1]) == text == events[-1].data["result"]
    call_id = events[0].data["request_id"]
    assert [e.id for e in events] == [f"{call_id}:{n}" for n in range(len(events))]


# -- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("query", ["prompt=one+two", "input=one%20two&session_id=q&max_tokens=9"])
def test_query_starts_a_stream(bench: Bench, route: str, query: str) -> None:
    """Each event with an id; the answer says which call it is."""
    with EventClient(bench.gateway.url) as client:
        events = client.get(f"{route}?{query}").rest()
        check_whole(events, "one two")
        assert client.headers["x-tpo-call-id"] == events[0].data["request_id"]


def test_refusals_are_the_native_dialects(bench: Bench) -> None:
    """Through the edge: B26 and its kin."""
    call_id = "00000000-0001-8000-8000-000000000000"
    for target, headers, statuses in (
        ("", {}, {400}),
        ("?prompt=", {}, {422}),
        ("?promt=x", {}, {400}),
        ("?request_id=nonsense", {}, {404}),
        (f"?request_id={call_id}", {}, {404}),
        ("", {"Last-Event-ID": "x" * 10_000}, {400, 431}),
        ("", {"Last-Event-ID": "-1"}, {400}),
        ("", {"Last-Event-ID": f"{call_id}:3"}, {404}),
    ):
        reply = bench.gateway.ask("/v1/stream/sse" + target, headers=headers)
        assert reply.status in statuses, (target, headers, reply)
        assert reply.json()["error"]["message"]


# -- attaching by id -----------------------------------------------------------------------------


@pytest.mark.parametrize("server", [0, 1])
def test_any_worker_tells_a_running_stream_from_its_start(bench: Bench, server: int) -> None:
    """Whoever owns or serves the call: the same events for all, with the same ids."""
    bench.upstream.play(**SLOW)
    session = session_on(bench.gateway.url, server)
    with bench.post(0, session_id=session) as first:
        began = [first.event() for _ in range(4)]
        call_id = began[0].data["request_id"]
        with bench.attach(0, call_id) as near, bench.attach(1, call_id) as far:
            told = [near.rest(), far.rest(), began + first.rest()]
    for events in told:
        check_whole(events)
    assert told[0] == told[1] == told[2]
    with bench.attach(1, call_id) as late:
        assert late.rest() == told[0]
    bench.upstream.play()


def test_call_goes_on_while_somebody_listens(bench: Bench) -> None:
    """The first client leaves, then the far one: only then is the upstream cancelled."""
    # What an earlier test left is aborted at its own time, and would be counted here.
    wait_for(lambda: bench.upstream.counters.open == 0, 10, "the upstream idle")
    bench.upstream.play("endless", delay_s=0.05)
    aborted = bench.upstream.counters.aborted
    with bench.post(0) as first:
        call_id = first.event().data["request_id"]
        far = bench.attach(1, call_id)
        far.event()
    seen = [far.event() for _ in range(20)]
    assert {e.name for e in seen} == {"token"}
    assert bench.upstream.counters.aborted == aborted
    far.close()
    wait_for(lambda: bench.upstream.counters.aborted > aborted, 2, "the upstream cancelled")
    with bench.attach(1, call_id) as late:
        (*_, last) = late.rest()
        assert (last.name, last.data["code"]) == ("error", "cancelled")
    bench.upstream.play()


def test_slow_listener_is_cut_and_delays_nobody(bench: Bench) -> None:
    """It gets an error; whoever reads goes on at full speed."""
    bench.upstream.play("endless", delay_s=0.0, pad_bytes=3000)

    def are_cut() -> bool:
        """Whether both were; one is not whose worker stood still, for it was not told so much."""
        with ExitStack() as opened:
            first = opened.enter_context(bench.post(0))
            call_id = first.event().data["request_id"]
            slow = [opened.enter_context(bench.attach(shard, call_id)) for shard in (0, 1)]
            for _ in range(12_000):
                assert first.event().name == "token"
            return all(was_cut(client) for client in slow)

    try:
        assert any(are_cut() for _ in range(4))
    finally:
        bench.upstream.play()


def was_cut(client: EventClient) -> bool:
    """Read what a slow listener was sent, and no more than it can have been."""
    last = None
    for _ in range(14_000):
        event = client.next()
        if event is None:
            assert last is not None
            assert (last.data.get("code"), last.id) == ("slow_listener", "")
            return True
        last = event
    return False


def test_owner_that_is_killed_is_told_of(upstream: Upstream, start_gateway: StartGateway) -> None:
    """The stream on the other worker ends with an error, not with silence."""
    gateway = start_gateway(config=config_of(upstream), workers=2)
    bench = Bench(gateway, upstream)
    upstream.play("endless", delay_s=0.05)
    with bench.post(0) as first, bench.on(1) as session:
        call_id = first.event().data["request_id"]
        session.get("/v1/stream/sse", {"X-Session-Id": "watched"})
        with bench.attach(1, call_id) as far:
            far.event()
            os.kill(gateway.worker_pids()[0], signal.SIGKILL)
            (*_, last) = far.rest()
            assert (last.name, last.data["code"]) == ("error", "worker_lost")
        wait_for(lambda: gateway.status()["slots"][0]["state"] == "ready", 20, "its successor")
        # The successor is followed from the other's next beat on, so this lasts for some.
        upstream.play(**SLOW)
        with bench.post(0, session_id="watched") as again:
            check_whole(again.rest())
        while (seen := session.event()).name != "done":
            assert seen.name in ("start", "token")


# -- following a session -------------------------------------------------------------------------


def test_session_is_followed_on_every_worker(bench: Bench) -> None:
    """All requests of the session, on whichever shard they come; none of another session."""
    with bench.on(0) as one, bench.on(1) as two:
        for follower in (one, two):
            follower.get("/v1/stream/sse", {"X-Session-Id": "fan"})
        asked = []
        for number in range(6):
            with bench.on(number % 2) as client:
                session = "fan" if number < 4 else "other"
                body = {"prompt": f"say {number}", "session_id": session}
                asked.append(client.post("/api/v1/stream", body).rest())
        for follower in (one, two):
            heard: dict[str, list[Event]] = {}
            while sum(events[-1].name == "done" for events in heard.values()) < 4:
                event = follower.event()
                heard.setdefault(event.data["request_id"], []).append(event)
            assert sorted(map(repr, heard.values())) == sorted(map(repr, asked[:4]))


def test_silence_is_broken_by_comments(bench: Bench) -> None:
    """An idle session's stream is kept alive."""
    with EventClient(bench.gateway.url) as client:
        client.get("/v1/stream/sse?session_id=idle")
        seen = [client.next(), client.next()]
        assert all(event is not None and event.comment for event in seen)


# -- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [0, 1])
def test_accepted_stream_is_resumed_where_it_broke_off(bench: Bench, shard: int) -> None:
    """It went on meanwhile, from any worker; and its result is kept."""
    bench.upstream.play(**SLOW)
    with bench.post(0, "/api/v1/infer", stream=True) as client:
        seen = [client.event() for _ in range(3)]
    call_id = seen[0].data["request_id"]
    with bench.on(shard) as again:
        again.get("/v1/stream/sse", {"Last-Event-ID": seen[-1].id})
        check_whole(seen + again.rest())
    record = bench.gateway.ask(f"/api/v1/result/{call_id}?wait=10").json()
    assert (record["status"], record["result"]) == ("completed", "answer to hi")
    bench.upstream.play()


def test_browser_that_reconnects_starts_nothing_anew(bench: Bench) -> None:
    """The same request with the last event's id resumes, also a finished stream."""
    before = len(bench.upstream.seen)
    target = "/v1/stream/sse?prompt=hi&model=up"
    with EventClient(bench.gateway.url) as client:
        whole = client.get(target).rest()
    for shard in (0, 1):
        with bench.on(shard) as client:
            rest = client.get(target, {"Last-Event-ID": whole[2].id}).rest()
            assert rest == whole[3:]
            again = bench.on(shard).get(target, {"Last-Event-ID": whole[-1].id})
            assert again.rest() == []
            again.close()
    assert len(bench.upstream.seen) == before + 1


def test_stream_waits_for_its_listener_when_told_to(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """``resume_s``: back in time it goes on, else it is cancelled."""
    gateway = start_gateway(config=config_of(upstream, resume_s=1.0), workers=2)
    bench = Bench(gateway, upstream)
    upstream.play(**SLOW)

    def goes_on() -> bool:
        with bench.post(0) as client:
            seen = [client.event() for _ in range(3)]
        with bench.on(1) as again:
            rest = again.get("/v1/stream/sse", {"Last-Event-ID": seen[-1].id}).rest()
        if rest[-1].data.get("code") == "cancelled":
            return False  # the client stood still for too long
        check_whole(seen + rest)
        return True

    assert any(goes_on() for _ in range(5))
    upstream.play("endless", delay_s=0.05)
    aborted = upstream.counters.aborted
    with bench.post(0) as client:
        client.event()
    wait_for(lambda: upstream.counters.aborted > aborted, 10, "cancelled after all")


# -- the rest ------------------------------------------------------------------------------------


def test_accepted_call_without_a_stream_is_attached_to(bench: Bench) -> None:
    """Its end comes as an event, when it comes."""
    attached = threading.Event()
    bench.upstream.play(until=attached)
    asked = bench.gateway.ask("/api/v1/infer", {"prompt": "hi", "model": "up"})
    call_id = asked.json()["request_id"]
    for shard in (0, 1):
        with bench.attach(shard, call_id) as client:
            events = [client.event()]
            attached.set()
            events += client.rest()
            assert [e.name for e in events] == ["start", "done"]
            assert events[-1].data["result"] == "answer to hi"
    bench.upstream.play()


def test_drain_ends_sessions_and_waits_for_calls(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """A followed session ends at once, a stream with its call."""
    gateway = start_gateway(config=config_of(upstream), workers=2)
    bench = Bench(gateway, upstream)
    upstream.play(**SLOW)
    with bench.on(0) as session, bench.post(1) as first:
        session.get("/v1/stream/sse?session_id=x")
        call_id = first.event().data["request_id"]
        with bench.attach(0, call_id) as far:
            far.event()
            gateway.send_signal(signal.SIGTERM)
            assert session.rest() == []
            (*_, last) = first.rest()
            assert last.name == "done"
            assert far.rest()[-1].name == "done"
    assert gateway.wait() == 0


def test_counts_add_up(bench: Bench) -> None:
    """One more stream, two more tokens, whoever is asked."""

    def counts(shard: int) -> dict[str, int]:
        with bench.on(shard) as client:
            found: dict[str, int] = json.loads(client.request("GET", "/api/v1/stream/stats").body)
            return found

    before = counts(0)
    with EventClient(bench.gateway.url) as client:
        client.get("/v1/stream/sse?prompt=two+words").rest()
    for shard in (0, 1):
        after = counts(shard)
        assert after["completed_streams"] >= before["completed_streams"] + 1
        assert after["total_tokens"] >= before["total_tokens"] + 2
