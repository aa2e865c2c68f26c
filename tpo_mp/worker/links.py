"""This shard's end of the ring mesh: who sends, who reads, when bells are rung.

Every ring into this seat is drained on its doorbell and on a bounded recheck, because a doorbell
may be lost.  Bells go out once per turn of the loop per seat that got records.

Invariants: a frame that must not be lost is refused to its caller when the ring is full, never
dropped here; a peer is alive while its (epoch, pid) pair stays what it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tpo_mp.ports import Metrics
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.ring import RingMesh, RingReader, RingWriter

Take = Callable[[int, bytes], None]
_BATCH = 256


class Links:
    """All rings from and to one seat."""

    def __init__(
        self,
        *,
        seat: int,
        epoch: int,
        plane: Plane,
        mesh: RingMesh,
        doorbells: list[tuple[int, int]],
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        take: Take,
        rung: Callable[[], None],
    ) -> None:
        """``take(source seat, record)`` receives what arrives; ``rung`` hears every bell."""
        self._seat = seat
        self._plane = plane
        self._loop = loop
        self._take = take
        self._on_rung = rung
        self._writers: dict[int, RingWriter] = {
            d: mesh.writer(seat, d, epoch) for d in range(plane.seats) if d != seat
        }
        self._readers: list[tuple[int, RingReader]] = [
            (s, mesh.reader(s, seat)) for s in range(plane.seats) if s != seat
        ]
        self._bells = [Doorbell.attach(r, w) for r, w in doorbells]
        self._to_ring: set[int] = set()
        self._corrupt_seen = {source: 0 for source, _ in self._readers}
        self.damaged: Callable[[int], None] = lambda _source: None
        """Called with a source seat before anything that came after the damage is taken."""
        self.max_record = self._writers[(seat + 1) % plane.seats].max_record
        self._sent = metrics.counter("tpo_ring_records_total", "Records pushed to other seats.")
        self._full = metrics.counter("tpo_ring_full_total", "Records refused by a full ring.")
        self._corrupt = metrics.counter("tpo_ring_corrupt_total", "Damaged records skipped.")
        loop.add_reader(self._bells[seat].fileno(), self._rung)

    def push(
        self, seat: int, head: bytes, body: bytes | memoryview, *, control: bool = False
    ) -> bool:
        """Send ``head + body``; False when the ring is full."""
        went = self._writers[seat].push2(head, body, control=control)
        # A refused push rings too: the drain is what makes room.
        self._ring(seat)
        if went:
            self._sent.inc()
        else:
            self._full.inc()
        return went

    def send(self, seat: int, record: bytes, *, control: bool = False, ring: bool = True) -> bool:
        """Send one whole record; False when the ring is full.

        Without ``ring`` the reader finds it at its next look (control looks every 50 ms).
        """
        went = self._writers[seat].push(record, control=control)
        if ring or not went:
            self._ring(seat)
        if went:
            self._sent.inc()
        else:
            self._full.inc()
        return went

    def life_of(self, seat: int) -> tuple[int, int]:
        """Epoch and pid of a seat's occupant; changes when it dies."""
        lines = self._plane.seat(seat)
        return lines.epoch, lines.pid

    def _ring(self, seat: int) -> None:
        if not self._to_ring:
            self._loop.call_soon(self._ring_all)
        self._to_ring.add(seat)

    def _ring_all(self) -> None:
        for seat in self._to_ring:
            self._bells[seat].ring()
        self._to_ring.clear()

    def _rung(self) -> None:
        self._bells[self._seat].clear()
        self.poll()
        self._on_rung()

    def poll(self) -> None:
        """Take everything that waits in the rings into this seat."""
        take = self._take
        for source, reader in self._readers:
            while reader.pending():
                records = reader.drain(_BATCH)
                for record in records:
                    take(source, record)
                if reader.corrupt != self._corrupt_seen[source]:
                    self._corrupt.inc(reader.corrupt - self._corrupt_seen[source])
                    self._corrupt_seen[source] = reader.corrupt
                    self.damaged(source)
                if len(records) < _BATCH:
                    break

    def republish(self) -> None:
        """Store this end's ring words again, which heals damage to them."""
        for writer in self._writers.values():
            writer.republish()

    def close(self) -> None:
        """Stop listening to the doorbell."""
        self._loop.remove_reader(self._bells[self._seat].fileno())
