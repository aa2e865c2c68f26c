"""Clients that are gone without a word: no FIN, no reset, no acknowledgement ever again.

What a pulled cable or a router that forgot the connection looks like to the gateway.  A filter on
the client's own socket throws away every packet for it before its kernel sees one.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time
from contextlib import ExitStack

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host
from tests.support.raw import RawClient, chat
from tests.support.shards import CHAT, render, session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs socket filters of Linux"
)

DEAD_S = 2.0
PATIENCE = section("[server]", dead_peer_s=DEAD_S, slow_reader_s=DEAD_S, idle_timeout_s=600)
SO_ATTACH_FILTER = 26
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of the classic packet filter: keep 0 bytes."""


def vanish(client: RawClient) -> None:
    """Let nothing reach this client any more."""
    program = ctypes.create_string_buffer(DROP_ALL)
    filtered = struct.pack("HL", 1, ctypes.addressof(program))
    client.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)


def connections(host: Host) -> int:
    """How many client connections all workers hold."""
    return sum(host.connections_of(pid, host.port) for pid in host.worker_pids())


def test_calls_of_vanished_clients_are_cancelled(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Waiting for a first byte, silent in mid-stream, or flooded: all end, those present do not."""
    host = start_host(config=ECHO + backend("up", upstream.base_url) + PATIENCE)
    host.warm()
    counters = upstream.counters
    scripts = [
        {"mode": "hang"},
        {"mode": "hang_body"},
        {"mode": "endless", "delay_s": 0.05, "chunks": 1},
    ]
    with ExitStack() as opened:

        def ask(script: dict[str, object], number: int) -> RawClient:
            client = opened.enter_context(RawClient(host.url, timeout_s=30))
            body = chat("gone", "up", stream=True, metadata={"upstream": script})
            session = {"X-Session-Id": session_on(host.url, number % 2)}
            client.send(render(client.host, body, session, "fast"))
            return client

        gone = [ask(script, number) for number in range(2) for script in scripts]
        here = [ask(script, number) for number in range(2) for script in scripts[:2]]
        wait_for(lambda: counters.open == 10, 10, "ten calls upstream")
        for client in (*gone[1::3], *gone[2::3], *here[1::2]):
            client.read_until(b"}]}")
        vanished_at = time.monotonic()
        for client in gone:
            vanish(client)
        wait_for(lambda: counters.aborted == 6, 10 + 2 * DEAD_S * slack, "six calls cancelled")
        print(f"the last cancelled after {time.monotonic() - vanished_at:.2f} s")
        assert time.monotonic() - vanished_at > DEAD_S / 2, "they were told"
        held = time.monotonic()
        wait_for(lambda: time.monotonic() - held > 2 * DEAD_S, 30, "the same time once more")
        assert counters.open == 4, "clients that only wait are not gone"
        wait_for(lambda: connections(host) == 4, 10, "four connections")
    host.end()


def test_idle_connections_of_vanished_clients_are_closed(
    start_host: StartHost, slack: float
) -> None:
    """A kept connection costs a descriptor: long before it counts as idle, it is given up."""
    host = start_host(config=ECHO + PATIENCE)
    host.warm()
    with ExitStack() as opened:
        clients = [opened.enter_context(RawClient(host.url)) for _ in range(20)]
        for client in clients:
            assert client.post_json(CHAT, chat("x")).status == 200
        assert connections(host) == 20
        for client in clients[:15]:
            vanish(client)
        wait_for(lambda: connections(host) == 5, 10 + 2 * DEAD_S * slack, "five connections")
        for client in clients[15:]:
            assert client.post_json(CHAT, chat("still here")).status == 200
    host.end()
