"""Clients that leave at any byte, dawdle, say nothing, or come in crowds."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from random import Random

import psutil
import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, metric
from tests.support.load import Crowd
from tests.support.messages import BODY, CHUNKED, chunked, post
from tests.support.raw import RawClient, chat
from tests.support.shards import CHAT, Lane, render
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import unhurried, wait_for

CUTS, MANY_CUTS = 300, 1000
MIDDLES = 12
"""Cuts in the middle of a stream that never ends by itself, whatever the dice say."""
STORM, HURRICANE = 2000, 25_000
HEADER_S, BODY_S, IDLE_S, SLOW_S = 0.6, 0.7, 0.8, 1.5
HURRIED = section(
    "[server]", header_timeout_s=HEADER_S, body_timeout_s=BODY_S, idle_timeout_s=IDLE_S
)

pytestmark = pytest.mark.timeout(180)
LATE_S = 3.5
"""A deadline nearer than one that is filed already may be noticed this much later."""


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset, as a crashed client's kernel does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    """Say that nothing more comes, wait for the peer to end too, and close."""
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(10)
    while sock.recv(65536):
        pass
    sock.close()


ENDS: tuple[Callable[[socket.socket], None], ...] = (socket.socket.close, reset, half_close)


# -- leaving -------------------------------------------------------------------------------------


def cut(host: Host, rng: Random, number: int) -> str:
    """Make one request of any kind and leave at any byte of it or of its answer."""
    lane: Lane = rng.choice(("fast", "full"))
    target, body = rng.choice(
        (
            (CHAT, chat(f"cut {number}", rng.choice(("echo", "up")))),
            (CHAT, chat(f"cut {number} " + "w " * 50, "up", stream=True,
                        metadata={"upstream": {"chunks": 20, "delay_s": 0.005}})),
            (CHAT, chat("x" * rng.choice((10, 20_000, 200_000)), "up", stream=True)),
            ("/api/v1/infer", {"prompt": f"cut {number}", "model": "up"}),
            ("/v1/prompt", {"prompt": f"cut {number}", "model": "up"}),
        )
    )  # fmt: skip
    end = rng.choice(ENDS)
    client = RawClient(host.url, timeout_s=10)
    request = render(client.host, body, {"X-Session-Id": f"c-{rng.randrange(32)}"}, lane, target)
    whole = rng.random() < 0.6
    at = len(request) if whole else rng.randrange(len(request))
    client.send(request[:at])
    if whole:
        left = rng.choice((0, 1, rng.randrange(2000), 10_000_000))
        while left > 0:
            # A kept connection has no end of its own: whoever read the answer leaves.
            client.sock.settimeout(0.05)
            try:
                got = len(client.sock.recv(min(left, 65536)))
            except TimeoutError:
                break
            if not got:
                break
            left -= got
    try:
        end(client.sock)
    except OSError:
        client.sock.close()
    return f"{target} {lane} at {at}/{len(request)} {end.__name__}"


def leave_in_the_middle(host: Host, number: int) -> None:
    """Begin a stream that stops after two events, and leave once the first is there."""
    body = chat(f"middle {number}", "up", stream=True, metadata={"upstream": {"mode": "hang_body"}})
    client = RawClient(host.url, timeout_s=30)
    lane: Lane = "full" if number % 2 else "fast"
    client.send(render(client.host, body, {"X-Session-Id": f"c-{number}"}, lane, CHAT))
    client.read_until(b"data: ")
    ENDS[number % len(ENDS)](client.sock)


def test_clients_that_leave_at_any_byte_leave_nothing_behind(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float
) -> None:
    """Three hundred random cuts: no traceback, no open call, no connection, no lost descriptor."""
    cut_and_look(start_host, upstream, rng, slack, CUTS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_clients_that_leave_at_any_byte_leave_nothing_behind(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float
) -> None:
    """The long form of the above."""
    cut_and_look(start_host, upstream, rng, slack, MANY_CUTS)


def cut_and_look(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float, cuts: int
) -> None:
    """Let that many clients leave; then look for what they left."""
    host = start_host(config=ECHO + backend("up", upstream.base_url))
    host.warm()
    workers = [psutil.Process(pid) for pid in host.worker_pids()]
    for number in range(20):
        assert host.ask(CHAT, chat(f"warm {number}", "up")).status == 200
    kinds = [cut(host, rng, number) for number in range(cuts)]
    print(f"{len(set(kinds))} kinds of cut")
    for number in range(MIDDLES):
        leave_in_the_middle(host, number)
    wait_for(lambda: upstream.counters.open == 0, 10 * slack, "no call upstream")
    wait_for(lambda: not _open_calls(host), 10 * slack, "no open call")
    ports = (host.port,)
    wait_for(
        lambda: not any(host.connections_of(w.pid, *ports) for w in workers), 10, "no connection"
    )
    page = host.ask("/metrics").body.decode()
    cancelled = metric(page, "tpo_calls_total", terminal="cancelled")
    print(f"{cancelled:.0f} calls cancelled, {upstream.counters.aborted} upstream")
    assert cancelled >= MIDDLES, "nobody left in the middle"
    assert upstream.counters.aborted >= MIDDLES
    for number in range(20):
        reply = host.ask(CHAT, chat(f"after {number}", "up"), {"X-Session-Id": f"c-{number}"})
        assert reply.status == 200
    assert {w.pid for w in workers} == set(host.worker_pids())
    host.stop()


def _open_calls(host: Host) -> int:
    return sum(int(slot["open_calls"]) for slot in host.status()["slots"])


# -- dawdling ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Dawdler:
    """One slow client: what it has sent, what it will send bit by bit, and what it must get."""

    name: str
    sent: bytes
    drip: bytes
    status: int
    within_s: float


LENGTH = b"Content-Length: %d" % len(BODY)
DAWDLERS = (
    Dawdler("silent", b"", b"", 0, HEADER_S),
    Dawdler("half a head", post(LENGTH)[:60], b"", 408, HEADER_S),
    Dawdler("a head bit by bit", b"GET / HTTP/1.1\r\nX-A: ", b"a" * 4000, 408, HEADER_S),
    Dawdler("half a body", post(LENGTH)[:-10], b"", 408, BODY_S),
    Dawdler("a body bit by bit", post(b"Content-Length: 400", body=b'{"a":'), b" " * 390, 408,
            BODY_S),
    Dawdler("half a chunk", post(CHUNKED, body=chunked()[:20]), b"", 408, BODY_S),
    Dawdler("chunks bit by bit", post(CHUNKED, body=b""), b"1\r\n \r\n" * 700, 408, BODY_S),
    Dawdler("chunked head, no body", post(CHUNKED, body=b""), b"", 408, BODY_S),
)  # fmt: skip


def dawdle(host: Host, opened: ExitStack) -> tuple[float, list[tuple[Dawdler, RawClient]]]:
    """Connect and begin to send, all of them before the first has to be done."""
    began = time.monotonic()
    clients = [(d, opened.enter_context(RawClient(host.url))) for d in DAWDLERS * 3]
    for dawdler, client in clients:
        client.send(dawdler.sent)
    assert time.monotonic() - began < HEADER_S / 2
    return began, clients


def served(host: Host) -> None:
    """Others are."""
    assert host.ask(CHAT, chat("meanwhile")).status == 200


@pytest.mark.alone
def test_clients_that_dawdle_are_told_so_and_cut_off(start_host: StartHost, slack: float) -> None:
    """Deadlines are absolute: a byte now and then does not move them; others are served."""
    host = start_host(config=ECHO + HURRIED)
    host.warm()
    with ExitStack() as opened:
        began, clients = unhurried(lambda: dawdle(host, opened), HEADER_S / 2)
        dripped = 0
        while dripped < 6 or time.monotonic() - began < max(HEADER_S, BODY_S):
            unhurried(lambda: served(host), HEADER_S / 2)
            for dawdler, client in clients:
                client.send(dawdler.drip[dripped : dripped + 1])
            dripped += 1
        for dawdler, client in clients:
            if dawdler.status:
                status, headers, _ = client.read_head()
                assert (status, headers["connection"].lower()) == (408, "close"), dawdler.name
                client.read_exactly(int(headers["content-length"]))
            client.sock.settimeout(LATE_S * slack)
            assert client.read_to_end() == b"", dawdler.name
            took_s = time.monotonic() - began
            assert took_s < dawdler.within_s + LATE_S * slack, dawdler.name
    host.stop()


def test_slow_but_steady_bodies_are_taken(start_host: StartHost) -> None:
    """A kibibyte a second is enough, however long the body."""
    host = start_host(config=ECHO + HURRIED)
    body = b'{"model":"echo","messages":[{"role":"user","content":"' + b"s" * 2000 + b'"}]}'

    def taken() -> None:
        with RawClient(host.url) as client:
            client.send(post(b"Content-Length: %d" % len(body), body=body[:100]))
            began = time.monotonic()
            wait_for(lambda: time.monotonic() - began > BODY_S * 1.5, 5, "more than the least time")
            client.send(body[100:])
            assert client.read_reply("POST").status == 200

    unhurried(taken, BODY_S * 2)
    host.stop()


@pytest.mark.alone
def test_kept_connections_are_closed_when_idle(start_host: StartHost, slack: float) -> None:
    """After the last answer, not before its time, and never in the middle of a call."""
    slow = section(
        "[[backends]]", name="slow", kind="echo", models=["slow"], delay_ms=int(SLOW_S * 1000)
    )
    host = start_host(config=ECHO + HURRIED + slow)

    def closed() -> None:
        with RawClient(host.url) as client:
            for _ in range(3):
                assert client.post_json(CHAT, chat("x")).status == 200
            # A call longer than every deadline of the edge is served.
            asked_at = time.monotonic()
            assert client.post_json(CHAT, chat("x", "slow")).status == 200
            assert client.closed(IDLE_S + LATE_S * slack)
            assert time.monotonic() - asked_at > SLOW_S + IDLE_S * 0.9

    def refused() -> None:
        with RawClient(host.url) as client:
            assert client.post_json(CHAT, chat("x")).status == 200
            client.send(post(LENGTH)[:30])
            assert client.read_head()[0] == 408, "a second head has its deadline too"

    unhurried(closed, IDLE_S)
    unhurried(refused, IDLE_S)
    host.stop()


def test_a_crowd_of_silent_clients_hinders_nobody_and_is_sent_away(
    start_host: StartHost, slack: float
) -> None:
    """Five hundred that say nothing and five hundred that stop in their head."""
    host = start_host(config=ECHO + HURRIED)
    host.warm()
    with ExitStack() as opened:
        crowd = [opened.enter_context(RawClient(host.url)) for _ in range(1000)]
        for client in crowd[::2]:
            client.send(b"POST /v1/chat")
        for _ in range(50):
            unhurried(lambda: served(host), HEADER_S / 2)
        for client in crowd:
            client.sock.settimeout(HEADER_S + LATE_S * slack)
            data = client.read_to_end()
            assert data == b"" or data.startswith(b"HTTP/1.1 408 "), data
    wait_for(partial(_nobody, host), 5, "no connection left")
    host.stop()


def _nobody(host: Host) -> bool:
    return not any(host.connections_of(pid, host.port) for pid in host.worker_pids())


# -- storms --------------------------------------------------------------------------------------


def test_streams_go_on_through_a_storm_of_connections(start_host: StartHost, rng: Random) -> None:
    """Forty streams and two thousand new connections, some of which leave at once."""
    weather(start_host, rng, STORM, words=100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_streams_go_on_through_a_hurricane_of_connections(
    start_host: StartHost, rng: Random
) -> None:
    """The long form: as many as five thousand a second in five seconds, as fast as they come."""
    weather(start_host, rng, HURRICANE, words=1500)


def weather(start_host: StartHost, rng: Random, connections: int, words: int) -> None:
    """Open streams, then connections by the batch; every stream and every request ends well."""
    config = ECHO + section("[[backends]]", name="slow", kind="echo", models=["slow"], delay_ms=60)
    host = start_host(config=config)
    host.warm()
    text = " ".join(f"word{n}" for n in range(words))
    patience_s = words * 0.5 + 60
    with Crowd(
        host.url, 40, model="slow", text=text, sessions=("a", "b", "c", "d"), patience_s=patience_s
    ) as streams:
        streams.flowing()
        early = sum(len(attempt.events) for attempt in streams.attempts)
        assert early < 40 * words, "the storm comes while they flow"
        for batch in range(connections // STORM):
            with ExitStack() as opened:
                for _ in range(600):
                    client = opened.enter_context(RawClient(host.url))
                    if rng.random() < 0.5:
                        client.send(post(LENGTH))
                    if rng.random() < 0.3:
                        reset(client.sock)
            with Crowd(host.url, 1400, stream=False, patience_s=30, prefix=f"s{batch}") as storm:
                storm.ended()
            assert storm.outcomes() == {"ok": 1400}
        ended = streams.ended(patience_s)
    assert streams.outcomes() == {"ok": 40}
    for attempt in ended:
        assert attempt.done
        assert len(attempt.events) == words + 1 + 3
    assert not host.events("worker_died")
    host.stop()
