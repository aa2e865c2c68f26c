"""A load client of our own: raw sockets under uvloop, in phases, for what wrk cannot do.

A plan is a list of phases over the same connections.  Before and after every phase the client is
quiet, and there it reads the CPU time of the processes it was given, so a phase's requests and a
phase's CPU belong together exactly.  A phase may send every connection session ids that belong
to the shard which holds that connection (``own``) or to another one (``foreign``); both are
found by asking: a reply without a session names the connection's shard in ``X-TPO-Shard``, a
reply with one names the session's.

``python -m benchmarks.client`` reads a plan as JSON on stdin and writes one JSON outcome.

Known weakness: the client costs 10-15 µs of its own core per request, so it measures CPU and
latency well and the throughput of a fast gateway badly.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from .payload import DIGITS, Payload
from .plan import Outcome, Phase, Plan, Session
from .procs import cpu_s
from .stats import percentile

PROBES = 64
_BLANK_SESSION = "bench-000000"


class Client:
    """The connections and the phase they are in."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sent = 0
        self.left = 0
        self.busy = 0
        self.ends_at = 0.0
        self.latencies = array("d")
        self.non2xx = 0
        self.errors = 0
        self.quiet = asyncio.Event()
        self.live: list[Connection] = []

    async def connect(self) -> None:
        """Open the connections, a hundred at a time."""
        loop = asyncio.get_running_loop()
        at = urlsplit(self.plan.url)
        host, port = at.hostname or "", at.port or 80
        for start in range(0, self.plan.conns, 100):
            some = range(start, min(start + 100, self.plan.conns))
            await asyncio.gather(
                *(loop.create_connection(lambda: Connection(self), host, port) for _ in some)
            )

    def request(self, connection: Connection) -> None:
        """Send the next request on an idle connection."""
        self.sent += 1
        self.left -= 1
        connection.sent_at = perf_counter()
        connection.transport.write(
            b"%b%0*d%b" % (connection.before, DIGITS, self.number(), connection.after)
        )

    def finished(self, connection: Connection, status: int) -> None:
        """Take one whole reply and send the next request while the phase lasts."""
        now = perf_counter()
        self.latencies.append(now - connection.sent_at)
        if status // 100 != 2:
            self.non2xx += 1
        if now < self.ends_at and self.left > 0:
            self.request(connection)
        else:
            self.idle(connection)

    def idle(self, connection: Connection) -> None:
        """Note that a connection has no request under way any more."""
        connection.sent_at = 0.0
        self.busy -= 1
        if self.busy == 0:
            self.quiet.set()

    async def run(self, phase: Phase) -> Outcome:
        """Drive all connections through one phase and measure it between two quiet moments."""
        self.latencies = array("d")
        self.non2xx = self.errors = 0
        self.left = phase.count or sys.maxsize
        live = self.live[: self.left]
        if not live:
            raise RuntimeError("no connection is left to send on")
        self.busy = len(live)
        self.quiet.clear()
        cpu = cpu_s(self.plan.pids)
        began = perf_counter()
        self.ends_at = began + phase.secs
        for connection in live:
            self.request(connection)
        async with asyncio.timeout(phase.secs + self.plan.timeout_s):
            await self.quiet.wait()
        secs = perf_counter() - began
        return self._outcome(phase.label, secs, cpu_s(self.plan.pids) - cpu)

    def _outcome(self, label: str, secs: float, cpu: float) -> Outcome:
        ordered = sorted(self.latencies) or [0.0]
        return Outcome(
            requests=len(self.latencies),
            secs=secs,
            rps=len(self.latencies) / secs,
            p50_ms=percentile(ordered, 0.5) * 1e3,
            p90_ms=percentile(ordered, 0.9) * 1e3,
            p99_ms=percentile(ordered, 0.99) * 1e3,
            max_ms=ordered[-1] * 1e3,
            non2xx=self.non2xx,
            errors=self.errors,
            cpu_s=cpu,
            label=label,
        )

    def number(self) -> int:
        """What tells the next request from others, as far as they shall differ."""
        return self.sent % self.plan.distinct if self.plan.distinct else self.sent

    def payload(self, session: str = "") -> Payload:
        """Answer the request to send, with a session id or without."""
        headers = {"X-Session-Id": session} if session else {}
        return Payload(self.plan.tag, self.plan.stream, self.plan.extra, headers, self.plan.path)


class _Lean:
    """Parser callbacks while measuring: only the end of a reply matters."""

    def __init__(self, connection: Connection) -> None:
        self.on_message_complete = connection.on_message_complete


class _Asking(_Lean):
    """Parser callbacks while asking: the shard header is read too."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.on_header = connection.on_header


class Connection(asyncio.Protocol):
    """One client connection with at most one request under way."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.shard = ""
        self.seen_shard = ""
        self.sent_at = 0.0
        self.asked: asyncio.Future[str] | None = None
        self.parser = httptools.HttpResponseParser(_Lean(self))
        self.before, self.after = client.payload().pieces(client.plan.url)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self.transport = cast("asyncio.Transport", transport)
        self.client.live.append(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-tpo-shard":
            self.seen_shard = value.decode()

    def on_message_complete(self) -> None:
        if self.asked is None:
            self.client.finished(self, self.parser.get_status_code())
        elif not self.asked.done():
            self.asked.set_result(self.seen_shard)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.client.live.remove(self)
        if self.sent_at:
            self.client.errors += 1
            self.client.idle(self)
        if self.asked is not None and not self.asked.done():
            self.asked.set_exception(ConnectionError("closed while asking for the shard"))

    async def ask(self, session: str) -> str:
        """Send one request of its own and answer the shard its reply names."""
        self.asked = asyncio.get_running_loop().create_future()
        self.seen_shard = ""
        self.parser = httptools.HttpResponseParser(_Asking(self))
        before, after = self.client.payload(session).pieces(self.client.plan.url)
        self.client.sent += 1
        self.transport.write(b"%b%0*d%b" % (before, DIGITS, self.client.sent, after))
        shard = await asyncio.wait_for(self.asked, self.client.plan.timeout_s)
        self.asked = None
        self.parser = httptools.HttpResponseParser(_Lean(self))
        return shard


async def learn(client: Client) -> dict[str, str]:
    """Find each connection's shard, and one session id per shard; refuse a host with one shard."""
    for connection in client.live:
        connection.shard = await connection.ask("")
    sessions: dict[str, str] = {}
    for i in range(PROBES):
        session = f"bench-{i:06d}"
        sessions.setdefault(await client.live[0].ask(session), session)
    if len(sessions) < 2 or "" in sessions:
        raise RuntimeError(f"sessions reached these shards only: {sorted(sessions)}")
    return sessions


def choose(client: Client, session: Session, sessions: dict[str, str]) -> None:
    """Give every connection the session id this phase wants of it; ids have one length."""
    for connection in client.live:
        name = _BLANK_SESSION
        if session != "none":
            others = sorted(shard for shard in sessions if shard != connection.shard)
            name = sessions[connection.shard if session == "own" else others[0]]
        payload = client.payload("" if session == "none" else name)
        connection.before, connection.after = payload.pieces(client.plan.url)


async def drive(plan: Plan) -> list[Outcome]:
    """Run a plan and answer one outcome per phase."""
    client = Client(plan)
    await client.connect()
    wants_sessions = any(phase.session != "none" for phase in plan.phases)
    sessions = await learn(client) if wants_sessions else {}
    outcomes = []
    for phase in plan.phases:
        choose(client, phase.session, sessions)
        outcomes.append(await client.run(phase))
    for connection in list(client.live):
        connection.transport.abort()
    return outcomes


def main() -> None:
    """Read a plan, run it, write what it measured."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(drive(plan))))


if __name__ == "__main__":
    main()
