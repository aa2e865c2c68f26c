"""Control's end of the ring mesh: reads what every worker sent, queues what goes back.

Reading is fair (a bounded number of records per ring and turn) and stops while the store's thread
is behind.  A record that does not fit its ring waits in an outbox until the reader made room; it is
dropped when the seat has another occupant by then, because the question died with the old one.

Invariants: the loop is never blocked; outboxes hold at most ``MAX_HELD`` bytes together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.ring import RingMesh, RingReader, RingWriter

PER_RING = 256
MAX_HELD = 64 << 20


@dataclass(slots=True)
class _Parcel:
    records: deque[bytes]
    epoch: int
    done: Callable[[bool], None] | None


class Mail:
    """All rings between control and the worker seats."""

    def __init__(
        self,
        mesh: RingMesh,
        plane: Plane,
        seat: int,
        epoch: int,
        bells: Sequence[Doorbell],
        handle: Callable[[int, bytes], None],
    ) -> None:
        """``handle`` gets every record with the seat it came from."""
        others = [n for n in range(plane.seats) if n != seat]
        self._plane = plane
        self._bells = bells
        self._handle = handle
        self._readers: dict[int, RingReader] = {n: mesh.reader(n, seat) for n in others}
        self._writers: dict[int, RingWriter] = {n: mesh.writer(seat, n, epoch) for n in others}
        self._outboxes: dict[int, deque[_Parcel]] = {n: deque() for n in others}
        self._held = 0
        self.refused = 0
        self.max_record = min(w.max_record for w in self._writers.values())

    def drain(self) -> bool:
        """Handle what has arrived; true when a ring has more."""
        more = False
        for seat, reader in self._readers.items():
            records = reader.drain(PER_RING)
            for record in records:
                self._handle(seat, record)
            more |= len(records) == PER_RING
        return more

    def send(
        self, seat: int, records: Sequence[bytes], done: Callable[[bool], None] | None = None
    ) -> None:
        """Send records to a seat's present occupant, in order; ``done`` learns how it ended."""
        size = sum(map(len, records))
        if self._held + size > MAX_HELD:
            self.refused += 1
            if done is not None:
                done(False)
            return
        self._held += size
        parcel = _Parcel(deque(records), self._plane.seat(seat).epoch, done)
        self._outboxes[seat].append(parcel)
        self._flush_seat(seat)

    def flush(self) -> bool:
        """Push what waits; true while something still does."""
        waiting = False
        for seat, box in self._outboxes.items():
            if box:
                waiting |= self._flush_seat(seat)
        return waiting

    @property
    def corrupt(self) -> int:
        """Damaged records met on all rings."""
        return sum(reader.corrupt for reader in self._readers.values())

    @property
    def stale(self) -> int:
        """Records of dead occupants that were skipped."""
        return sum(reader.stale for reader in self._readers.values())

    def _flush_seat(self, seat: int) -> bool:
        box, writer = self._outboxes[seat], self._writers[seat]
        epoch = self._plane.seat(seat).epoch
        touched = False
        while box:
            parcel = box[0]
            if parcel.epoch != epoch:
                self._finish(box, False)
                continue
            touched = True
            if not self._push(parcel, writer):
                break
            self._finish(box, True)
        if touched:
            self._bells[seat].ring()
        return bool(box)

    def _push(self, parcel: _Parcel, writer: RingWriter) -> bool:
        while parcel.records:
            if not writer.push(parcel.records[0]):
                return False
            self._held -= len(parcel.records.popleft())
        return True

    def _finish(self, box: deque[_Parcel], done: bool) -> None:
        parcel = box.popleft()
        self._held -= sum(map(len, parcel.records))
        if parcel.done is not None:
            parcel.done(done)
