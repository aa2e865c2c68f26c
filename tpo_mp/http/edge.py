"""What every client connection of a shard shares: limits, clocks, memo, counters.

Invariants: the date is refreshed by the shard's beat, never per request.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from struct import pack
from typing import TYPE_CHECKING, Any, Protocol

from tpo_mp.errors import Fault, TpoError

from .exchange import REASON, new_request_id
from .head import ALWAYS, NO_STORE, HeadMemo, Judge
from .wheel import Wheel

if TYPE_CHECKING:
    from .endpoints import EndpointTable
    from .exchange import Exchange
    from .keyring import Keyring
    from .policy import Policy
    from .tally import RequestTally


class Closable(Protocol):
    """A connection of either lane, as the drain sees it."""

    def close_when_idle(self, linger_s: float, fresh_s: float) -> None: ...


class Limits(Protocol):
    """The limits of ``[server]`` that the edge keeps."""

    @property
    def max_body_bytes(self) -> int: ...
    @property
    def max_header_bytes(self) -> int: ...
    @property
    def header_timeout_s(self) -> float: ...
    @property
    def body_timeout_s(self) -> float: ...
    @property
    def idle_timeout_s(self) -> float: ...
    @property
    def slow_reader_s(self) -> float: ...


MAX_REQUESTS = 1_000_000
_NO_LINGER = pack("ii", 1, 0)
RenderError = Callable[["Exchange", TpoError], None]


class ClientEdge:
    """The shared half of the HTTP edge; one per shard.

    ``render_error`` answers an exchange in its family's dialect.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        wheel: Wheel,
        table: EndpointTable,
        render_error: RenderError,
        on_crash: Callable[[BaseException], None],
        limits: Limits,
        policy: Policy | None = None,
        keyring: Keyring | None = None,
        count_fast: Callable[[], None],
        count_full: Callable[[], None],
        count_bad: Callable[[], None],
        tally: RequestTally,
    ) -> None:
        self.loop = loop
        self.wheel = wheel
        self.max_requests = MAX_REQUESTS
        self.tally = tally
        self.configure(limits, policy, keyring)
        self.count_fast = count_fast
        self.count_full = count_full
        self.count_bad = count_bad
        self.connections: set[Closable] = set()
        self.closing = False
        self.fresh_s = float("inf")
        """How long a new connection may say nothing: less in a drain, when handshakes end."""
        self.plain_date = b""
        """The date alone."""
        self.stamp: Callable[[], bytes] | None = None
        """Further header lines of every answer, if any."""
        self.to_full_lane: Callable[[asyncio.Transport, bytes], None] = _no_full_lane
        self.drain_full_lane: Callable[[], None] = lambda: None
        self.count_full_lane: Callable[[], int] = lambda: 0
        self._render_error = render_error
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()
        self.use(table)
        self.tick()

    def configure(
        self, limits: Limits, policy: Policy | None, keyring: Keyring | None = None
    ) -> None:
        """Take over limits, policy and keys; open requests keep theirs.  ``use`` must follow."""
        self.policy = policy
        # Whoever may not call is still answered as the policy wants: a page reads its 401.
        self.judges: tuple[Judge, ...] = tuple(
            judge for judge in (policy, keyring, self.tally) if judge is not None
        )
        self.max_body_bytes = limits.max_body_bytes
        self.max_header_bytes = limits.max_header_bytes
        self.header_timeout_s = limits.header_timeout_s
        self.body_timeout_s = limits.body_timeout_s
        self.idle_timeout_s = limits.idle_timeout_s
        self.slow_reader_s = limits.slow_reader_s

    def use(self, table: EndpointTable) -> None:
        """Switch to a new route table; remembered heads of the old one are forgotten."""
        self.table = table
        self.tally.allow(table.all)
        self.heads = HeadMemo(table, self.max_body_bytes, self.judges)

    def tick(self) -> None:
        """Refresh the date header line."""
        self.plain_date = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    @property
    def date_line(self) -> bytes:
        """The date, and what is stamped on every answer."""
        stamp = self.stamp
        return self.plain_date if stamp is None else self.plain_date + stamp()

    def peer(self, direct: str, client: str) -> str:
        """Who a request is from, when proxies may say."""
        return direct if self.policy is None else self.policy.proxies.peer(direct, client)

    def fail(self, exchange: Exchange, error: TpoError, *, close: bool = False) -> None:
        """Answer ``error`` in the dialect of the request's family."""
        if close:
            exchange.head = _closing_copy(exchange.head)
        self._render_error(exchange, error)

    def report(self, error: BaseException) -> None:
        """Report a defect that nobody can be told of."""
        self._on_crash(error)

    def crash(self, exchange: Exchange, error: BaseException) -> None:
        """Report a defect and answer 500 without detail."""
        self._on_crash(error)
        self._render_error(exchange, Fault("internal error", reason="internal_error"))

    def adopt(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Run a handler that waits; the client's leaving cancels it."""
        task = self.loop.create_task(self._run(exchange, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if exchange.on_disconnect is None:
            exchange.on_disconnect = lambda: _cancel(task)

    async def _run(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except TpoError as e:
            self.fail(exchange, e)
        except Exception as e:  # noqa: BLE001 - a defect answers 500, never a dead connection
            self.crash(exchange, e)

    def bad_request(self, status: int, message: str) -> bytes:
        """A whole closing response for a request that never reached a family; counts it."""
        self.tally.add_bad(status)
        body = json.dumps(
            {"error": {"message": message, "type": "invalid_request_error", "param": None,
                       "code": "bad_request"}}
        ).encode()  # fmt: skip
        return (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"%b%b%bx-request-id: %b\r\nconnection: close\r\n\r\n%b"
            % (
                status,
                REASON.get(status, b"Bad Request"),
                len(body),
                self.date_line,
                ALWAYS,
                NO_STORE,
                new_request_id().encode(),
                body,
            )
        )

    def drain(self, linger_s: float, fresh_s: float = float("inf")) -> None:
        """Stop keeping connections alive.

        Idle ones may send one more request within ``linger_s``: a client that is just sending it
        would otherwise see a reset.  Those that never sent one were opened for it just now: they
        have ``fresh_s``, and in any case no longer than the header timeout.
        """
        self.closing, self.fresh_s = True, fresh_s
        for connection in list(self.connections):
            connection.close_when_idle(linger_s, fresh_s)
        self.drain_full_lane()

    @property
    def open_connections(self) -> int:
        """Client connections of both lanes."""
        return len(self.connections) + self.count_full_lane()


def reset(transport: asyncio.Transport) -> None:
    """End a connection whose peer does not read.

    A plain close would leave the kernel holding megabytes for it until it reads them or dies.
    """
    peer = transport.get_extra_info("socket")
    if peer is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _closing_copy(head: Any) -> Any:
    """A remembered head must not change: closing is this request's affair alone."""
    copy = type(head)()
    for name in type(head).__slots__:
        setattr(copy, name, getattr(head, name))
    copy.keep_alive = False
    return copy


def _no_full_lane(transport: asyncio.Transport, _unread: bytes) -> None:
    transport.close()
