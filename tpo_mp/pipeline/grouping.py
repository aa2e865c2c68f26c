"""Counts calls that wait to be sent together, for the whole host, and says when they go.

Calls of one group wait in whatever workers they came to.  One worker, the group's *home* (the seat
that the host's slot map names for it), counts them; the others tell it who came and who left::

    worker                         home
    CAME, size, time, name  ----->  counts it; the first starts the clock
    LEFT, number, name  --------->  counts them out
                      <-----------  GO, name: as many as go together, or the time is over

A message is one byte that says what, a u16 of how many, a u16 of how many go together, an f32 of
the seconds that the first waits, and the group's name, a digest of 16 bytes.  So who counts needs
no configuration, and there is one ``Grouping`` in a process, whichever configurations its stages
are of: those that run, those before them that have calls still, and those that were made to see
whether they can be.

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
from weakref import WeakSet, WeakValueDictionary

from tpo_mp.ports import Peers

MOST: Final = 4096
NAME_BYTES: Final = 16
NOBODY: Final = (0, 0)
_U16: Final = 0xFFFF
_CAME, _LEFT, _GO = 1, 2, 3
_MESSAGE: Final = Struct("<BHHf16s")
_TOPIC: Final = "batch"


class Timer(Protocol):
    """Something to come that can be called off."""

    def cancel(self) -> object: ...


Life: TypeAlias = tuple[int, int]
Told: TypeAlias = tuple[int, Life]
"""The home that knows of a group's calls, and in which of its lives."""
Later = Callable[[float, Callable[[], object]], Timer]


class Goes(Protocol):
    """A stage in which calls of groups wait."""

    def go(self, name: bytes) -> None:
        """Send what waits here of a group."""


class _Tally:
    """One group as its home sees it: how many wait on each seat, and in which of its lives."""

    __slots__ = ("timer", "waiting")

    def __init__(self, timer: Timer) -> None:
        self.waiting: dict[int, tuple[int, Life]] = {}
        self.timer = timer


class Grouping:
    """The groups that wait in the stages of one process, counted by all workers of the host."""

    def __init__(self, peers: Peers, later: Later) -> None:
        """``later(s, do)`` is a clock's."""
        self._peers = peers
        self._later = later
        self._tallies: dict[bytes, _Tally] = {}
        self._stages: WeakSet[Goes] = WeakSet()
        peers.listen(_TOPIC, self._take)

    def join(self, stage: Goes) -> None:
        """A stage wants to be told when its groups go."""
        self._stages.add(stage)

    def came(
        self, name: bytes, waiting: int, told: Told | None, *, size: int, wait_s: float
    ) -> Told:
        """One more waits here, ``waiting`` in all; answers who was told, for the next time.

        A home that did not hear of the others, as it has been one only since, is told of all.
        """
        home = self._peers.home(name.hex())
        knows = (home, self._peers.life_of(home))
        number = 1 if told == knows else waiting
        self._tell(home, _MESSAGE.pack(_CAME, min(number, _U16), size, wait_s, name))
        return knows

    def left(self, name: bytes, number: int) -> None:
        """So many wait here no more."""
        home = self._peers.home(name.hex())
        self._tell(home, _MESSAGE.pack(_LEFT, min(number, _U16), 0, 0.0, name))

    def __len__(self) -> int:
        """Groups that are counted here."""
        return len(self._tallies)

    def _tell(self, seat: int, message: bytes) -> None:
        if seat == self._peers.here:
            self._take(seat, message)
        else:
            self._peers.tell(seat, _TOPIC, message)

    def _take(self, source: int, message: bytes) -> None:
        what, number, size, wait_s, name = _MESSAGE.unpack(message)
        if what == _GO:
            for stage in tuple(self._stages):
                stage.go(name)
        elif what == _LEFT:
            self._count_out(source, number, name)
        else:
            self._count(source, number, size, wait_s, name)

    def _count(self, seat: int, number: int, size: int, wait_s: float, name: bytes) -> None:
        tally = self._tallies.get(name)
        if tally is None:
            if len(self._tallies) >= MOST:
                return
            timer = self._later(wait_s, lambda: self._over(name))
            tally = self._tallies[name] = _Tally(timer)
        life_of = self._peers.life_of
        waiting = {s: there for s, there in tally.waiting.items() if there[1] == life_of(s)}
        before = waiting.get(seat, (0, NOBODY))[0]
        waiting[seat] = (before + number, life_of(seat))
        tally.waiting = waiting
        if sum(there[0] for there in waiting.values()) >= size:
            self._over(name)

    def _count_out(self, seat: int, number: int, name: bytes) -> None:
        tally = self._tallies.get(name)
        if tally is None:
            return
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
            self._tell(seat, _MESSAGE.pack(_GO, 0, 0, 0.0, name))


def grouping_of(peers: Peers, later: Later) -> Grouping:
    """The one of this process."""
    grouping = _groupings.get(id(peers))
    if grouping is None:
        grouping = _groupings[id(peers)] = Grouping(peers, later)
    return grouping


_groupings: Final[WeakValueDictionary[int, Grouping]] = WeakValueDictionary()
"""By what each holds, which is therefore there as long as it is."""
