"""Gives asynchronous calls of a dead worker to a living one, once.

A call is in one of three places: the dead seat's registry slot, a rerun underway (pieces still to
be pushed), or handed over (all pieces on the ring).  The slot is given back only when the last
piece is pushed; from then until its call record arrives the call is remembered here, so that a
second death before the new worker registered it ends in a dead letter and not in silence.

Invariants: a call is handed over at most once; what is remembered is capped in number and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tpo_mp.shm.callid import to_text
from tpo_mp.shm.frames import Kind, RerunFrame, frame
from tpo_mp.shm.plane import NO_SLOT, Plane, SeatState
from tpo_mp.shm.registry import Orphan, Registry

MAX_CALLS = 4096
MAX_BYTES = 64 << 20
GRACE_S = 1.0
_FRAME_BYTES = 1536


class Sender(Protocol):
    """The part of ``Mail`` that reruns use."""

    max_record: int

    def send(
        self, seat: int, records: list[bytes], done: Callable[[bool], None] | None = None
    ) -> None: ...


@dataclass(slots=True)
class _Rerun:
    orphan: Orphan
    seat: int
    epoch: int
    handed_over: bool = False
    lost_at: float | None = None


class Reruns:
    """The calls on their way to, or in the hands of, their second worker."""

    def __init__(
        self, plane: Plane, registry: Registry, mail: Sender, clock: Callable[[], float]
    ) -> None:
        self._plane = plane
        self._registry = registry
        self._mail = mail
        self._clock = clock
        self._calls: dict[str, _Rerun] = {}
        self._bytes = 0
        self._turn = 0
        self.started = 0

    def __len__(self) -> int:
        return len(self._calls)

    def underway(self) -> frozenset[str]:
        """Ids whose old slot is still needed."""
        return frozenset(i for i, rerun in self._calls.items() if not rerun.handed_over)

    def possible(self) -> bool:
        """Whether some worker could take a call now."""
        full = len(self._calls) >= MAX_CALLS or self._bytes >= MAX_BYTES
        return not full and self._next_seat() is not None

    def start(self, orphan: Orphan) -> None:
        """Begin to hand a call to the next ready worker; does nothing when there is none."""
        seat = self._next_seat()
        call_id = to_text(orphan.call_id)
        if seat is None or call_id in self._calls:
            return
        self._turn += 1
        self.started += 1
        rerun = _Rerun(orphan, seat, self._plane.seat(seat).epoch)
        self._calls[call_id] = rerun
        self._bytes += len(orphan.body or b"")

        def pushed(done: bool) -> None:
            if done:
                rerun.handed_over = True
                self._registry.harvested(orphan.seat, orphan.slot)
            else:
                self._forget(call_id)

        self._mail.send(seat, self._records(call_id, orphan), pushed)

    def finished(self, call_id: str) -> None:
        """Its call record arrived: the second worker brought it to its end."""
        self._forget(call_id)

    def lost(self) -> list[Orphan]:
        """Calls whose second worker died a grace period ago without a word; they are forgotten."""
        now = self._clock()
        gone: list[Orphan] = []
        for call_id, rerun in list(self._calls.items()):
            if not rerun.handed_over or self._lives(rerun):
                continue
            if rerun.lost_at is None:
                rerun.lost_at = now
            elif now - rerun.lost_at >= GRACE_S:
                gone.append(rerun.orphan)
                self._forget(call_id)
        return gone

    def _lives(self, rerun: _Rerun) -> bool:
        seat = self._plane.seat(rerun.seat)
        return seat.epoch == rerun.epoch and seat.state != SeatState.EMPTY

    def _forget(self, call_id: str) -> None:
        rerun = self._calls.pop(call_id, None)
        if rerun is not None:
            self._bytes -= len(rerun.orphan.body or b"")

    def _next_seat(self) -> int | None:
        workers = self._plane.seats - 1
        for step in range(workers):
            seat = (self._turn + step) % workers
            line = self._plane.seat(seat)
            if line.state == SeatState.READY and line.slot != NO_SLOT:
                return seat
        return None

    def _records(self, call_id: str, orphan: Orphan) -> list[bytes]:
        body = orphan.body or b""
        step = self._mail.max_record - _FRAME_BYTES
        starts = range(0, max(1, len(body)), step)
        return [
            frame(
                Kind.RERUN,
                0,
                RerunFrame(
                    call_id,
                    orphan.attempts + 1,
                    b"" if at else orphan.meta,
                    body[at : at + step],
                    at + step < len(body),
                ),
            )
            for at in starts
        ]
