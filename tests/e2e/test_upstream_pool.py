"""The way to an upstream: kept connections, stale ones, limits, queues, TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway, require
from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.messages import error_of
from tests.support.raw import RawClient, RawReply, chat
from tests.support.raw_upstream import DELTA, EVENTS, RawUpstream, chunk, whole
from tests.support.shards import CHAT, render
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for


def at_once(gateway: Gateway, bodies: list[dict[str, Any]]) -> list[RawReply]:
    """Ask all of these at the same time."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: gateway.ask(CHAT, body), bodies))


# -- kept connections ----------------------------------------------------------------------------


def test_one_connection_serves_call_after_call(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """Unary and streamed calls in a row use one upstream connection; parallel ones more."""
    gateway = start_gateway(config=backend("up", upstream.base_url))
    with RawClient(gateway.url) as client:
        for number in range(20):
            body = chat(f"call {number}", "up", stream=bool(number % 2))
            assert client.post_json(CHAT, body).status == 200
    assert (upstream.counters.requests, upstream.counters.connections) == (20, 1)
    text = gateway.metrics()
    assert metric(text, "tpo_upstream_connections_total", backend="up") == 1
    all_here = threading.Event()
    upstream.play(until=all_here)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(at_once, gateway, [chat(str(n), "up") for n in range(8)])
        try:
            wait_for(lambda: upstream.counters.open == 8, 20, "all eight upstream")
        finally:
            all_here.set()
        asked.result(60)
    assert 8 <= upstream.counters.connections <= 9


def test_connection_that_broke_mid_reply_is_not_used_again(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """After a cut, a short body or a client that left, the next call dials anew."""
    gateway = start_gateway(config=NO_RETRIES + backend("up", upstream.base_url))
    for mode in ("cut", "short"):
        upstream.queue(mode)  # type: ignore[arg-type]
        assert gateway.ask(CHAT, chat("x", "up")).status == 502
        reply = gateway.ask(CHAT, chat(f"after {mode}", "up"))
        assert reply.json()["choices"][0]["message"]["content"] == f"answer to after {mode}"
    assert upstream.counters.connections == 3


def test_kept_connection_the_upstream_let_go_is_replaced_unnoticed(
    start_gateway: StartGateway,
) -> None:
    """Closed between calls, or on the next request without a byte of reply: asked once more."""

    def serve(self: RawUpstream, connection: socket.socket, _number: int) -> None:
        self.take(connection)
        connection.sendall(whole())
        self.take(connection)

    with RawUpstream(serve) as stale:
        gateway = start_gateway(config=backend("up", stale.base_url))
        with RawClient(gateway.url) as client:
            for number in range(6):
                reply = client.post_json(CHAT, chat(f"call {number}", "up"))
                assert reply.status == 200, (number, reply)
        # Each but the first was sent on a stale connection, then on a new one.
        assert stale.connections == 6
        assert len(stale.requests) == 11


def test_request_is_never_repeated_once_a_reply_began_or_on_a_fresh_connection(
    start_gateway: StartGateway,
) -> None:
    """Who can say what the upstream did with it: one request, one failure."""

    def serve(self: RawUpstream, connection: socket.socket, number: int) -> None:
        self.take(connection)
        if number == 1:
            return
        connection.sendall(whole())
        self.take(connection)
        connection.sendall(b"HTTP/1.1 200")

    with RawUpstream(serve) as fickle:
        gateway = start_gateway(config=NO_RETRIES + backend("up", fickle.base_url))
        with RawClient(gateway.url) as client:
            statuses = [client.post_json(CHAT, chat("x", "up")).status for _ in range(3)]
        assert statuses == [502, 200, 502]
        assert len(fickle.requests) == 3


def test_reply_nobody_asked_for_never_meets_the_next_caller(start_gateway: StartGateway) -> None:
    """Bytes on an idle connection end it; the next call gets its own answer."""
    stray = whole(b'{"stray": true}')

    def serve(self: RawUpstream, connection: socket.socket, _number: int) -> None:
        while True:
            self.take(connection)
            connection.sendall(whole() + stray)

    with RawUpstream(serve) as chatty:
        gateway = start_gateway(config=backend("up", chatty.base_url))
        with RawClient(gateway.url) as client:
            for _ in range(20):
                reply = client.post_json(CHAT, chat("x", "up"))
                assert reply.status == 502 or "stray" not in reply.json(), reply


# -- limits --------------------------------------------------------------------------------------


def test_calls_over_the_limit_wait_their_turn(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """Never more connections than allowed, and everyone is served."""
    gateway = start_gateway(config=backend("up", upstream.base_url, max_concurrent=2))
    two_here = threading.Event()
    upstream.play(until=two_here)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(at_once, gateway, [chat(f"q{n}", "up") for n in range(10)])
        try:
            wait_for(lambda: upstream.counters.open == 2, 20, "two upstream")
        finally:
            two_here.set()
        replies = asked.result(60)
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    assert texts == [f"answer to q{n}" for n in range(10)]
    assert upstream.counters.max_open == 2
    assert upstream.counters.connections == 2


def test_full_queue_sheds_and_a_caller_who_leaves_makes_room(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """One runs, two wait, the next is shed with 503; a waiter that leaves frees its place."""
    config = backend("up", upstream.base_url, max_concurrent=1)
    config += section("[pipeline.edges]", inference_to_post=2)
    gateway = start_gateway(config=config)
    upstream.play("hang")
    clients = [RawClient(gateway.url) for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(_chat_bytes(client, f"w{number}"))
        wait_for(partial(_queued, gateway, number), 5, "a longer queue")
    shed = gateway.ask(CHAT, chat("too many", "up"))
    assert shed.status == 503, shed
    assert int(shed.headers["retry-after"]) >= 1
    assert error_of(shed)["code"] == "backpressure"
    clients[2].close()
    wait_for(partial(_queued, gateway, 1), 5, "a free place")
    clients.append(RawClient(gateway.url))
    clients[-1].send(_chat_bytes(clients[-1], "w3"))
    wait_for(partial(_queued, gateway, 2), 5, "the place taken")
    assert upstream.counters.requests == 1
    for client in clients:
        client.close()
    wait_for(partial(_queued, gateway, 0), 5, "an empty queue")
    wait_for(lambda: upstream.counters.open == 0, 5, "nothing left upstream")
    upstream.play()
    assert gateway.ask(CHAT, chat("again", "up")).status == 200


def _chat_bytes(client: RawClient, text: str) -> bytes:
    return render(client.host, chat(text, "up"), {}, "fast")


def _queued(gateway: Gateway, number: int) -> bool:
    page = gateway.metrics()
    return metric(page, "orchestrator_queue_depth", stage="inference") == number


# -- streams that never fit ----------------------------------------------------------------------


def test_client_that_leaves_frees_its_upstream_connection(start_gateway: StartGateway) -> None:
    """With one connection allowed, the next caller gets it as soon as the first has left."""

    def serve(self: RawUpstream, connection: socket.socket, number: int) -> None:
        self.take(connection)
        if number == 1:
            connection.sendall(EVENTS + chunk(DELTA))
            connection.recv(1)
        else:
            connection.sendall(whole())

    with RawUpstream(serve) as slow:
        gateway = start_gateway(config=backend("up", slow.base_url, max_concurrent=1))
        with RawClient(gateway.url) as client:
            client.send(_stream_bytes(client))
            client.read_until(b"piece")
        assert gateway.ask(CHAT, chat("next", "up")).status == 200


def _stream_bytes(client: RawClient) -> bytes:
    return render(client.host, chat("s", "up", stream=True), {}, "fast")


# -- TLS -----------------------------------------------------------------------------------------


def _openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ca.pem`` and a ``server.pem`` it signed for 127.0.0.1, and a stranger's."""
    require(shutil.which("openssl") is not None, "openssl")
    folder = tmp_path_factory.mktemp("authority")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        _openssl(folder, "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}",
                 "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    for name, address in (("server", "127.0.0.1"), ("elsewhere", "127.0.0.2")):
        (folder / f"{name}.ext").write_text(f"subjectAltName=IP:{address}\n")
        _openssl(folder, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                 "-out", f"{name}.csr")  # fmt: skip
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey",
                 "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
                 "-out", f"{name}.pem")  # fmt: skip
    return folder


@pytest.fixture
def secure(authority: Path) -> Iterator[Upstream]:
    """An upstream behind TLS."""
    with Upstream(tls=_context(authority, "server")) as upstream:
        yield upstream


def _context(authority: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / f"{name}.pem", authority / f"{name}.key")
    return context


def test_upstream_behind_tls_is_reached_with_its_own_authority(
    secure: Upstream, authority: Path, start_gateway: StartGateway
) -> None:
    """Unary and streamed, over one kept connection."""
    config = backend("up", secure.base_url, ca_file=str(authority / "ca.pem"))
    gateway = start_gateway(config=config)
    for number in range(4):
        reply = gateway.ask(CHAT, chat(f"secret {number}", "up"))
        assert reply.json()["choices"][0]["message"]["content"] == f"answer to secret {number}"
        assert gateway.ask(CHAT, chat("s", "up", stream=True)).events[-1] == b"[DONE]"
    assert secure.counters.connections == 1


def test_upstream_that_proves_nothing_gets_no_request(
    secure: Upstream, authority: Path, start_gateway: StartGateway
) -> None:
    """An unknown authority, a certificate for another host, no TLS at all: 502, nothing sent."""

    def talk_plainly(self: RawUpstream, connection: socket.socket, _number: int) -> None:
        connection.recv(65536)
        connection.sendall(whole())

    with (
        Upstream(tls=_context(authority, "elsewhere")) as elsewhere,
        RawUpstream(talk_plainly) as plain,
    ):
        ca = str(authority / "ca.pem")
        urls = {"elsewhere": elsewhere.base_url, "plain": plain.base_url.replace("http:", "https:")}
        config = backend("stranger", secure.base_url, ca_file=str(authority / "stranger.pem"))
        config += "".join(backend(name, url, ca_file=ca) for name, url in urls.items())
        gateway = start_gateway(config=config)
        for model in ("stranger", "elsewhere", "plain"):
            reply = gateway.ask(CHAT, chat("secret", model))
            assert reply.status == 502, reply
            assert error_of(reply)["code"] == "tls_failed", reply
        assert not [*secure.seen, *elsewhere.seen]
