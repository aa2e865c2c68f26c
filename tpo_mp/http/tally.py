"""Counts every request of either lane by method, route and status, and how long it took.

A request ends when its answer was handed to its connection whole, when either side cut it short,
or, on a socket, when that closes.  Its time runs from when all of it was read.

Status is what its head said; ``499`` where the client left before one was sent, ``none`` where we
cut the connection without one (an injected fault).  A request whose head cannot be trusted has the
route and the method ``other``, and no time.

Invariants: a path is a route's template, never what a client sent; a head's row is found once per
distinct head, so a request costs three additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from tpo_mp.shm.metrics import OTHER, CellCounter, MetricsBlock

from .endpoints import Endpoint
from .head import Head

REQUESTS: Final = "http_requests_total"
DURATION: Final = "http_request_duration_seconds"
BOUNDS_S: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SUM: Final = len(BOUNDS_S) + 1
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
LEFT, CUT = 499, 0


class TallyRow:
    """The cells of one method on one route, by index."""

    __slots__ = ("duration", "method", "path", "statuses")

    def __init__(self, method: str, path: str, duration: int) -> None:
        self.method = method
        self.path = path
        self.duration = duration
        self.statuses: dict[int, int] = {}


class RequestTally:
    """One shard's count of requests; a ``Judge``, because it has its row ready in every head."""

    def __init__(self, metrics: MetricsBlock) -> None:
        self._metrics = metrics
        self._cells = metrics.cells
        self._rows: dict[tuple[str, str], TallyRow] = {}

    def allow(self, endpoints: Iterable[Endpoint]) -> None:
        """Let every route of a table have its name on the page, whoever asks for which first."""
        templates = {endpoint.template for endpoint in endpoints}
        for name in (REQUESTS, DURATION):
            self._metrics.allow(name, "path", templates)

    def apply(self, head: Head) -> None:
        """Find the row of a checked head."""
        path = OTHER if head.endpoint is None else head.endpoint.template
        head.tally = self._row(head.method if head.method in _METHODS else OTHER, path)

    def _row(self, method: str, path: str) -> TallyRow:
        row = self._rows.get((method, path))
        if row is None:
            made = self._metrics.histogram(
                DURATION, "From a request that was read to the end of its answer.", BOUNDS_S,
                method=method, path=path,
            )  # fmt: skip
            row = self._rows[method, path] = TallyRow(method, path, made.index)
        return row

    def add(self, row: TallyRow, status: int, took_s: float) -> None:
        """Count a request that ended."""
        cells = self._cells
        try:
            at = row.statuses[status]
        except KeyError:
            at = self._cell(row, status)
        cells[at] += 1
        at = row.duration
        cells[at + bisect_left(BOUNDS_S, took_s)] += 1
        cells[at + _SUM] += int(took_s * 1e6)

    def add_bad(self, status: int) -> None:
        """Count a request whose head or framing was refused."""
        self._counter(OTHER, OTHER, status).inc()

    def _cell(self, row: TallyRow, status: int) -> int:
        cell = row.statuses[status] = self._counter(row.method, row.path, status).index
        return cell

    def _counter(self, method: str, path: str, status: int) -> CellCounter:
        return self._metrics.counter(
            REQUESTS, "Requests that ended.",
            method=method, path=path, status=str(status) if status else "none",
        )  # fmt: skip
