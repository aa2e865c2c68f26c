"""Asks dead letters again by itself: chooses which are due and gives each to a worker.

Off unless ``[store.replay]`` is switched on.  The worker asks as ``POST /api/v1/dlq/{id}/replay``
does, under the host's lease, and tells how it went; what is known of attempts is in the store and
outlives this process.

Invariants: at most ``concurrency`` letters are asked at once on the host; of one session the oldest
first and one at a time; an attempt is written down before it is made.
At least once: a letter whose worker died while asking is asked again, and is marked as repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tpo_mp.config.sections import ReplaySection
from tpo_mp.shm.frames import Kind, ReplayFrame, frame
from tpo_mp.shm.plane import NO_SLOT, HostState, Plane, SeatState
from tpo_mp.store import replay_table
from tpo_mp.store.shelf import Shelf
from tpo_mp.store.tables import Tables

from .keeper import Keeper
from .reruns import Sender

AGED_AT_ONCE: Final = 500
TIDY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Chosen:
    aged: int
    lost: int
    letters: tuple[tuple[str, int], ...]
    """Call id, and the seat that asks it."""


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
        self._tidy_at = 0.0
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

    def _chosen(self, chosen: _Chosen | None) -> None:
        self._busy = False
        if chosen is None:
            return
        self.aged_out += chosen.aged
        self.repeated += chosen.lost
        for call_id, seat in chosen.letters:
            self.sent += 1
            self._mail.send(
                seat, [frame(Kind.REPLAY, 0, ReplayFrame(call_id))], self._unsent(call_id)
            )
        if self._again:
            self.tick()

    def _unsent(self, call_id: str) -> Callable[[bool], None]:
        def told(done: bool) -> None:
            if not done:
                now = self._clock()
                self._keeper.submit(
                    lambda shelf: shelf.with_tables(
                        lambda tables: replay_table.failed(tables, call_id, now)
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
        before = now - options.max_age_s
        old = shelf.with_tables(lambda t: replay_table.too_old(t, before, AGED_AT_ONCE)) or []
        aged = sum(shelf.letters.set_status(call_id, "aged_out", now) for call_id in old)

        def take(tables: Tables) -> tuple[tuple[str, int], ...]:
            if now >= self._tidy_at:
                self._tidy_at = now + TIDY_S
                replay_table.tidy(tables)
            room = options.concurrency - replay_table.asking(tables)
            if room <= 0 or not ready:
                return ()
            given = []
            for call_id in replay_table.due(tables, now, options.max_attempts, room):
                self._turn += 1
                seat, epoch = ready[self._turn % len(ready)]
                replay_table.begin(tables, call_id, now, self._run, seat, epoch)
                given.append((call_id, seat))
            return tuple(given)

        return _Chosen(aged, lost, shelf.with_tables(take) or ())
