"""Asks dead letters again by itself, and keeps account of all that are asked, by whomever.

``[store.replay]`` switches the asking on: the letters that are due are chosen and given to workers.
A worker asks as ``POST /api/v1/dlq/{id}/replay`` does, under the host's lease; it tells that it
begins and how it went.  What is known of attempts is in the store and outlives this process, which
gives out once more, when it begins, what it may have died giving out.

Invariants: at most ``concurrency`` letters are asked at once on the host; of one session the oldest
first and one at a time; an attempt is written down before it is made.
At least once: a letter whose worker died while asking is asked again, and is marked as repeated.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tpo_mp.config.sections import ReplaySection
from tpo_mp.shm.frames import Kind, ReplayFrame, frame
from tpo_mp.shm.plane import NO_SLOT, HostState, Plane, SeatState
from tpo_mp.store import replay_table
from tpo_mp.store.questions import ReplayWord, word_of
from tpo_mp.store.shelf import Shelf
from tpo_mp.store.tables import Tables

from .keeper import Keeper
from .reruns import Sender

AGED_AT_ONCE: Final = 500
TIDY_S: Final = 60.0
AGE_S: Final = 1.0
_DONE: Final = frozenset({"replayed", "dropped"})


@dataclass(frozen=True, slots=True)
class _Given:
    call_id: str
    attempt: int
    seat: int


@dataclass(frozen=True, slots=True)
class _Chosen:
    aged: int
    lost: int
    letters: tuple[_Given, ...]


class Replays:
    """Lives on the loop; chooses on the keeper's thread."""

    def __init__(
        self,
        plane: Plane,
        keeper: Keeper,
        mail: Sender,
        run: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``run`` names this start of the host: seats and epochs of another mean nothing."""
        self._plane = plane
        self._keeper = keeper
        self._mail = mail
        self._run = f"{run:016x}"
        self._clock = clock
        self._busy = False
        self._again = False
        self._turn = 0
        self._tidy_at = self._age_at = 0.0
        self._first = True
        self.options = ReplaySection()
        self.sent = 0
        self.aged_out = 0
        self.repeated = 0

    def tick(self) -> None:
        """Give out what is due, if there is room."""
        if not self.options.enabled or self._keeper.full:
            return
        if self._busy:
            self._again = True
            return
        if self._plane.host_state > HostState.RUNNING:
            return
        self._busy, self._again = True, False
        lines = [(n, self._plane.seat(n)) for n in range(self._plane.seats - 1)]
        living = frozenset((n, line.epoch) for n, line in lines if line.state != SeatState.EMPTY)
        ready = [
            (n, line.epoch)
            for n, line in lines
            if line.state == SeatState.READY and line.slot != NO_SLOT
        ]
        self._keeper.submit(
            lambda shelf: self._choose(shelf, ready, living), self._chosen, writes=True
        )

    def told(
        self,
        seat: int,
        epoch: int,
        call_id: str,
        value: bytes,
        answer: Callable[[bytes | None], None],
    ) -> None:
        """Take a worker's word; ``answer`` is told what to say, or ``None`` if it was not taken."""
        word = word_of(value)

        def done(said: bytes | None) -> None:
            answer(said)
            if word.how != "begun":
                self.tick()  # there is room for the next

        self._keeper.submit(
            lambda shelf: self._note(shelf, seat, epoch, call_id, word), done, writes=True
        )

    def _chosen(self, chosen: _Chosen | None) -> None:
        self._busy = False
        if chosen is None:
            return
        self._first = False
        self.aged_out += chosen.aged
        self.repeated += chosen.lost
        for given in chosen.letters:
            self.sent += 1
            sent = ReplayFrame(given.call_id, given.attempt)
            self._mail.send(given.seat, [frame(Kind.REPLAY, 0, sent)], self._unsent(given))
        if self._again:
            self.tick()

    def _unsent(self, given: _Given) -> Callable[[bool], None]:
        def told(done: bool) -> None:
            if not done:
                now, call_id, attempt = self._clock(), given.call_id, given.attempt
                self._keeper.submit(
                    lambda shelf: shelf.with_tables(
                        lambda tables: replay_table.failed(tables, call_id, attempt, now)
                    ),
                    writes=True,
                )

        return told

    # -- on the keeper's thread -------------------------------------------------------------------

    def _choose(
        self, shelf: Shelf, ready: list[tuple[int, int]], living: frozenset[tuple[int, int]]
    ) -> _Chosen:
        options, now = self.options, self._clock()
        lost = shelf.with_tables(lambda t: replay_table.lost(t, now, self._run, living)) or 0
        aged = self._give_up(shelf, now) if now >= self._age_at else 0

        def take(tables: Tables) -> tuple[_Given, ...]:
            given = []
            replay_table.keys_are(tables, shelf.seals.marks)
            if self._first:  # who died before us may not have sent them; workers know what they ask
                asked = replay_table.asked_by(tables, self._run)
                given = [_Given(n, attempt, seat) for n, attempt, seat, _ in asked]
            if now >= self._tidy_at:
                self._tidy_at = now + TIDY_S
                replay_table.tidy(tables)
            room = options.concurrency - replay_table.asking(tables)
            if room <= 0 or not ready:
                return tuple(given)
            for call_id in replay_table.due(tables, now, options.max_attempts, room):
                self._turn += 1
                seat, epoch = ready[self._turn % len(ready)]
                attempt = replay_table.begin(tables, call_id, now, self._run, seat, epoch)
                given.append(_Given(call_id, attempt, seat))
            return tuple(given)

        return _Chosen(aged, lost, shelf.with_tables(take) or ())

    def _give_up(self, shelf: Shelf, now: float) -> int:
        """Close the letters that are too old, some at a time."""
        before = now - self.options.max_age_s
        old = shelf.with_tables(lambda t: replay_table.too_old(t, before, AGED_AT_ONCE)) or []
        if len(old) < AGED_AT_ONCE:
            self._age_at = now + AGE_S
        return sum(shelf.letters.set_status(call_id, "aged_out", now) for call_id in old)

    def _note(
        self, shelf: Shelf, seat: int, epoch: int, call_id: str, word: ReplayWord
    ) -> bytes | None:
        if word.how == "answered":
            return self._answered(shelf, call_id, word)
        now = self._clock()

        def note(tables: Tables) -> bytes:
            if word.how == "begun":
                return self._begun(tables, seat, epoch, call_id, word.attempt)
            if word.how == "withdrawn":
                replay_table.withdrawn(tables, call_id, self._run, seat, epoch)
            elif word.how == "locked":
                replay_table.locked(tables, call_id, word.attempt, now)
            else:
                for_good = word.how == "refused"
                replay_table.failed(
                    tables, call_id, word.attempt, now, for_good=for_good, unclear=word.unclear
                )
            return b""

        return shelf.with_tables(note)

    def _begun(self, tables: Tables, seat: int, epoch: int, call_id: str, attempt: int) -> bytes:
        if not attempt:
            found, now = tables.indexed(call_id), self._clock()
            if found is not None and found[0].status in _DONE:
                return b""  # since the worker looked at it
            attempt = replay_table.begin(tables, call_id, now, self._run, seat, epoch)
        elif not replay_table.under_way(tables, call_id, attempt, self._run, seat, epoch):
            return b""
        return b"%d" % attempt

    def _answered(self, shelf: Shelf, call_id: str, word: ReplayWord) -> bytes | None:
        """Close the letter; of one that is gone meanwhile there is nothing to note."""
        try:
            there = shelf.with_tables(lambda tables: tables.indexed(call_id) is not None)
            if there is None or shelf.letters.is_waiting(call_id):
                return None
            if there and not shelf.letters.set_status(call_id, "replayed", self._clock()):
                return None
        except sqlite3.Error:
            return None

        def note(tables: Tables) -> bytes:
            replay_table.answered(tables, call_id, word.attempt, unclear=word.unclear)
            return b""

        return shelf.with_tables(note)
