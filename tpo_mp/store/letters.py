"""Dead letters: accepted calls that were not finished, with their payload.

The segments are the truth, the SQLite index only finds them; every open reads what the index has
not seen yet.  A letter is one msgpack array in the log, tagged 1; a status change is tagged 2.
With keys (``LetterCaps.seals``) the letter's array is sealed as a whole, in memory's copy of the
record too; what the index holds of it is not.

A letter that could not be written or indexed stays in memory (``_waiting``, capped) and is tried
again by ``flush``; it is visible all the while.  The owner of the transaction reports its end with
``committed``.

Invariants: one letter per call id, however often it is reported; a letter leaves memory only when
the log and the committed index have it.
Known weakness: an index made anew, after the database was damaged, has no letter that is locked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from .redaction import parameters_of
from .sealing import UNSEALED, Locked, Seals
from .segment_files import Place
from .segments import SegmentError, SegmentLog
from .tables import LetterHeader, Tables

_MARK = "dead_letters_read"
_ABOUT = b"letter"


class Letter(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """One unfinished call.  Instants are epoch seconds.

    ``bytes_sent`` are the bytes of a stream that its client was sent; -1 when not known.
    """

    call_id: str
    client_request_id: str
    session: str
    reason: str
    dropped_at: float
    model: str
    tenant: str
    path: str
    body: bytes
    truncated: bool = False
    bytes_sent: int = -1
    redacted: bool = False


class StatusChange(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """A letter was replayed, dropped or aged out."""

    call_id: str
    status: str
    at: float


@dataclass(slots=True)
class _Waiting:
    letter: Letter
    payload: bytes
    place: Place | None


@dataclass(frozen=True, slots=True)
class LetterCaps:
    """Caps of the index and of the memory used while the disk refuses."""

    rows: int = 100_000
    waiting: int = 1024
    waiting_bytes: int = 16 << 20
    redact: bool = False
    """Whether a letter's body is left out, but for what ``redaction`` keeps."""
    seals: Seals = UNSEALED


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Letter | StatusChange).decode


class DeadLetters:
    """The dead-letter log with its index; used by one thread."""

    def __init__(self, log: SegmentLog, caps: LetterCaps) -> None:
        """Start without a database; ``attach`` brings it."""
        self.log = log
        self.caps = caps
        self.dropped = 0
        self._tables: Tables | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_bytes = 0
        self._staged: list[str] = []
        self._dropping = False
        self._changes: list[bytes] = []
        self._recount = True
        self._open = 0

    def attach(self, tables: Tables) -> None:
        """Use a database and read the log from where its index ends."""
        segment, _, offset = (tables.mark(_MARK) or "0:0").partition(":")
        start = int(segment), int(offset)
        self._read_from(tables, *(start if start <= self.log.position else (0, 0)))
        tables.commit()
        self._tables = tables
        self._recount = True

    def detach(self) -> None:
        """Go on without a database."""
        self._tables = None

    @property
    def waiting(self) -> int:
        """Letters that only memory has in full."""
        return len(self._waiting)

    def depth(self) -> int:
        """Open letters, counted again after a change."""
        if self._recount and self._tables is not None:
            self._open = self._tables.open_letters()
            self._recount = False
        return self._open + len(self._waiting)

    def add(self, letters: Iterable[Letter]) -> int:
        """Keep letters whose call id is new; answers how many were."""
        fresh = [letter for letter in letters if not self.known(letter.call_id)]
        if self.caps.redact:
            fresh = [redacted(letter) for letter in fresh]
        for letter in fresh:
            self._wait(letter, self.caps.seals.seal(_encode(letter), _ABOUT))
        if fresh:
            self.flush()
        return len(fresh)

    def known(self, call_id: str) -> bool:
        """Whether there is a letter of this call."""
        if call_id in self._waiting:
            return True
        if self._tables is None:
            return False
        try:
            return self._tables.indexed(call_id) is not None
        except sqlite3.Error:
            return False

    def is_waiting(self, call_id: str) -> bool:
        """Whether memory has the letter and the log or its index does not."""
        return call_id in self._waiting

    def stored(self, call_id: str) -> bool:
        """Whether the letter of this call is in the log and in the committed index."""
        return call_id not in self._waiting and self.known(call_id)

    def flush(self) -> None:
        """Write and index what waits; what still fails stays."""
        if not self._waiting and not self._changes:
            return
        unwritten = [w for w in self._waiting.values() if w.place is None]
        changes, self._changes = self._changes, []
        try:
            places = self.log.append([w.payload for w in unwritten] + changes)
        except SegmentError as error:
            self.take_back(error.lost)
        else:
            for waiting, place in zip(unwritten, places, strict=False):
                waiting.place = place
        self._index()

    def committed(self, done: bool) -> None:
        """Learn whether the transaction that indexed what waits went through."""
        if done and self._staged:
            for call_id in self._staged:
                if call_id in self._waiting:
                    self._waiting_bytes -= len(self._waiting.pop(call_id).payload)
            self._recount = True
        self._dropping = self._dropping and not done
        self._staged = []

    def sync(self) -> None:
        """Make the log durable."""
        try:
            self.log.sync()
        except SegmentError as error:
            self.take_back(error.lost)

    def take_back(self, payloads: Sequence[bytes]) -> None:
        """Keep records in memory that the log gave up."""
        for payload in payloads:
            record = self._opened(payload)
            if record is None:
                self.dropped += 1
            elif isinstance(record, Letter):
                self._wait(record, payload)
            else:
                self._changes = [*self._changes[-self.caps.waiting :], payload]
        # What this transaction indexed is dropped from it again: its end must free none of it.
        self._staged = []
        self._dropping = True
        if self._tables is not None:
            try:
                self._tables.drop_letters(self._waiting)
                self._tables.set_mark(_MARK, "0:0")
            except sqlite3.Error:
                self._tables.rollback()
        self._recount = True

    def set_status(self, call_id: str, status: str, at: float) -> bool:
        """Record what became of a letter; False when it is unknown or cannot be written."""
        if self._tables is None or call_id in self._waiting:
            return False
        if self._tables.indexed(call_id) is None:
            return False
        try:
            self.log.append([_encode(StatusChange(call_id, status, at))])
        except SegmentError as error:
            self.take_back(error.lost)
            return False
        self._tables.set_status(call_id, status)
        self._recount = True
        return True

    def page(self, limit: int, before: int | None, tenant: str | None) -> list[LetterHeader]:
        """Open letters, newest first; those in memory come on the first page only."""
        found: list[LetterHeader] = []
        if before is None:
            found = [
                _header(w.letter)
                for w in reversed(self._waiting.values())
                if tenant is None or w.letter.tenant == tenant
            ][:limit]
        if self._tables is not None and len(found) < limit:
            rows = self._tables.letters(limit - len(found), before, tenant)
            found += [row for row in rows if row.call_id not in self._waiting]
        return found

    def oldest(self, limit: int, session: str | None, since: float | None) -> list[LetterHeader]:
        """Open letters in the order of their drop, without those that only memory has."""
        if self._tables is None:
            return []
        rows = self._tables.oldest_letters(limit, session, since)
        return [row for row in rows if row.call_id not in self._waiting]

    def read(self, call_id: str) -> tuple[LetterHeader, Letter | None] | None:
        """One letter with its payload; no payload when it is sealed with a key that is not here."""
        waiting = self._waiting.get(call_id)
        if waiting is not None:
            return _header(waiting.letter), waiting.letter
        row = None if self._tables is None else self._tables.indexed(call_id)
        payload = None if row is None else self.log.read(row[1])
        if row is None or payload is None:
            return None
        letter = self._opened(payload)
        return None if isinstance(letter, StatusChange) else (row[0], letter)

    def prune(self) -> None:
        """Hold the caps of log and index."""
        gone = self.log.prune()
        if self._tables is None:
            return
        if gone:
            self._tables.drop_segments(gone)
        if self._tables.trim_letters(self.caps.rows) or gone:
            self._recount = True

    # -- inside -------------------------------------------------------------------------------

    def _wait(self, letter: Letter, payload: bytes) -> None:
        before = self._waiting.get(letter.call_id)
        self._waiting_bytes -= 0 if before is None else len(before.payload)
        self._waiting[letter.call_id] = _Waiting(letter, payload, None)
        self._waiting_bytes += len(payload)
        while len(self._waiting) > self.caps.waiting or (
            self._waiting_bytes > self.caps.waiting_bytes and len(self._waiting) > 1
        ):
            oldest = next(iter(self._waiting))
            self._waiting_bytes -= len(self._waiting.pop(oldest).payload)
            self.dropped += 1

    def _index(self) -> None:
        tables = self._tables
        written = [(w.letter, w.place) for w in self._waiting.values() if w.place is not None]
        if tables is None or not written:
            return
        try:
            if self._dropping:  # a transaction that failed may have kept their old places
                tables.drop_letters([letter.call_id for letter, _ in written])
            tables.index([(_header(letter), place) for letter, place in written])
            self._set_mark(tables)
        except sqlite3.Error:
            tables.rollback()
        else:
            self._staged = [letter.call_id for letter, _ in written]

    def _opened(self, payload: bytes) -> Letter | StatusChange | None:
        """A record of the log; ``None`` when it is locked."""
        try:
            record: Letter | StatusChange = _decode(self.caps.seals.open(payload, _ABOUT))
        except Locked:
            return None
        return record

    def _set_mark(self, tables: Tables) -> None:
        segment, offset = self.log.position
        tables.set_mark(_MARK, f"{segment}:{offset}")

    def _read_from(self, tables: Tables, segment: int, offset: int) -> None:
        for place, payload in self.log.scan(segment, offset):
            try:
                record = self._opened(payload)
            except msgspec.MsgspecError:
                continue
            if record is None:
                continue
            if isinstance(record, Letter):
                tables.index([(_header(record), place)])
            else:
                tables.set_status(record.call_id, record.status)
        self._set_mark(tables)


def redacted(letter: Letter) -> Letter:
    """The letter without what anybody said."""
    if letter.redacted:
        return letter
    return replace(letter, body=parameters_of(letter.body), redacted=True)


def _header(letter: Letter) -> LetterHeader:
    return LetterHeader(
        0, letter.call_id, letter.client_request_id, letter.session, letter.reason,
        letter.dropped_at, letter.model, letter.tenant, letter.path, "open",
    )  # fmt: skip
