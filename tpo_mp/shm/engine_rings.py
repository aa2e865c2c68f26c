"""Calls to engines of this host, and their answers: two rings per worker's seat and engine.

::

    byte 0    magic u64 | layout u64 | seats u64 | docks u64                  64 bytes
    byte 64   life of seat 0 u64, of seat 1, … pad to 64                       8 bytes per seat
    then      dock 0: epoch u64 | name u64 | serves u64 | pad to 64           64 bytes per dock
    then      dock 0: ring(seat 0→engine) ring(engine→seat 0) ring(seat 1→engine) …
              dock 1: …                                                       as ``ring`` has it

A *dock* is to an engine what a seat is to a worker: room for a process, with an epoch per
occupation.  Seats are the workers'; who has none here (control, an engine we did not write) speaks
HTTP.

    life     epoch of the seat's occupant; supervisor only, at its birth and after it was reaped
    epoch    grows when an engine is started in the dock, and again after it was reaped; supervisor
    name     BLAKE2b-64 of the engine's name, 0: the dock is free; supervisor
    serves   the epoch of an engine that has its readers and takes calls; 0 else.  The engine writes
             it, and the supervisor after the engine was reaped

States of a dock: 0 free -> 1 taken (name, epoch) -> 2 serves (serves == epoch) -> 1 or 0.
Whoever sends notes epoch and life first: when they are others, what was under way is lost.

Frames (``frames``): CALL and then DATA to the engine; REPLY, DATA and END from it; CREDIT, CANCEL
to it.  The number is the worker's; a CALL says which epoch it is for, since one may be pushed
between an engine's death and its discovery, and the next engine in the dock must not take it.

What the others see if a writer dies between two lines
    supervisor      the host ends with it
    engine, before  ``serves``: nobody sends; calls go by HTTP
    engine, later   its epoch grows once it was reaped: calls under way fail, what it left unread
                    is dropped, what of its own is unread becomes stale
    worker          its life grows once it was reaped: the engine drops its calls

Memory order: none but that of the rings; each word here is valid by itself.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from .ring import draw_ring, drop_unread, raise_epoch
from .ring_layout import DATA
from .ring_reader import RingReader
from .ring_writer import RingWriter
from .segment import Segment

MAGIC: Final = int.from_bytes(b"TPOENGN1", "little")
LAYOUT: Final = 1
LINE_WORDS: Final = 8
MOST_DOCKS: Final = 16
CREDIT_BYTES: Final = 65_536
"""What an engine may have under way of one answer."""
_MIN_CAPACITY, _MAX_CAPACITY = 32 * 1024, 64 * 1024
_ALL_BYTES = 16 << 20
_EPOCH, _NAME, _SERVES = 0, 1, 2
NO_DOCK: Final = -1


def name_word(name: str) -> int:
    """An engine's name as its dock has it."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1


class EngineRings:
    """All rings between workers and engines of a host, in one segment."""

    def __init__(self, segment: Segment, seats: int, docks: int) -> None:
        self.segment = segment
        self.fd = segment.fd
        self.seats = seats
        self.docks = docks
        self.capacity = _capacity(seats, docks)
        self._lines = LINE_WORDS + (seats + 7 & -8)
        self._rings_at = (self._lines + docks * LINE_WORDS) * 8

    @staticmethod
    def size(seats: int, docks: int) -> int:
        """Bytes needed."""
        words = LINE_WORDS * (1 + docks) + (seats + 7 & -8)
        return words * 8 + 2 * seats * docks * (DATA + _capacity(seats, docks))

    @classmethod
    def create(cls, seats: int, docks: int) -> EngineRings:
        """Draw all of them, empty (supervisor only)."""
        segment = Segment.create("tpo-engine-rings", cls.size(seats, docks))
        made = cls(segment.signed(MAGIC, LAYOUT, seats, docks), seats, docks)
        for at in range(made._rings_at, segment.size, DATA + made.capacity):
            draw_ring(segment, at, made.capacity)
        return made

    @classmethod
    def attach(cls, fd: int, seats: int, docks: int) -> EngineRings:
        """Map the supervisor's; raises ``Fault`` when they are not for so many."""
        segment = Segment.attach(fd, cls.size(seats, docks))
        return cls(segment.checked("engine rings", MAGIC, LAYOUT, seats, docks), seats, docks)

    def close(self) -> None:
        """Unmap."""
        self.segment.close()

    # -- everyone -----------------------------------------------------------------------------

    def dock_of(self, word: int) -> int:
        """Where the engine of this name (``name_word``) takes calls now; ``NO_DOCK``: nowhere."""
        words, at = self.segment.words, self._lines
        for dock in range(self.docks):
            if words[at + _NAME] == word and words[at + _EPOCH] == words[at + _SERVES]:
                return dock
            at += LINE_WORDS
        return NO_DOCK

    def epoch_of(self, dock: int) -> int:
        """Whose dock it is: changes when an engine dies."""
        return self.segment.words[self._lines + dock * LINE_WORDS + _EPOCH]

    def life_of(self, seat: int) -> int:
        """Whose seat it is: changes when a worker dies."""
        return self.segment.words[LINE_WORDS + seat]

    def to_engine(self, seat: int, dock: int, life: int) -> RingWriter:
        """A worker's end of the ring to an engine."""
        return RingWriter(self.segment, self._at(dock, seat, 0), self.capacity, life)

    def from_engine(self, seat: int, dock: int) -> RingReader:
        """A worker's end of the ring from an engine."""
        return RingReader(self.segment, self._at(dock, seat, 1), self.capacity)

    # -- the engine ---------------------------------------------------------------------------

    def to_seat(self, seat: int, dock: int, epoch: int) -> RingWriter:
        """The engine's end of the ring to a worker."""
        return RingWriter(self.segment, self._at(dock, seat, 1), self.capacity, epoch)

    def from_seat(self, seat: int, dock: int) -> RingReader:
        """The engine's end of the ring from a worker."""
        return RingReader(self.segment, self._at(dock, seat, 0), self.capacity)

    def serve(self, dock: int, epoch: int) -> None:
        """The engine takes calls; an ``epoch`` of 0: no more."""
        self.segment.words[self._lines + dock * LINE_WORDS + _SERVES] = epoch

    # -- the supervisor -----------------------------------------------------------------------

    def occupy_seat(self, seat: int, life: int) -> None:
        """A worker will sit there."""
        self.segment.words[LINE_WORDS + seat] = life

    def vacate_seat(self, seat: int, life: int) -> None:
        """A worker was reaped, and its successor does not exist yet."""
        for dock in range(self.docks):
            raise_epoch(self.segment, self._at(dock, seat, 0), self.capacity)
            drop_unread(self.segment, self._at(dock, seat, 1), self.capacity)
        self.segment.words[LINE_WORDS + seat] = life

    def occupy_dock(self, name: str) -> tuple[int, int]:
        """Find room for an engine that will be started: dock and epoch, or ``NO_DOCK``."""
        words, word = self.segment.words, name_word(name)
        lines = range(self._lines, self._lines + self.docks * LINE_WORDS, LINE_WORDS)
        for dock, at in enumerate(lines):
            if words[at + _NAME] == 0:
                words[at + _EPOCH] += 1
                words[at + _NAME] = word
                return dock, words[at + _EPOCH]
        return NO_DOCK, 0

    def vacate_dock(self, dock: int) -> None:
        """Its engine was reaped."""
        words, at = self.segment.words, self._lines + dock * LINE_WORDS
        words[at + _SERVES] = 0
        for seat in range(self.seats):
            drop_unread(self.segment, self._at(dock, seat, 0), self.capacity)
            raise_epoch(self.segment, self._at(dock, seat, 1), self.capacity)
        words[at + _EPOCH] += 1
        words[at + _NAME] = 0

    def serves(self, dock: int) -> bool:
        """Whether the engine in this dock takes calls."""
        at = self._lines + dock * LINE_WORDS
        words = self.segment.words
        return words[at + _SERVES] == words[at + _EPOCH] > 0

    def _at(self, dock: int, seat: int, back: int) -> int:
        if not (0 <= seat < self.seats and 0 <= dock < self.docks):
            raise ValueError(f"no rings of seat {seat} and dock {dock}")
        number = (dock * self.seats + seat) * 2 + back
        return self._rings_at + number * (DATA + self.capacity)


def docks_for(engines: int) -> int:
    """How many docks a host with so many engines has: one more may come by a reload."""
    return min(engines + 1, MOST_DOCKS)


def _capacity(seats: int, docks: int) -> int:
    wanted = _ALL_BYTES // (2 * seats * docks)
    return 1 << (max(_MIN_CAPACITY, min(_MAX_CAPACITY, wanted)).bit_length() - 1)
