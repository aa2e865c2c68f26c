"""The host's control words: who sits where, what they must do, and that they are alive.

::

    byte   0  header, written once before any child exists              64 bytes
           0 magic "TPOPLANE"   8 layout   16 workers   24 seats
          32 started_at_wall_ms            40 install_key (16 bytes)
    byte  64  host line, written by the supervisor                       64 bytes
          64 host_state        72 config_epoch   80 restarts_total
          88 acceptor_version  96 map_version (odd while the map is being written)
    byte 128  slot map, written by the supervisor: 1024 x u16 seat       2048 bytes
    byte 2176 slot lines, written by the supervisor                      64 bytes per slot
          +0 seat that serves the slot (0xFFFF none)
          +8 seat that accepts on the slot's listener now (0xFFFF none)
    then      seat lines                                                 128 bytes per seat
          supervisor  +0 epoch  +8 command  +16 pid  +24 slot (0xFFFF parked)
          occupant   +64 beat  +72 state  +80 config_ack  +88 config_nack
                     +96 open_calls  +104 loop_lag_us  +112 now_us
                     +120 waiting

All words are native u64 at offsets divisible by 8, so they do not tear, and each writer's words
lie on lines of their own.  Every word has exactly one writer at a time: the supervisor, or the
occupant of the seat between its birth and its reaping.

Host states: 0 starting -> 1 running -> 2 draining -> 3 stopping.
Commands: 0 none, 1 run, 2 drain, 3 stop, 4 park; the occupant polls the word and acts on change.
Seat states: 0 empty -> 1 booting -> 2 parked -> 3 ready -> 4 draining -> 5 stopped; the supervisor
writes 0 back after reaping, the occupant writes the rest.
Epochs: 0 never used, then 1 and up; ``occupy`` raises it *before* the process exists and clears the
occupant's line, so no reader ever takes a dead occupant's beat for the new one's.

Slot map (a seqlock): version odd -> 1024 cells -> version even.  A reader copies between two equal
even versions.  ``acceptor_version`` is raised after the slot lines changed: who sees the new
version sees the new lines, and a change during its read raises the version again.

What a reader sees if the writer dies between two lines:
  occupant, anywhere      its words stay as they were and the beat stops; each is valid by itself,
                          and no reader combines two of them; once it is reaped the supervisor
                          zeroes what others add up: open_calls, loop_lag_us, waiting
  supervisor, in the map  the version stays odd: ``read_map`` answers the last good copy after
                          200 us, for ever; the children exit with the supervisor anyway
  supervisor, before ``acceptor_version``   lines changed unannounced: nobody acts on them
  supervisor, inside ``occupy``             the seat is empty with a higher epoch: as good as free

Memory order: single words need none.  The map and the acceptor version are fenced (see ``fence``):
cells before the version that announces them, version before the cells it covers when read.
Known weakness: ``now_us`` is for people; clocks of two processes are never compared for liveness.
"""

from __future__ import annotations

import os
import time
from array import array
from enum import IntEnum
from typing import overload

from tpo_mp.errors import Fault

from .fence import FENCED, fence
from .segment import Segment

LAYOUT = 8
"""Version of every layout in ``shm``; equal in all processes of a host or they do not attach."""

MAGIC = int.from_bytes(b"TPOPLANE", "little")
BUCKETS = 1024
NO_SEAT = 0xFFFF
NO_SLOT = 0xFFFF

_LAYOUT, _WORKERS, _SEATS, _STARTED, _KEY = 1, 2, 3, 4, 5
HOST_STATE, CONFIG_EPOCH, RESTARTS, ACCEPTOR_VERSION, MAP_VERSION = 8, 9, 10, 11, 12
"""Places of the host words in ``Plane.words``, for loops that poll them."""

_MAP = 128
_SLOTS = (_MAP + 2 * BUCKETS) // 8
_SLOT_WORDS = 8
_SEAT_WORDS = 16
_READ_NS = 200_000


class HostState(IntEnum):
    """What the whole host is doing."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    STOPPING = 3


class Command(IntEnum):
    """What the supervisor wants of a seat."""

    NONE = 0
    RUN = 1
    DRAIN = 2
    STOP = 3
    PARK = 4


class SeatState(IntEnum):
    """What a seat's occupant says of itself."""

    EMPTY = 0
    BOOTING = 1
    PARKED = 2
    READY = 3
    DRAINING = 4
    STOPPED = 5


class _Word:
    """One word at a fixed place of a line, as an attribute."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place

    @overload
    def __get__(self, line: None, owner: type[SeatLines]) -> _Word: ...
    @overload
    def __get__(self, line: SeatLines, owner: type[SeatLines]) -> int: ...
    def __get__(self, line: SeatLines | None, owner: type[SeatLines]) -> _Word | int:
        return self if line is None else line.words[line.base + self.place]

    def __set__(self, line: SeatLines, value: int) -> None:
        line.words[line.base + self.place] = value


class SeatLines:
    """The two lines of one seat; ``index`` gives a word's place in ``Plane.words`` for hot use."""

    __slots__ = ("base", "words")

    epoch = _Word(0)
    command = _Word(1)
    pid = _Word(2)
    slot = _Word(3)
    beat = _Word(8)
    state = _Word(9)
    config_ack = _Word(10)
    config_nack = _Word(11)
    open_calls = _Word(12)
    loop_lag_us = _Word(13)
    now_us = _Word(14)
    waiting = _Word(15)

    def __init__(self, words: memoryview, base: int) -> None:
        self.words = words
        self.base = base

    def index(self, name: str) -> int:
        """Place of the named word in ``Plane.words``."""
        word = getattr(SeatLines, name)
        assert isinstance(word, _Word)
        return self.base + word.place

    def occupy(self, slot: int, command: Command) -> int:
        """Prepare the seat for a new occupant (supervisor only); answers its epoch."""
        epoch = (self.epoch + 1) & 0xFFFFFFFF or 1
        self.state = SeatState.EMPTY
        self.epoch = epoch
        self.pid = 0
        self.slot = slot if slot >= 0 else NO_SLOT
        self.command = command
        for place in range(8, _SEAT_WORDS):
            self.words[self.base + place] = 0
        return epoch

    def vacate(self) -> None:
        """Mark the seat empty after its occupant was reaped (supervisor only).

        It may stay empty for long: what the dead had open and waiting is nobody's any more.
        """
        self.open_calls = self.waiting = self.loop_lag_us = 0
        self.pid = 0
        self.slot = NO_SLOT
        self.command = Command.NONE
        self.state = SeatState.EMPTY


class Plane:
    """The control words of one host.

    ``seat(n)`` are a seat's two lines; the other words are properties and methods here.
    """

    def __init__(self, segment: Segment) -> None:
        words = segment.words
        if (words[0], words[_LAYOUT]) != (MAGIC, LAYOUT):
            raise Fault(
                f"control words of another layout ({words[_LAYOUT]}, ours is {LAYOUT})",
                reason="shm_layout",
            )
        self.segment = segment
        self.fd = segment.fd
        self.words = words
        self.workers = words[_WORKERS]
        self.seats = words[_SEATS]
        self.started_at_wall_ms = words[_STARTED]
        self.install_key = bytes(segment.buf[_KEY * 8 : _KEY * 8 + 16])
        self._map_bytes = segment.buf[_MAP : _MAP + 2 * BUCKETS]
        self._last_map = (0, array("H", [NO_SEAT]) * BUCKETS)
        self._first_seat = _SLOTS + _SLOT_WORDS * self.workers
        self._lines = [
            SeatLines(words, self._first_seat + _SEAT_WORDS * seat) for seat in range(self.seats)
        ]

    @staticmethod
    def size(seats: int) -> int:
        """Bytes needed for ``seats`` seats (and at most as many slots)."""
        return (_SLOTS + (_SLOT_WORDS + _SEAT_WORDS) * seats) * 8

    @classmethod
    def create(cls, workers: int, seats: int, install_key: bytes) -> Plane:
        """Draw a new plane (supervisor only); ``install_key`` is 16 bytes."""
        if not 0 < workers <= seats < NO_SEAT or len(install_key) != 16:
            raise ValueError(f"bad plane: {workers=} {seats=} key of {len(install_key)} bytes")
        segment = Segment.create("tpo-plane", cls.size(seats))
        words = segment.words
        words[_LAYOUT], words[_WORKERS], words[_SEATS] = LAYOUT, workers, seats
        words[_STARTED] = time.time_ns() // 1_000_000
        segment.buf[_KEY * 8 : _KEY * 8 + 16] = install_key
        segment.buf[_MAP : _MAP + 2 * BUCKETS] = b"\xff" * (2 * BUCKETS)
        for slot in range(workers):
            words[_SLOTS + _SLOT_WORDS * slot] = NO_SEAT
            words[_SLOTS + _SLOT_WORDS * slot + 1] = NO_SEAT
        for seat in range(seats):
            words[_SLOTS + _SLOT_WORDS * workers + _SEAT_WORDS * seat + 3] = NO_SLOT
        words[0] = MAGIC
        return cls(segment)

    @classmethod
    def attach(cls, fd: int) -> Plane:
        """Map the supervisor's plane; raises ``Fault`` when its layout is not ours."""
        return cls(Segment.attach(fd, os.fstat(fd).st_size))

    def close(self) -> None:
        """Unmap."""
        self._map_bytes.release()
        self.segment.close()

    # Host words.

    @property
    def host_state(self) -> int:
        """A ``HostState``."""
        return self.words[HOST_STATE]

    @host_state.setter
    def host_state(self, value: int) -> None:
        self.words[HOST_STATE] = value

    @property
    def config_epoch(self) -> int:
        """The published config epoch."""
        return self.words[CONFIG_EPOCH]

    @config_epoch.setter
    def config_epoch(self, value: int) -> None:
        self.words[CONFIG_EPOCH] = value

    @property
    def restarts_total(self) -> int:
        """Replacements of dead occupants since the host started."""
        return self.words[RESTARTS]

    @restarts_total.setter
    def restarts_total(self, value: int) -> None:
        self.words[RESTARTS] = value

    # Slots.

    @property
    def acceptor_version(self) -> int:
        """Changes whenever a slot's seat or acceptor did; the one word workers poll."""
        return self.words[ACCEPTOR_VERSION]

    def slot_seat(self, slot: int) -> int:
        """The seat that serves ``slot``, or ``NO_SEAT``."""
        return self.words[_SLOTS + _SLOT_WORDS * slot]

    def slot_acceptor(self, slot: int) -> int:
        """The seat that must accept on the slot's listener now, or ``NO_SEAT``."""
        return self.words[_SLOTS + _SLOT_WORDS * slot + 1]

    def set_slot(self, slot: int, *, seat: int, acceptor: int) -> bool:
        """Say who serves and who accepts (supervisor only); True: it changed, new version."""
        at = _SLOTS + _SLOT_WORDS * slot
        if (self.words[at], self.words[at + 1]) == (seat, acceptor):
            return False
        self.words[at], self.words[at + 1] = seat, acceptor
        fence()
        self.words[ACCEPTOR_VERSION] += 1
        return True

    @property
    def map_version(self) -> int:
        """Even; odd only while the supervisor writes the map."""
        return self.words[MAP_VERSION]

    def publish_map(self, seats: list[int]) -> int:
        """Replace the slot map: one seat per bucket (supervisor only); answers the new version."""
        cells = array("H", seats)
        if len(cells) != BUCKETS:
            raise ValueError(f"slot map has {len(cells)} buckets, not {BUCKETS}")
        version = self.words[MAP_VERSION] | 1
        self.words[MAP_VERSION] = version
        fence()
        self._map_bytes[:] = cells.tobytes()
        fence()
        self.words[MAP_VERSION] = version + 1
        return version + 1

    def read_map(self) -> tuple[int, array[int]]:
        """Version and seat per bucket; the last good copy while a write will not end."""
        deadline = time.perf_counter_ns() + _READ_NS
        while True:
            version = self.words[MAP_VERSION]
            if FENCED:
                fence()
            cells = array("H", self._map_bytes.tobytes())
            if FENCED:
                fence()
            if not version & 1 and version == self.words[MAP_VERSION]:
                self._last_map = (version, cells)
                return version, cells
            if time.perf_counter_ns() > deadline:
                return self._last_map

    # Seats.

    def seat(self, seat: int) -> SeatLines:
        """The lines of one seat."""
        return self._lines[seat]

    def beat_index(self, seat: int) -> int:
        """Place of the seat's beat in ``words``: its occupant does ``words[i] += 1``."""
        return self._lines[seat].base + 8
