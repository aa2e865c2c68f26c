"""Counts calls that wait to be sent together, for the whole host, and says when they go.

Calls of one group wait in whatever workers they came to.  One worker, the group's *home* (the seat
that the host's slot map names for it), counts them; the others tell it who came and who left::

    worker                         home
    CAME, name        ----------->  counts it; the first starts the clock
    LEFT, number, name  --------->  counts them out
                      <-----------  GO, name: as many as go together, or the time is over

A message is one byte that says what, a u16 of how many, and the group's name, a digest of 16 bytes.

Invariants: nobody waits for a message: each worker lets its own go when they waited long enough, so
a home that dies, or never hears, costs fullness and no call; who waits on a seat that died is not
counted; at most ``MOST`` groups are counted
here, others go by their time.
Known weakness: while a seat is replaced, two workers may count parts of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol, TypeAlias

from tpo_mp.ports import Peers

MOST: Final = 4096
NAME_BYTES: Final = 16
NOBODY: Final = (0, 0)
_CAME, _LEFT, _GO = 1, 2, 3
_MESSAGE: Final = Struct("<BH16s")


class Timer(Protocol):
    """Something to come that can be called off."""

    def cancel(self) -> object: ...


Life: TypeAlias = tuple[int, int]
Told: TypeAlias = tuple[int, Life]
"""The home that knows of a group's calls, and in which of its lives."""
Later = Callable[[float, Callable[[], object]], Timer]


class _Tally:
    """One group as its home sees it: how many wait on each seat, and in which of its lives."""

    __slots__ = ("timer", "waiting")

    def __init__(self, timer: Timer) -> None:
        self.waiting: dict[int, tuple[int, Life]] = {}
        self.timer = timer


class Grouping:
    """The groups of one stage, counted by all workers of the host."""

    def __init__(
        self,
        peers: Peers,
        topic: str,
        *,
        size: int,
        wait_s: float,
        go: Callable[[bytes], object],
        later: Later,
    ) -> None:
        """``go(name)`` sends what waits here of a group; ``later(s, do)`` is a clock's."""
        self._peers = peers
        self._topic = topic
        self._size = size
        self._wait_s = wait_s
        self._go = go
        self._later = later
        self._tallies: dict[bytes, _Tally] = {}
        peers.listen(topic, self._take)

    def came(self, name: bytes, waiting: int, told: Told | None) -> Told:
        """One more waits here, ``waiting`` in all; answers who was told, for the next time.

        A home that did not hear of the others, as it has been one only since, is told of all.
        """
        home = self._peers.home(name.hex())
        knows = (home, self._peers.life_of(home))
        self._tell(home, _CAME, 1 if told == knows else waiting, name)
        return knows

    def left(self, name: bytes, number: int) -> None:
        """So many wait here no more."""
        self._tell(self._peers.home(name.hex()), _LEFT, number, name)

    def __len__(self) -> int:
        """Groups that are counted here."""
        return len(self._tallies)

    def _tell(self, home: int, what: int, number: int, name: bytes) -> None:
        if home == self._peers.here:
            self._count(home, what, number, name)
        else:
            self._peers.tell(home, self._topic, _MESSAGE.pack(what, number, name))

    def _take(self, source: int, message: bytes) -> None:
        what, number, name = _MESSAGE.unpack(message)
        if what == _GO:
            self._go(name)
        else:
            self._count(source, what, number, name)

    def _count(self, seat: int, what: int, number: int, name: bytes) -> None:
        tally = self._tallies.get(name)
        if what == _LEFT:
            if tally is not None:
                self._count_out(tally, seat, number, name)
            return
        if tally is None:
            if len(self._tallies) >= MOST:
                return
            timer = self._later(self._wait_s, lambda: self._over(name))
            tally = self._tallies[name] = _Tally(timer)
        life_of = self._peers.life_of
        waiting = {s: there for s, there in tally.waiting.items() if there[1] == life_of(s)}
        before = waiting.get(seat, (0, NOBODY))[0]
        waiting[seat] = (before + number, life_of(seat))
        tally.waiting = waiting
        if sum(there[0] for there in waiting.values()) >= self._size:
            self._over(name)

    def _count_out(self, tally: _Tally, seat: int, number: int, name: bytes) -> None:
        there, life = tally.waiting.pop(seat, (0, NOBODY))
        if there > number:
            tally.waiting[seat] = (there - number, life)
        elif not tally.waiting:
            del self._tallies[name]
            tally.timer.cancel()

    def _over(self, name: bytes) -> None:
        """A group is full, or waited long enough: it goes, wherever its calls are."""
        tally = self._tallies.pop(name, None)
        if tally is None:
            return
        tally.timer.cancel()
        for seat in tally.waiting:
            if seat == self._peers.here:
                self._go(name)
            else:
                self._peers.tell(seat, self._topic, _MESSAGE.pack(_GO, 0, name))
