"""Single-producer single-consumer byte rings, one per ordered pair of seats.

::

    mesh    byte 0: ring(0→1) ring(0→2) … ring(1→0) ring(1→2) …     no ring to oneself
    ring    byte 0    magic u64 · capacity u64                      64 bytes, written at creation
            byte 64   tail u64 · epoch u32, its proof u32 · proof u64    64 bytes, producer's line
            byte 128  head u64                                      64 bytes, consumer's line
            byte 192  nothing                                       64 bytes
            byte 256  data                                          capacity bytes (power of two)
    record  +0 length i32   +4 sequence u32   +8 epoch u32   +12 crc u32   +16 payload … to 16

``tail`` and ``head`` are byte positions that only grow; a position lies at ``position % capacity``.
Records start at multiples of 16 (so a header always fits) and never cross the end of the ring: a
PADDING record (length ``PADDING``) fills the rest.  ``sequence`` is the record's position, low 32
bits.  ``crc`` is the CRC-32 of the payload *started from* sequence and epoch, so it covers both; a
wrong length reads other bytes and fails it too.

Record states: 0 free -> 1 claimed (length < 0) -> 2 committed (length > 0) -> 3 published
(tail beyond it) -> 4 consumed (head beyond it).  The producer moves 0..3, the consumer 4.

Producer, in this order; ``|`` is a fence (see ``fence``; none on x86-64):
    1 header with length -n, sequence, epoch, crc    2 payload    |    3 length +n    |    4 tail
Consumer:
    1 load tail   |   2 header, payload copied out, crc checked   |   3 head   4 hand over
Head moves before anything is handed over: a consumer that dies has lost what it read, and nobody
reads it a second time.

What the other side sees if the producer dies
    before 1, 1-2, 2-3, 3-4   nothing: tail still ends before the record.  The next occupant writes
                              over it.  No record is ever half-visible.
    after 4                   a whole record.  It is delivered, unless ``reset_seat`` came first.
and if the consumer dies
    before 3                  records stay; ``reset_seat`` drops them, their senders own the calls
                              (those to the heir stay for its successor: nobody else owns them)
    after 3                   they are gone with it

A record whose crc fails is read again for 200 us (a weak CPU may show tail first).  Then it counts
in ``corrupt`` and the consumer skips to tail; it raises nothing.  Its caller treats a growth of
``corrupt`` as the loss of every call on that ring.  Damage to a record's sequence or epoch alone
is harmless: the consumer knows both without reading them.  A valid record of an epoch older than
the ring's counts in ``stale`` and is skipped; a newer one shows that the seat has a new occupant
and is taken.

Both ends keep their position in their own memory, the shared word is only its announcement, so a
damaged word heals when it is stored again: tail at every push (also a refused one), epoch once a
lap, head at every drain.  ``proof`` is a function of tail, stored once a lap, when a push is
refused and by ``republish``; a tail it belongs to is *proven*.  The epoch word carries a proof of
its own; a damaged one is ignored.  Positions that disagree:
    tail before head, more than a lap     consumer: skips to it, forward or back, if it is proven;
    ahead of it, or not on a multiple     else waits for a push.  Each counts in ``corrupt``
    of 16
    tail falsely ahead, within a lap      consumer: the record found there fails its crc
    head ahead of tail, or more than      producer: full, which proves tail
    a lap behind it
No record is delivered twice by this: nothing at or after a proven tail was ever written, and
records of an earlier lap or epoch carry another sequence or epoch.

Recovery, by the supervisor alone, after the dead end was reaped and before its successor exists:
    producer dead   tail is checked against head; epoch +1, so what is still unread becomes stale
    consumer dead   head = tail, if that is possible; else the successor reads what was not for it.
                    Nothing if it was the heir: its successor reads on
The live end goes on meanwhile; no word of its own is touched.

An eighth of the ring is kept for control records, so that credit, cancel and end pass when data
does not.  A full ring never blocks: ``push`` answers False.  Ring the doorbell after a refused push
too: the drain is what makes room.

Memory order relied on: stores of steps 1-2 before 3 before 4, loads of 1 before 2 before 3 at the
consumer; head needs the consumer's copies to be done.  x86-64 gives this (TSO).  Elsewhere the
fences do, and the crc turns what is left into "not yet".
Known weakness: a claimed length is never needed to read (tail is enough); it is there so that a
dump shows what a dead producer was doing.
"""

from __future__ import annotations

from tpo_mp.errors import Fault

from . import failpoints
from .ring_layout import CAPACITY, DATA, EPOCH, HEAD, M32, MAGIC, TAIL, epoch_word, ring_capacity
from .ring_reader import RingReader
from .ring_writer import FaultyRingWriter, RingWriter
from .segment import Segment

__all__ = ["RingMesh", "RingReader", "RingWriter", "draw_ring", "drop_unread", "raise_epoch"]


class RingMesh:
    """All rings of a host in one segment."""

    def __init__(self, segment: Segment, seats: int) -> None:
        self.segment = segment
        self.fd = segment.fd
        self.seats = seats
        self.capacity = ring_capacity(seats)

    @staticmethod
    def size(seats: int) -> int:
        """Bytes needed for ``seats`` seats (at least two)."""
        return seats * (seats - 1) * (DATA + ring_capacity(seats))

    @classmethod
    def create(cls, seats: int) -> RingMesh:
        """Draw all rings, empty (supervisor only)."""
        mesh = cls(Segment.create("tpo-rings", cls.size(seats)), seats)
        for at in range(0, mesh.segment.size, DATA + mesh.capacity):
            draw_ring(mesh.segment, at, mesh.capacity)
        return mesh

    @classmethod
    def attach(cls, fd: int, seats: int) -> RingMesh:
        """Map the supervisor's rings; raises ``Fault`` when they are not for ``seats`` seats."""
        mesh = cls(Segment.attach(fd, cls.size(seats)), seats)
        if tuple(mesh.segment.words[:2]) != (MAGIC, mesh.capacity):
            raise Fault("rings of another layout", reason="shm_layout")
        return mesh

    def writer(self, src: int, dst: int, epoch_of_src: int) -> RingWriter:
        """The producer's end, for the occupant of ``src`` only."""
        made = FaultyRingWriter if failpoints.ACTIVE else RingWriter
        return made(self.segment, self._at(src, dst), self.capacity, epoch_of_src)

    def reader(self, src: int, dst: int) -> RingReader:
        """The consumer's end, for the occupant of ``dst`` only."""
        return RingReader(self.segment, self._at(src, dst), self.capacity)

    def reset(self, src: int, dst: int) -> None:
        """Empty one ring neither of whose ends lives (supervisor only)."""
        self._drop_unread(src, dst)
        self._raise_epoch(src, dst)

    def reset_seat(self, seat: int, *, heir: int = -1) -> None:
        """Prepare a dead seat's rings for its next occupant; the other ends may live.

        Supervisor only, after the occupant was reaped and before its successor exists.
        ``heir`` may still read what the dead seat sent it, until ``expire`` is called.  When the
        heir itself died, its successor reads what everybody sent it.
        """
        # ``attach`` reads these two words: damage to them would keep every successor out.
        self.segment.words[0], self.segment.words[CAPACITY] = MAGIC, self.capacity
        for other in range(self.seats):
            if other != seat:
                if seat != heir:
                    self._drop_unread(other, seat)
                if other != heir:
                    self._raise_epoch(seat, other)

    def expire(self, seat: int, heir: int) -> None:
        """Make what ``heir`` has not read of a dead seat stale: its successor comes now."""
        if seat != heir:
            self._raise_epoch(seat, heir)

    def close(self) -> None:
        """Unmap."""
        self.segment.close()

    def _at(self, src: int, dst: int) -> int:
        if src == dst or not (0 <= src < self.seats and 0 <= dst < self.seats):
            raise ValueError(f"no ring from seat {src} to seat {dst}")
        return (src * (self.seats - 1) + dst - (dst > src)) * (DATA + self.capacity)

    def _drop_unread(self, src: int, dst: int) -> None:
        drop_unread(self.segment, self._at(src, dst), self.capacity)

    def _raise_epoch(self, src: int, dst: int) -> None:
        raise_epoch(self.segment, self._at(src, dst), self.capacity)


def draw_ring(segment: Segment, at: int, capacity: int) -> None:
    """Write an empty ring at byte ``at`` (supervisor only)."""
    segment.words[at // 8 + CAPACITY] = capacity
    segment.words[at // 8 + EPOCH] = epoch_word(0)
    segment.words[at // 8] = MAGIC


def drop_unread(segment: Segment, at: int, capacity: int) -> None:
    """Empty the ring at byte ``at``, whose consumer was reaped (supervisor only)."""
    at, words = at // 8, segment.words
    tail = words[at + TAIL]
    if 0 <= tail - words[at + HEAD] <= capacity and not tail & 15:
        words[at + HEAD] = tail


def raise_epoch(segment: Segment, at: int, capacity: int) -> None:
    """Make what is unread of the ring at byte ``at`` stale, as its producer was reaped."""
    at, words = at // 8, segment.words
    head, tail = words[at + HEAD], words[at + TAIL]
    if not 0 <= tail - head <= capacity or tail & 15:
        words[at + TAIL] = head & ~15
    words[at + EPOCH] = epoch_word((words[at + EPOCH] & M32) + 1 & M32)
