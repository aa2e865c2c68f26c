"""Turns the calls of dead processes into dead letters, or into reruns.

The supervisor marks a dead worker's open slots ORPHANED.  A sweep, on the store's thread, looks at
each orphan: a call that has its call record or its letter already, and a prompt of a batch, which
its job puts back itself, only gives its slot back; one that was answered, its worker dying before
it told how, gets its record; an asynchronous one that was never tried goes to another worker
(``reruns``); the rest become letters.
A slot is given back one sweep later, when its letter is known to be written.

A live orphan is judged in the sweep after the one that found it.  What its worker sent before it
died may still lie in a ring when it is found; between the two sweeps all rings are read to their
end, so a call whose record arrived is never taken for lost.

The registry of a run that died as a whole (``registry.previous*``) is swept the same way, without
reruns, and removed when nothing is left in it, together with its copy on disk.  Where power was
lost the copy is all there is, and is swept instead.

Invariants: one letter per call, and one call record (``crashed``) with it, visible within 2 s of
the death; a letter that only memory holds keeps its slot.
Weakness: letters of one death are in the order in which their calls began among the ``SWEEP`` that
one sweep looks at, not beyond.

Sweeps are made after the plane showed a death, while orphans are left, and every ``IDLE_S``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tpo_mp.errors import Fault
from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.pipeline.poison import digest_of_body
from tpo_mp.shm.callid import to_text
from tpo_mp.shm.plane import HostState, Plane
from tpo_mp.shm.registry import Orphan, Registry, SlotFlag, SlotState
from tpo_mp.store.sealing import UNSEALED, Locked, Seals
from tpo_mp.store.shelf import Shelf

from .copied import CopiedCalls, copies_in
from .keeper import Keeper
from .lost import letter_of, note_failure, record_ids, records_of
from .reruns import Reruns

SWEEP = 256
ALERT_S = 3.0
IDLE_S = 5.0
RERUN_WAIT_S = 1.0
RECENT_BATCHES = 8
SETTLE_STEP_S = 0.01
_OVER = (SlotState.OWING, SlotState.SETTLED)
MOST_SUSPECTS = 64
"""Of one sweep; each costs control's loop some 20 us."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A body that a worker died with; instants as ``pipeline.poison`` wants them."""

    digest: int
    began_at: float
    died_by: float


@dataclass(slots=True)
class SweepReport:
    """What one sweep found; ``listed`` are the calls the next one may judge, ``fresh`` are new."""

    found: int = 0
    fresh: int = 0
    listed: frozenset[str] = frozenset()
    letters: int = 0
    done_slots: list[tuple[int, int]] = field(default_factory=list)
    to_rerun: list[Orphan] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    records: bytes = b""


@dataclass(slots=True)
class _Source:
    """One registry, or the copy of one, that is swept."""

    calls: Registry | CopiedCalls
    paths: tuple[Path, ...] = ()
    """What an earlier run left and goes when it is swept; nothing for the live one."""
    busy: bool = False
    left: bool = True
    swept_at: float = -1e9
    first_seen: dict[str, float] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()
    recorded: frozenset[str] = frozenset()
    """Calls that were given their record here, while their slots are not given back."""


class Harvest:
    """Decides when to sweep what; lives on the loop, sweeps on the keeper's thread."""

    def __init__(
        self,
        plane: Plane,
        registry: Registry,
        keeper: Keeper,
        reruns: Reruns,
        log: FilteringBoundLogger,
        read_rings: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        suspect: Callable[[list[Suspect]], None] = lambda _suspects: None,
        on_records: Callable[[bytes], None] = lambda _batch: None,
    ) -> None:
        """``read_rings`` handles all that has arrived; false when it may not, or could not.

        ``suspect`` is told the bodies that workers died with, the earliest death first, and
        ``on_records`` the call records that are made here.
        """
        self._on_records = on_records
        self._suspect = suspect
        self._lives: dict[int, tuple[int, int]] = {}
        self._died_by: dict[tuple[int, int], float] = {}
        self._read_rings = read_rings
        self._plane = plane
        self._keeper = keeper
        self._reruns = reruns
        self._log = log
        self._clock = clock
        self._recent: dict[int, deque[bytes]] = {}
        self._seen: tuple[int, ...] = ()
        self._alert_until = 0.0
        self._own = registry.run
        self._sources = [_Source(registry)]
        self._logged: frozenset[str] | None = None
        self._got_on = 0
        self.letters = 0

    def note_records(self, seat: int, batch: bytes) -> None:
        """Remember a seat's last batches: their calls need no letter if the seat dies now."""
        recent = self._recent.setdefault(seat, deque(maxlen=RECENT_BATCHES))
        recent.append(batch)
        if len(self._reruns):
            for call_id in record_ids([batch]):
                self._reruns.finished(call_id)

    def add_previous(self, state_dir: Path, seals: Seals = UNSEALED) -> int:
        """Take on the registries, or their copies, that earlier runs left; answers how many.

        A copy that is locked stays where it is, for a run that has its key.
        """
        copies = copies_in(state_dir, self._own)
        for link in sorted(state_dir.glob("registry.previous*")):
            try:
                registry = Registry.attach_path(link.resolve())
            except (Fault, OSError) as error:
                self._log.warning("previous_registry_unreadable", path=str(link), error=str(error))
                _remove(link)
                continue
            registry.orphan_all()
            copy = copies.pop(registry.run, None)
            self._sources.append(_Source(registry, (link,) if copy is None else (link, copy)))
        for copy in copies.values():
            try:
                self._sources.append(_Source(CopiedCalls(copy, seals), (copy,)))
            except Locked:
                self._log.warning("previous_copy_locked", path=str(copy))
            except OSError as error:
                self._log.warning("previous_copy_unreadable", path=str(copy), error=str(error))
        return len(self._sources) - 1

    def look(self) -> None:
        """Twenty times a second: note when which worker died."""
        now = self._clock()
        for number in range(self._plane.seats - 1):
            seat = self._plane.seat(number)
            life = (seat.epoch, seat.pid)
            before = self._lives.get(number)
            if life != before:
                self._lives[number] = life
                if before is not None and before[1]:
                    for other in [other for other in self._died_by if other[0] == number]:
                        del self._died_by[other]
                    self._died_by[number, before[0]] = now

    def tick(self) -> None:
        """Four times a second: start the sweeps that are due."""
        now = self._clock()
        seen = self._deaths()
        if seen != self._seen:
            self._seen = seen
            self._alert_until = now + ALERT_S
        for orphan in self._reruns.lost():
            self._give_up(orphan)
        if self._keeper.full:
            return
        for source in self._sources:
            alert = source.left or now < self._alert_until or now - source.swept_at >= IDLE_S
            if alert and not source.busy:
                self._start(source)

    async def settle(self, patience_s: float) -> bool:
        """Sweep until nothing is left, or nothing got on for so long; answers whether nothing is.

        The patience is counted in turns of the loop: a machine that stands still takes none of it.
        """
        began_at, self._alert_until = self._clock(), float("inf")
        turns = most = round(patience_s / SETTLE_STEP_S)
        ended = self._got_on
        while turns:
            self.tick()
            await asyncio.sleep(SETTLE_STEP_S)
            late = [source for source in self._sources if source.swept_at < began_at]
            if not late and not any(source.busy or source.left for source in self._sources):
                return True
            turns -= 1
            if ended != self._got_on:
                ended, turns = self._got_on, most
        return False

    def _deaths(self) -> tuple[int, ...]:
        plane = self._plane
        seats = range(plane.seats - 1)
        return (plane.restarts_total, *(plane.seat(n).epoch for n in seats),
                *(plane.seat(n).pid for n in seats))  # fmt: skip

    def _give_up(self, orphan: Orphan) -> None:
        self.letters += 1
        died_at = time.time()
        letter = letter_of(orphan, died_at)

        def work(shelf: Shelf) -> bytes:
            if not shelf.add_letters([letter]):
                return b""
            note_failure(shelf, orphan, letter)
            records = records_of([(orphan, died_at)])
            shelf.record(records)
            return records

        self._keeper.submit(work, lambda records: self._on_records(records or b""))

    def _start(self, source: _Source) -> None:
        live = not source.paths
        if live and not self._read_rings():
            return
        source.busy, source.swept_at = True, self._clock()
        self.look()
        running = self._plane.host_state <= HostState.RUNNING
        rerun = live and running
        skip = self._reruns.underway() if live else frozenset[str]()
        possible = rerun and self._reruns.possible()
        recent = [batch for batches in self._recent.values() for batch in batches]

        def work(shelf: Shelf) -> SweepReport:
            return self._sweep(source, shelf, recent, skip, rerun=rerun, possible=possible)

        def done(sweep: SweepReport | None) -> None:
            source.busy = False
            if sweep is not None:
                self._swept(source, sweep)
                source.left |= bool(skip)
                if sweep.fresh and live and not self._keeper.full:
                    self._start(source)  # they wait for this alone

        self._keeper.submit(work, done, writes=True)

    def _swept(self, source: _Source, sweep: SweepReport) -> None:
        for seat, slot in sweep.done_slots:
            source.calls.harvested(seat, slot)
        for orphan in sweep.to_rerun:
            self._reruns.start(orphan)
        if sweep.suspects:
            self._suspect(sorted(sweep.suspects, key=lambda one: one.died_by))
        source.left = sweep.found > 0
        source.listed = sweep.listed
        self.letters += sweep.letters
        self._got_on += sweep.letters + len(sweep.done_slots)
        self._on_records(sweep.records)
        if sweep.letters:
            self._log.warning("calls_lost", letters=sweep.letters, previous=bool(source.paths))
        if not source.left and source.paths:
            source.calls.close()
            for path in source.paths:
                _remove(path)
            self._sources.remove(source)

    # -- on the keeper's thread -------------------------------------------------------------------

    def _sweep(
        self,
        source: _Source,
        shelf: Shelf,
        recent: list[bytes],
        skip: frozenset[str],
        *,
        rerun: bool,
        possible: bool,
    ) -> SweepReport:
        sweep = SweepReport()
        named = ((to_text(o.call_id), o) for o in source.calls.orphans())
        orphans = list(islice(((i, o) for i, o in named if i not in skip), SWEEP))
        sweep.found = len(orphans)
        sweep.listed = frozenset(i for i, _ in orphans)
        if not source.paths:
            sweep.fresh = len(sweep.listed - source.listed)
            orphans = [(i, o) for i, o in orphans if i in source.listed]
        if not sweep.found:
            source.first_seen.clear()
            if source.paths:
                shelf.letters.sync()  # what they were made from is removed now
            return sweep
        finished = self._before_us(shelf).union(record_ids(recent))
        source.recorded &= sweep.listed
        if isinstance(source.calls, CopiedCalls):
            finished |= source.calls.finished(shelf)
        letters = []
        lost: list[tuple[Orphan, float]] = []
        orphans.sort(key=lambda one: one[1].started_wall_ms)  # a session's letters keep their order
        for call_id, orphan in orphans:
            lettered = shelf.letters.stored(call_id)
            settled = orphan.state_before is SlotState.SETTLED
            told = call_id in finished or lettered or (settled and call_id in source.recorded)
            if rerun and not told and len(sweep.suspects) < MOST_SUSPECTS:
                sweep.suspects += self._suspects(orphan)
            recorded = call_id in finished or call_id in source.recorded
            if orphan.flags & SlotFlag.JOB or told:
                sweep.done_slots.append((orphan.seat, orphan.slot))
                if orphan.flags & SlotFlag.JOB or recorded:
                    continue
            elif rerun and _rerunnable(orphan) and (possible or self._may_wait(source, call_id)):
                if possible:
                    sweep.to_rerun.append(orphan)
                continue
            died_at = self._died_at(source, orphan)
            if not lettered:
                letter = letter_of(orphan, died_at)
                note_failure(shelf, orphan, letter)
                if not settled:
                    letters.append(letter)
            if not recorded:
                lost.append((orphan, died_at))
                source.recorded |= {call_id}
        sweep.letters = shelf.add_letters(letters)
        if lost:
            sweep.records = records_of(lost)
            shelf.record(sweep.records)
        return sweep

    def _suspects(self, orphan: Orphan) -> list[Suspect]:
        """The body that its worker died with, if it was working on it."""
        if orphan.body is None or orphan.flags & SlotFlag.TRUNCATED:
            return []
        if orphan.state_before in _OVER:
            return []
        now = self._clock()
        began_at = now - (time.time() - orphan.started_wall_ms / 1e3)
        died_by = self._died_by.get((orphan.seat, orphan.epoch), now)
        return [Suspect(digest_of_body(orphan.body), began_at, died_by)]

    def _died_at(self, source: _Source, orphan: Orphan) -> float:
        """When its worker died, on the wall clock, as well as is known.

        Of a run that died as a whole nothing is known but when the call began, or was copied.
        """
        began_at = orphan.started_wall_ms / 1e3
        if source.paths:
            return began_at
        now = self._clock()
        died_by = self._died_by.get((orphan.seat, orphan.epoch), now)
        return max(began_at, time.time() - (now - died_by))

    def _before_us(self, shelf: Shelf) -> frozenset[str]:
        """Calls whose record an earlier control process had written last."""
        if self._logged is None:
            self._logged = frozenset(record_ids(shelf.recent_records()))
        return self._logged

    def _may_wait(self, source: _Source, call_id: str) -> bool:
        """A rerun waits a moment for a ready worker before it becomes a letter."""
        now = self._clock()
        return now - source.first_seen.setdefault(call_id, now) < RERUN_WAIT_S


def _rerunnable(orphan: Orphan) -> bool:
    flags = orphan.flags
    whole = orphan.body is not None and not flags & SlotFlag.TRUNCATED
    untried = orphan.attempts < 1 and orphan.state_before not in _OVER
    return bool(flags & SlotFlag.ASYNC) and untried and whole


def _remove(link: Path) -> None:
    target = link.resolve()
    for path in {target, link}:
        with contextlib.suppress(OSError):
            path.unlink()
