"""Two shards, one of which dies or stands still while they work for each other.

The shard that took a call owns it; the shard that holds its session serves it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill, metric
from tests.support.raw import RawReply, chat, sse_data
from tests.support.shards import CHAT, Way, connect_to, session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Counters, Upstream, stream_body
from tests.support.wait import wait_for, wait_still

pytestmark = pytest.mark.timeout(180)

OWNER, SERVER = 0, 1


def forwarded(host: Host) -> Way:
    """The way on which shard 0 owns what shard 1 serves."""
    return Way(host.url, session_on(host.url, SERVER), "forwarded", "fast", OWNER)


def seen(counters: Counters, **at_least: int) -> bool:
    """Whether the upstream counted that much."""
    return all(getattr(counters, name) >= number for name, number in at_least.items())


# -- deaths --------------------------------------------------------------------------------------


@pytest.mark.alone
def test_calls_of_a_dead_server_are_tried_again_unless_a_byte_was_sent(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Eight unanswered calls are answered elsewhere; eight streams end with an error event."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    host.warm()
    way, counters = forwarded(host), upstream.counters
    with ExitStack() as opened:
        waiting = [opened.enter_context(way.open(timeout_s=20)) for _ in range(8)]
        streaming = [opened.enter_context(way.open(timeout_s=20)) for _ in range(8)]
        for number, client in enumerate(streaming):
            live = chat(f"live {number}", "up", stream=True,
                        metadata={"upstream": {"mode": "hang_body"}})  # fmt: skip
            client.send(way.request(client, live))
            client.read_head()
            client.read_until(b"}]}")
        upstream.queue("hang", 8)
        for number, client in enumerate(waiting):
            client.send(way.request(client, chat(f"wait {number}", "up", stream=bool(number % 2))))
        wait_for(lambda: counters.open == 16, 10, "all sixteen upstream")
        kill(host.slot(SERVER)["pid"])
        killed_at = time.monotonic()
        for number, client in enumerate(waiting):
            reply = client.read_reply("POST")
            assert reply.status == 200, reply
            if number % 2:
                assert reply.events[-1] == b"[DONE]"
            else:
                text = reply.json()["choices"][0]["message"]["content"]
                assert text == f"answer to wait {number}"
        tails = [client.read_until(b"0\r\n\r\n") for client in streaming]
        print(f"all sixteen over {time.monotonic() - killed_at:.3f} s after the death")
    for tail in tails:
        assert b"[DONE]" not in tail
        error = json.loads(tail[tail.index(b'{"error"') :].partition(b"\n")[0])["error"]
        assert error["code"] == "worker_lost"
    assert counters.requests == 24, "each unanswered call was tried exactly once more"
    assert time.monotonic() - killed_at < 2 * slack
    host.event("worker_died")
    host.end()


@pytest.mark.alone
def test_upstream_is_cancelled_when_the_owner_of_its_call_dies(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Before the first byte and in mid-stream: the server notices within a beat."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    counters = upstream.counters
    took = []
    for mode in ("hang", "hang_body"):
        host.warm()
        way = forwarded(host)
        with way.open(timeout_s=20) as client:
            body = chat("orphan", "up", stream=True, metadata={"upstream": {"mode": mode}})
            client.send(way.request(client, body))
            wait_for(lambda: counters.open == 1, 5, "the call upstream")
            if mode == "hang_body":
                client.read_until(b"}]}")
            aborted, owner = counters.aborted, host.slot(OWNER)["pid"]
            kill(owner)
            killed_at = time.monotonic()
            wait_for(partial(seen, counters, aborted=aborted + 1), 5, "cancelled", every_s=0.002)
            took.append(time.monotonic() - killed_at)
            assert b"[DONE]" not in client.read_to_end()
        host.event("worker_died", pid=owner)
    print(f"cancelled {[round(s * 1e3) for s in took]} ms after the owner's death")
    assert min(took) < 0.15 * slack
    assert max(took) < 1.0 * slack
    assert counters.requests == 2, "nobody waits for these any more"
    host.end()


def test_sessions_of_a_lost_slot_move_and_come_back(start_host: StartHost, slack: float) -> None:
    """Only the lost slot's sessions move, after a second; they are home when it serves again."""
    supervisor = section(
        "[supervisor]", intensity=1, backoff_min_s=3.0, backoff_max_s=3.0, intensity_window_s=60
    )
    host = start_host(config=ECHO + supervisor)
    host.warm()
    names = [f"session-{n}" for n in range(64)]
    before = _homes(host, names)
    lost = {name for name, shard in before.items() if shard == SERVER}
    assert 0.25 < len(lost) / len(names) < 0.75
    for _ in range(5):
        old = _without(host)
        moved = wait_for(lambda: _all_on(host, names, OWNER) or _serves(host), 5 * slack, "a move")
        if moved is not True:
            break  # else the slot was back before anybody looked
    assert moved == dict.fromkeys(names, OWNER)
    host.replaced(SERVER, old, 10 * slack)
    wait_for(lambda: _homes(host, names) == before, 5 * slack, "every session at home")
    host.end()


def _without(host: Host) -> int:
    """Kill the server's workers until its slot backs off; answers the last one."""
    old = 0
    while (slot := host.slot(SERVER))["backoff_s"] == 0 or slot["pid"] is not None:
        if slot["pid"] not in (None, old) and slot["state"] == "ready":
            old = slot["pid"]
            kill(old)
            host.event("worker_died", pid=old)
    return old


def _serves(host: Host) -> bool:
    return bool(host.slot(SERVER)["state"] == "ready")


def _homes(host: Host, names: list[str]) -> dict[str, int]:
    """Ask every session where it is; whoever stays must answer all the time."""
    homes = {}
    with connect_to(host.url, OWNER) as client:
        for name in names:
            reply = client.post_json(CHAT, chat("where"), {"X-Session-Id": name})
            assert reply.status == 200, reply
            homes[name] = int(reply.headers["x-tpo-shard"])
    return homes


def _all_on(host: Host, names: list[str], shard: int) -> dict[str, int] | None:
    homes = _homes(host, names)
    return homes if set(homes.values()) == {shard} else None


# -- calls for later -----------------------------------------------------------------------------


def runner(host: Host, upstream: Upstream) -> int:
    """The worker that is asking the upstream now."""

    def found() -> int | None:
        for pid in host.worker_pids():
            if host.connections_of(pid, upstream.port):
                return pid
        return None

    return wait_for(found, 10, "the worker that runs it") or 0


def infer(host: Host, shard: int, session: str) -> str:
    """Have a shard accept a call for later."""
    with connect_to(host.url, shard) as client:
        body = {"prompt": "run me", "model": "up", "session_id": session}
        record = client.post_json("/api/v1/infer", body).json()
    assert record["status"] == "processing", record
    call_id: str = record["request_id"]
    return call_id


@pytest.mark.parametrize("home", [OWNER, SERVER], ids=["local", "forwarded"])
def test_call_for_later_of_a_dead_worker_is_run_once_more(
    start_host: StartHost, upstream: Upstream, home: int, slack: float
) -> None:
    """Under the same id, for whoever waits; exactly two requests reach the upstream."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    host.warm()
    upstream.queue("hang")
    call_id = infer(host, OWNER, session_on(host.url, home))
    wait_for(lambda: upstream.counters.open == 1, 5, "the call upstream")
    kill(host.slot(OWNER)["pid"])
    killed_at = time.monotonic()
    reply = wait_for(partial(_finished, host, call_id), 10 * slack, "the result")
    print(f"{home=}: done {time.monotonic() - killed_at:.3f} s after the death")
    assert reply.json()["status"] == "completed"
    assert reply.json()["result"] == "answer to run me"
    assert upstream.counters.requests == 2
    assert host.ask(f"/api/v1/dlq/{call_id}").status == 404
    host.event("worker_died")
    host.end()


def _finished(host: Host, call_id: str) -> RawReply | None:
    reply = host.ask(f"/api/v1/result/{call_id}?wait=1")
    assert reply.status in (200, 202), reply
    return reply if reply.status == 200 else None


def test_call_for_later_that_loses_two_workers_is_a_dead_letter(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """It is not tried a third time; its payload and its failure can be read."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    host.warm()
    upstream.play("hang")
    call_id = infer(host, OWNER, session_on(host.url, OWNER))
    wait_for(lambda: upstream.counters.requests == 1, 5, "the call upstream")
    kill(runner(host, upstream))
    wait_for(lambda: upstream.counters.requests == 2, 10 * slack, "its second run")
    wait_for(lambda: upstream.counters.open == 1, 5, "only that one open")
    kill(runner(host, upstream))
    reply = wait_for(partial(_finished, host, call_id), 10 * slack, "the result")
    assert reply.json()["status"] == "failed"
    assert reply.json()["error"]["code"] == "poison"
    wait_for(lambda: host.ask(f"/api/v1/dlq/{call_id}").status == 200, 5 * slack, "the letter")
    assert "run me" in host.ask(f"/api/v1/dlq/{call_id}").body.decode()
    assert [e["request_id"] for e in host.letters()].count(call_id) == 1
    host.warm()
    assert upstream.counters.requests == 2
    host.end()


# -- a shard that stands still -------------------------------------------------------------------

INLINE = "x" * 15_000


@contextmanager
def stopped(host: Host, slot: int) -> Iterator[int]:
    """Stop a worker for as long as the context lasts; it must be the same one afterwards.

    The supervisor, too, which would take it for hung.
    """
    pid = host.slot(slot)["pid"]
    kill(host.pid, signal.SIGSTOP)
    kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        kill(pid, signal.SIGCONT)
        kill(host.pid, signal.SIGCONT)


@pytest.mark.alone
def test_full_ring_refuses_new_calls_and_blocks_nobody(start_host: StartHost, slack: float) -> None:
    """The consumer stands still: its ring fills, further calls are 503 at once, others run on."""
    host = start_host(config=ECHO)
    host.warm()
    way = forwarded(host)
    with ExitStack() as opened:
        clients = [opened.enter_context(way.open(timeout_s=20)) for _ in range(40)]
        own = opened.enter_context(connect_to(host.url, OWNER))
        local = []
        with stopped(host, SERVER) as pid:
            for client in clients:
                began = time.monotonic()
                client.send(way.request(client, chat(INLINE)))
                # The owner's own call is behind it on the same loop.
                assert own.post_json(CHAT, chat("mine")).status == 200
                local.append(time.monotonic() - began)
            for client in clients[20:]:
                reply = client.read_reply("POST")
                assert reply.status == 503, reply
                assert reply.json()["error"]["code"] == "ring_full"
                assert int(reply.headers["retry-after"]) >= 1
        answered = [client.read_reply("POST") for client in clients[:20]]
    full = metric(host.ask("/metrics").body.decode(), "tpo_ring_full_total")
    print(f"{full:.0f} refused records; own calls {max(local) * 1e3:.1f} ms at most")
    statuses = [reply.status for reply in answered]
    taken = statuses.count(200)
    assert statuses == [200] * taken + [503] * (20 - taken), "the ring filled once"
    assert 10 <= taken < 20
    assert full >= 20
    assert sorted(local)[len(local) // 2] < 0.01 * slack
    assert host.slot(SERVER)["pid"] == pid, "it was stopped, not replaced"
    host.stop()


@pytest.mark.alone
def test_streams_to_an_owner_that_stands_still_wait_and_arrive_whole(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Twelve streams fill the ring: the server works on for others, no frame is lost."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    host.warm()
    way = forwarded(host)
    script = {"pad_bytes": 400_000, "chunks": 40, "delay_s": 0.005}
    body = chat("flow", "up", stream=True, metadata={"upstream": script})

    def stand_still() -> float:
        """How often the ring was full: never if the streams were over before their owner stood."""
        with ExitStack() as opened:
            own = opened.enter_context(connect_to(host.url, SERVER))
            clients = [opened.enter_context(way.open(timeout_s=30)) for _ in range(12)]
            for client in clients:
                client.send(way.request(client, body))
            for client in clients:
                client.read_head()
            others = []
            with stopped(host, OWNER) as pid:
                wait_still(lambda: upstream.counters.sent_bytes, 0.1, 2, "every stream paused")
                for number in range(30):
                    began = time.monotonic()
                    assert own.post_json(CHAT, chat(f"mine {number}", "up")).status == 200
                    others.append(time.monotonic() - began)
            bodies = [b"".join(client.chunks()) for client in clients]
        for got in bodies:
            number = int(json.loads(sse_data(got)[0])["id"].rpartition("-")[2])
            assert got == stream_body(body, number, **script)
        assert sorted(others)[len(others) // 2] < 0.02 * slack
        assert host.slot(OWNER)["pid"] == pid
        full = host.metric("tpo_ring_full_total")
        print(f"{full:.0f} refused records; others' calls {max(others) * 1e3:.1f} ms at most")
        return full

    assert any(stand_still() > 0 for _ in range(5))
    host.stop()
