"""Everything durable of one host behind one door: call records, dead letters, keyed tables.

::

    DIRECTORY/calls/*.seg     batches of call records, as the workers packed them
    DIRECTORY/letters/*.seg   dead letters and their status changes
    DIRECTORY/tables.sqlite   keyed values, batch jobs, index of the letters

Calls stage work and ``commit`` writes it: one ``write()`` per log, one transaction.  ``tick``, once
a second, syncs, prunes, expires, and tries again what failed.

Invariants: one thread uses it; nothing raises because a disk is full or broken: the answer says
``False`` or ``None``, the counters and ``broken`` tell why, and memory used meanwhile is capped.
Weakness: a call record that finds neither disk nor memory is dropped and counted.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .counts import CountTable
from .framing import Disk
from .job_table import JobCaps, JobTable
from .letters import DeadLetters, Letter, LetterCaps
from .sealing import Locked, Seals
from .segment_files import LogLimits, SegmentFiles
from .segments import Durability, SegmentError, SegmentLog
from .tables import TableCaps, Tables

T = TypeVar("T")

_REOPEN_S = 5.0
_BACKLOG_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ShelfOptions:
    """Durability level and the caps of every part."""

    durability: Durability = "everysec"
    calls: LogLimits = field(default_factory=LogLimits)
    letters: LogLimits = field(default_factory=LogLimits)
    letter_caps: LetterCaps = field(default_factory=LetterCaps)
    tables: TableCaps = field(default_factory=TableCaps)
    jobs: JobCaps = field(default_factory=JobCaps)

    @property
    def seals(self) -> Seals:
        """The keys for whatever was said."""
        return self.letter_caps.seals


@dataclass(frozen=True, slots=True)
class ShelfState:
    """A snapshot of the fill levels and counters, for metrics."""

    letters_open: int
    letters_waiting: int
    letters_bytes: int
    letters_dropped: int
    letter_write_errors: int
    calls_bytes: int
    calls_waiting_bytes: int
    calls_dropped: int
    call_write_errors: int
    table_errors: int
    cut_bytes: int
    tables: tuple[tuple[str, int, int, int], ...]
    """Per keyed table: name, rows, bytes, evicted."""
    jobs: int
    job_bytes: int
    broken: tuple[str, ...]
    """Parts that cannot write now."""


class Shelf:
    """The durable store; see the module docstring for who may call it when."""

    def __init__(
        self,
        directory: Path,
        options: ShelfOptions,
        *,
        clock: Callable[[], float] = time.time,
        disk: Disk | None = None,
    ) -> None:
        """Open everything that opens."""
        disk = disk or Disk()
        self._directory = directory
        self._options = options
        self._clock = clock
        self._calls = self._log("calls", options.calls, disk)
        self._staged: list[bytes] = []
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._calls_dropped = 0
        self._calls_broken = False
        self._table_errors = 0
        self._tables_broken = False
        self._tables: Tables | None = None
        self.jobs: JobTable | None = None
        """Batch jobs; ``None`` while the database is not open."""
        self.counts: CountTable | None = None
        """Counts that outlive the host; ``None`` likewise."""
        self._retry_at = 0.0
        self.letters = DeadLetters(self._log("letters", options.letters, disk), options.letter_caps)
        self._open_tables()

    def _log(self, name: str, limits: LogLimits, disk: Disk) -> SegmentLog:
        return SegmentLog(
            self._directory / name, limits, self._options.durability,
            clock=self._clock, write=disk.write, fsync=disk.fsync,
        )  # fmt: skip

    def configure(self, options: ShelfOptions) -> None:
        """Take new caps and another durability from now on."""
        self._options = options
        for log, limits in ((self._calls, options.calls), (self.letters.log, options.letters)):
            log.limits = limits
            log.durability = options.durability
        self.letters.caps = options.letter_caps
        if self._tables is not None:
            self._tables.caps = options.tables
            if self.jobs is not None:
                self.jobs.caps, self.jobs.seals = options.jobs, options.seals
            with self._guarded():
                self._tables.set_durability(options.durability)

    @property
    def seals(self) -> Seals:
        """The keys as they are now."""
        return self._options.seals

    # -- call records ---------------------------------------------------------------------------

    def record(self, batch: bytes) -> None:
        """Stage one batch of call records."""
        self._staged.append(batch)

    def recent_records(self, cap_bytes: int = 1 << 20) -> list[bytes]:
        """The newest batches of the log, oldest first."""
        kept: deque[bytes] = deque()
        size = 0
        newest = self._calls.segments()[-2:]
        for _, batch in self._calls.scan(newest[0] if newest else 0):
            kept.append(batch)
            size += len(batch)
            while size > cap_bytes:
                size -= len(kept.popleft())
        return list(kept)

    def records_in_memory(self) -> list[bytes]:
        """The batches that the disk has not taken yet, oldest first."""
        return [*self._backlog, *self._staged]

    @property
    def records_cap(self) -> int:
        """Bytes of them that are kept."""
        return self._options.calls.total_bytes

    @property
    def record_files(self) -> SegmentFiles:
        """The files of the batches that it has."""
        return self._calls

    @property
    def records_end(self) -> tuple[int, int]:
        """Segment and offset where the next batch of call records will lie."""
        return self._calls.position

    def records_after(self, segment: int, offset: int) -> Iterator[bytes]:
        """The batches of call records from a position on."""
        return (batch for _, batch in self._calls.scan(segment, offset))

    # -- keyed values ---------------------------------------------------------------------------

    def put(
        self, table: str, key: str, value: bytes, ttl_s: float, *, label: str = "", state: str = ""
    ) -> bool:
        """Stage a value; false when a cap or a broken database forbids it."""
        done = False
        if self._tables is not None:
            value = self._options.seals.seal(value, _about(table, key))
            with self._guarded():
                done = self._tables.put(table, key, value, ttl_s, label=label, state=state)
        return done

    def labelled(
        self,
        table: str,
        limit: int,
        *,
        before: int | None,
        label: str | None,
        state: str | None,
        ending: str = "",
    ) -> Iterator[tuple[int, bytes]]:
        """Values by what they were put with, newest first; may raise ``sqlite3.Error``.

        Those that are locked are left out.
        """
        if self._tables is None:
            raise sqlite3.OperationalError("the database is not open")
        found = self._tables.labelled(
            table, limit, before=before, label=label, state=state, ending=ending
        )
        for row, key, value in found:
            with contextlib.suppress(Locked):
                yield row, self._options.seals.open(value, _about(table, key))

    def get(self, table: str, key: str) -> tuple[bool, bytes | None]:
        """Whether the database could answer, and the value; of one that is locked it could not."""
        if self._tables is None:
            return False, None
        try:
            found = self._tables.get(table, key)
        except sqlite3.Error:
            self._table_errors += 1
            return False, None
        try:
            opened = found and self._options.seals.open(found, _about(table, key))
        except Locked:
            return False, None
        return True, opened

    # -- batch jobs -----------------------------------------------------------------------------

    def with_jobs(self, work: Callable[[JobTable], T]) -> T | None:
        """Do something to the jobs; ``None`` when the database is away, and nothing is changed."""
        if self.jobs is None:
            return None
        with self._guarded():
            return work(self.jobs)
        return None

    def with_tables(self, work: Callable[[Tables], T]) -> T | None:
        """Do something to the database itself; ``None`` when it is away, and nothing is changed."""
        if self._tables is None:
            return None
        with self._guarded():
            return work(self._tables)
        return None

    # -- dead letters ---------------------------------------------------------------------------

    def add_letters(self, letters: Iterable[Letter]) -> int:
        """Keep letters of calls that have none; answers how many were new."""
        return self.letters.add(letters)

    # -- time -----------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Write what is staged; false when the keyed tables could not."""
        self._write_calls()
        done = True
        if self._tables is not None:
            done = not self._tables.undone
            self._tables.undone = False
            try:
                self._tables.commit()
            except sqlite3.Error:
                done = False
                self._table_errors += 1
                self._tables_broken = True
                self._tables.rollback()
        self.letters.committed(done)
        return done

    def tick(self) -> None:
        """Once a second: sync, retry, expire, prune."""
        self.letters.flush()
        self._write_calls()
        try:
            self._calls.sync()
        except SegmentError as error:
            self._hold(error.lost)
        self.letters.sync()
        self._calls.prune()
        with self._guarded():
            self.letters.prune()
            if self._tables is not None:
                self._tables.expire()
            if self.jobs is not None:
                self.jobs.tidy()
        self.commit()
        self._try_tables()
        if self._tables is None and self._clock() >= self._retry_at:
            self._open_tables()

    def state(self) -> ShelfState:
        """Levels and counters of this moment."""
        letters, log = self.letters, self.letters.log
        tables = {} if self._tables is None else self._tables.fills
        broken = [("calls", self._calls_broken), ("letters", letters.waiting > 0),
                  ("tables", self._tables is None or self._tables_broken)]  # fmt: skip
        depth = letters.waiting
        with self._guarded():
            depth = letters.depth()
        kept = self.with_jobs(JobTable.fill) or (0, 0)
        return ShelfState(
            letters_open=depth,
            letters_waiting=letters.waiting,
            letters_bytes=log.total_bytes,
            letters_dropped=letters.dropped,
            letter_write_errors=log.write_errors,
            calls_bytes=self._calls.total_bytes,
            calls_waiting_bytes=self._backlog_bytes,
            calls_dropped=self._calls_dropped,
            call_write_errors=self._calls.write_errors,
            table_errors=self._table_errors,
            cut_bytes=log.cut_bytes + self._calls.cut_bytes,
            jobs=kept[0],
            job_bytes=kept[1],
            tables=tuple((name, f.rows, f.bytes, f.evicted) for name, f in tables.items()),
            broken=tuple(name for name, bad in broken if bad),
        )

    def close(self) -> None:
        """Write, sync and close everything."""
        self.letters.flush()
        self.commit()
        for log in (self._calls, self.letters.log):
            with contextlib.suppress(SegmentError):
                log.close()
        if self._tables is not None:
            self._tables.close()

    # -- inside ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._table_errors += 1
            self._tables_broken = True
            if self._tables is not None:
                self._tables.rollback()
                if not isinstance(error, sqlite3.OperationalError):
                    self._abandon(self._tables)

    def _abandon(self, tables: Tables) -> None:
        """Stop using a damaged database; ``tick`` makes a new one."""
        self.letters.detach()
        self._tables = self.jobs = self.counts = None
        tables.abandon()

    def _try_tables(self) -> None:
        """Write a word after a failure, for a transaction that changes nothing always works."""
        if self._tables is not None and self._tables_broken:
            try:
                self._tables.set_mark("tried_at", str(self._clock()))
                self._tables.commit()
            except sqlite3.Error:
                self._tables.rollback()
            else:
                self._tables_broken = False

    def _write_calls(self) -> None:
        staged, self._staged = self._staged, []
        if self._backlog:
            staged = [*self._backlog, *staged]
            self._backlog.clear()
            self._backlog_bytes = 0
        try:
            self._calls.append(staged)
        except SegmentError as error:
            self._hold(error.lost)
        else:
            self._calls_broken = False

    def _hold(self, batches: list[bytes]) -> None:
        self._calls_broken = True
        for batch in batches:
            self._backlog.append(batch)
            self._backlog_bytes += len(batch)
        while self._backlog_bytes > _BACKLOG_BYTES:
            self._backlog_bytes -= len(self._backlog.popleft())
            self._calls_dropped += 1

    def _open_tables(self) -> None:
        self._retry_at = self._clock() + _REOPEN_S
        options = self._options
        try:
            tables = Tables(
                self._directory / "tables.sqlite", options.tables, options.durability,
                clock=self._clock,
            )  # fmt: skip
        except (sqlite3.Error, OSError):
            self._table_errors += 1
            return
        try:
            self.letters.attach(tables)
        except sqlite3.Error:
            self._table_errors += 1
            tables.close()
        else:
            self._tables = tables
            self.jobs = JobTable(tables, options.jobs, self._clock, options.seals)
            self.counts = CountTable(tables, self._clock)


def _about(table: str, key: str) -> bytes:
    """What a sealed value is about; no table's name has a NUL."""
    return f"{table}\0{key}".encode()
