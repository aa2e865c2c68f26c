"""What is used of limits, by name, and what each process of the host has taken of it in advance.

::

    segment  word 0  magic | 1 layout | 2 rows | 3 seats | pad to 8 words
             8       a word per set: how often a name in it changed whose numbers are kept
             then    rows
    row      0-1     digest: blake2b of the name; zeros: nobody's
             2       which of the two copies holds; 0 or 1
             3-11    the name: length u8, then its first 71 bytes, for people
             12      unspent, a word per seat: requests, tokens and number of its lease
             then    copy 0, copy 1
    copy     0-7     cells, f64: the four levels of use, when they held, let in, refused, used at
             8       two words per seat: epoch u32 | places held u32; its lease, as in ``unspent``
    lease    tokens u40 | requests u16 | number u8

    sets     of 8 rows; a name's digest names the set, the set's lock is one update
             sets 0 .. N/4 are for names that the configuration is made of, the rest for the crowd

A lease is what a seat took and may spend without asking.  The seat alone writes its ``unspent``
word, before each spending and without a lock; everything else is written under the set's lock.
An update writes the copy that does not hold and then flips word 2, so it happens whole or not at
all, whenever its writer dies.  Each lease of a seat has another number: an ``unspent`` word of
another number is one that was not written yet, so all of that lease is unspent.  The number goes on
when a seat's lease is over, whoever sits there.

What an occupant that died had taken shows at once, because its words carry its epoch: places held
are not counted any more, and the next update of the name gets its unspent lease to give back.

A name that is not there takes the row of its set that was not used for longest and of which nobody
living holds anything; that row is emptied before it gets its name.  Where all eight are held the
update is refused.

A name that begins with ``kept:`` has numbers that outlive the host (see ``quotas_kept``): its
digest is 11 bytes of blake2b, a 1 and four zeros, so that whoever knows no names can tell its row.
The word of its set is raised under the lock, before the row is written: who looks too early finds
the row as it was, and who died in between has only made somebody look.

Memory order: none is relied on but that of the lock's system calls.  ``unspent`` is read of dead
seats, whose stores are all done, and for people.

Invariants: an update is whole and happens once; what the dead had taken is given back once.
Known weakness: the wait for a lock blocks the loop, see ``ledger``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from struct import Struct as Layout
from time import monotonic
from typing import TypeVar

from tpo_mp.errors import Shed
from tpo_mp.ports import Counter, Metrics
from tpo_mp.types import LEASE_NUMBERS, Quota, QuotaReading, QuotaUse

from .ledger import PATIENCE_NS
from .plane import Plane
from .rows import LOCK_WAIT_NS, RowTable
from .segment import Segment

T = TypeVar("T")
MAGIC = int.from_bytes(b"TPOQUOT1", "little")
LAYOUT = 2
MOST_ROWS = 16_384
MOST_BYTES = 16 << 20
SET_ROWS = 8
NAMED_SHARE = 4
CELLS = 8
USED_AT = 7
QUOTAS_REFUSED = ("tpo_quotas_refused_total", "Updates of limits given up: held, or no room.")

KEPT = "kept:"
"""What names begin with whose numbers outlive the host."""
KEPT_BYTES = 12
_KEPT_MARK = b"\1\0\0\0\0"
_DIGEST_BYTES = 16

_HEADER = 8
_NAME = 3
_NAME_BYTES = 72
_UNSPENT = 12
_LOW = 0xFFFFFFFF
_WORD = 0xFFFFFFFFFFFFFFFF


def _row_words(seats: int) -> int:
    return _UNSPENT + seats + 2 * (CELLS + 2 * seats)


def _size(seats: int, rows: int) -> int:
    return 8 * (_HEADER + rows // SET_ROWS + rows * _row_words(seats))


def digest_of(name: str) -> bytes:
    """What a row keeps of its name."""
    data = name.encode("utf-8", "surrogatepass")
    if name.startswith(KEPT):
        return blake2b(data, digest_size=KEPT_BYTES - 1).digest() + _KEPT_MARK
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def kept_digest(head: bytes) -> bytes:
    """A kept name's digest from its first twelve bytes, which are all that is written down."""
    return head.ljust(_DIGEST_BYTES, b"\0")


class QuotaSegment(Segment):
    """The shared memory of the quotas."""

    @staticmethod
    def rows_for(seats: int) -> int:
        """Rows of a host with so many seats: a multiple of eight, in at most 16 MiB."""
        rows = min(MOST_ROWS, MOST_BYTES // (8 * _row_words(seats)))
        return max(rows // SET_ROWS, 2 * NAMED_SHARE) * SET_ROWS

    @classmethod
    def make(cls, seats: int, rows: int = 0) -> QuotaSegment:
        """Make it (supervisor only); ``rows``: other than what the host gets."""
        rows = rows or cls.rows_for(seats)
        made = cls.create("tpo-quotas", _size(seats, rows))
        made.signed(MAGIC, LAYOUT, rows, seats)
        return made

    @classmethod
    def map_inherited(cls, fd: int, seats: int, rows: int = 0) -> QuotaSegment:
        """Map an inherited one; raises ``Fault`` when it is not ours."""
        rows = rows or cls.rows_for(seats)
        segment = cls.attach(fd, _size(seats, rows))
        segment.checked("quotas", MAGIC, LAYOUT, rows, seats)
        return segment


class SharedQuotas:
    """The ``Quotas`` of one process; all processes of a host see the same."""

    def __init__(
        self,
        segment: QuotaSegment,
        table: RowTable,
        *,
        seat: int,
        epoch_of: Callable[[int], int],
        sharers: int,
        refused: Counter,
    ) -> None:
        """``table`` lends its locks, beyond its own rows; ``epoch_of`` tells who sits where."""
        self._segment = segment
        self._locks = table
        self._first_lock = table.rows
        self._words = segment.words
        self._rows, self._seats = segment.words[2], segment.words[3]
        self._copy = Layout(f"={CELLS}d{2 * self._seats}Q")
        self._row_words = _row_words(self._seats)
        self._sets = self._rows // SET_ROWS
        self._first_row = _HEADER + self._sets
        self._named = self._sets // NAMED_SHARE
        self._seat = seat
        self._epoch_of = epoch_of
        self._refused = refused
        self._stuck: set[int] = set()
        self._known: dict[str, tuple[int, bytes, int]] = {}
        self.sharers = max(sharers, 1)

    @classmethod
    def of_host(
        cls, fd: int, table: RowTable, plane: Plane, seat: int, metrics: Metrics
    ) -> SharedQuotas:
        """Those that a process on a seat inherited."""
        words, places = plane.words, [plane.seat(n).base for n in range(plane.seats)]
        return cls(
            QuotaSegment.map_inherited(fd, plane.seats),
            table,
            seat=seat,
            epoch_of=lambda n: words[places[n]],
            sharers=plane.workers,
            refused=metrics.counter(*QUOTAS_REFUSED),
        )

    def update(self, name: str, change: Callable[[Quota], T], *, crowd: bool = False) -> T:
        """Change what is used of a name; see ``ports.Quotas``."""
        known = self._known.get(name)
        if known is None:
            digest = digest_of(name)
            place = self.place_of(digest, crowd=crowd)
            if len(self._known) >= MOST_ROWS:
                self._known.clear()
            known = self._known[name] = (place, digest, place * SET_ROWS)
        place, digest, guess = known
        self.lock(place)
        try:
            row = self._at(guess)
            if self._digest(row) != digest:
                guess = self._find(place, digest, name)
                self._known[name] = (place, digest, guess)
                row = self._at(guess)
            return self._change(row, change, place if digest.endswith(_KEPT_MARK) else -1)
        finally:
            self._locks.release(self._first_lock + place)

    def look(self, name: str, *, crowd: bool = False) -> QuotaUse | None:
        """A name's use, if it has any; see ``ports.Quotas``."""
        digest = digest_of(name)
        place = self.place_of(digest, crowd=crowd)
        self.lock(place)
        try:
            for number in range(place * SET_ROWS, (place + 1) * SET_ROWS):
                row = self._at(number)
                if self._digest(row) == digest:
                    return self._standing(row)
        finally:
            self.unlock(place)
        return None

    def restore(self, digest: bytes, change: Callable[[Quota], T], *, crowd: bool) -> T:
        """Change the use of a kept name of which only the digest is known; raises ``Shed``."""
        place = self.place_of(digest, crowd=crowd)
        self.lock(place)
        try:
            return self._change(self._at(self._find(place, digest, KEPT)), change, place)
        finally:
            self.unlock(place)

    def kept(self, place: int) -> list[tuple[bytes, QuotaUse]]:
        """The kept names of a set, whose lock is held: digest and use."""
        first = place * SET_ROWS
        rows = (self._at(number) for number in range(first, first + SET_ROWS))
        found = ((self._digest(row), row) for row in rows)
        return [(d, self._standing(row)) for d, row in found if d.endswith(_KEPT_MARK)]

    def changes(self) -> bytes:
        """Of each set a word, which is another one when a kept name in it may have changed."""
        return self._segment.map[8 * _HEADER : 8 * self._first_row]

    def in_crowd(self, place: int) -> bool:
        """Whether a set is for names that clients bring."""
        return place >= self._named

    def place_of(self, digest: bytes, *, crowd: bool) -> int:
        """The set of a name."""
        number = int.from_bytes(digest[:8], "little")
        return self._named + number % (self._sets - self._named) if crowd else number % self._named

    def lock(self, place: int) -> None:
        """Take a set's lock; raises ``Shed`` when that takes too long."""
        patience = LOCK_WAIT_NS if place in self._stuck else PATIENCE_NS
        if not self._locks.acquire(self._first_lock + place, patience):
            self._stuck.add(place)
            self._refused.inc()
            raise Shed(
                "a worker that does not run holds this count", reason="ledger_busy", retry_after_s=1
            )
        if self._stuck:
            self._stuck.discard(place)

    def unlock(self, place: int) -> None:
        """Give it back."""
        self._locks.release(self._first_lock + place)

    def readings(self, first: int, rows: int) -> Iterator[QuotaReading]:
        """Names in so many rows, for people: counts that are being changed may not fit together."""
        for number in range(first, min(first + rows, self._rows)):
            row = self._at(number)
            if not self._words[row] and not self._words[row + 1]:
                continue
            at = (row + _NAME) * 8
            length = self._segment.map[at]
            name = self._segment.map[at + 1 : at + 1 + length].decode("utf-8", "replace")
            seen = self._copy.unpack_from(self._segment.map, self._copy_at(row) * 8)
            held = unspent = tokens = 0
            for seat in range(self._seats):
                life, lease = seen[CELLS + 2 * seat : CELLS + 2 * seat + 2]
                if life >> 32 == self._epoch_of(seat):
                    held += life & _LOW
                left = _left(self._words[row + _UNSPENT + seat], lease)
                unspent += left >> 8 & 0xFFFF
                tokens += left >> 24
            yield QuotaReading(number, name, seen[:CELLS], held, unspent, tokens)

    @property
    def rows(self) -> int:
        """How many names there is room for."""
        return self._rows

    def _at(self, number: int) -> int:
        return self._first_row + number * self._row_words

    def _copy_at(self, row: int) -> int:
        copy = self._words[row + 2] & 1
        return row + _UNSPENT + self._seats + copy * (CELLS + 2 * self._seats)

    def _digest(self, row: int) -> bytes:
        return self._segment.map[row * 8 : row * 8 + 16]

    def _standing(self, row: int) -> QuotaUse:
        seen = self._copy.unpack_from(self._segment.map, self._copy_at(row) * 8)
        requests = tokens = 0
        for seat in range(self._seats):
            left = _left(self._words[row + _UNSPENT + seat], seen[CELLS + 2 * seat + 1])
            requests += left >> 8 & 0xFFFF
            tokens += left >> 24
        return QuotaUse(seen[:CELLS], requests, tokens)

    def _change(self, row: int, change: Callable[[Quota], T], kept: int) -> T:
        """One update, its set's lock held; ``kept``: the set, if the name is kept, else -1."""
        words, seats, mine = self._words, self._seats, self._seat
        seen = self._copy.unpack_from(self._segment.map, self._copy_at(row) * 8)
        quota = Quota()
        quota.cells = list(seen[:CELLS])
        after = list(seen[CELLS:])
        number = 1
        for seat in range(seats):
            life, lease = after[2 * seat], after[2 * seat + 1]
            if not life:
                number = lease if seat == mine else number
                continue
            if life >> 32 != self._epoch_of(seat):
                left = _left(words[row + _UNSPENT + seat], lease)
                quota.lost_requests += left >> 8 & 0xFFFF
                quota.lost_tokens += left >> 24
                after[2 * seat], after[2 * seat + 1] = 0, lease + 1 & 0xFF
                number = lease + 1 if seat == mine else number
            elif seat == mine:
                quota.held = life & _LOW
                quota.requests, quota.tokens = lease >> 8 & 0xFFFF, lease >> 24
                number = lease
            else:
                quota.others_held += life & _LOW
                quota.others_requests += lease >> 8 & 0xFFFF
                quota.others_tokens += lease >> 24
        quota.number = number % LEASE_NUMBERS
        quota.unspent = words[row + _UNSPENT + mine : row + _UNSPENT + mine + 1]
        answer = change(quota)
        quota.cells[USED_AT] = monotonic()
        after[2 * mine] = self._epoch_of(mine) << 32 | quota.held
        after[2 * mine + 1] = quota.tokens << 24 | quota.requests << 8 | quota.number
        if quota.voided:
            for seat in range(seats):
                lease = after[2 * seat + 1]
                if seat != mine and lease >> 8:
                    after[2 * seat + 1] = lease + 1 & 0xFF
        if kept >= 0:
            words[_HEADER + kept] = words[_HEADER + kept] + 1 & _WORD
        self._store(row, quota.cells, after)
        return answer

    def _store(self, row: int, cells: list[float], shares: list[int]) -> None:
        other = ~self._words[row + 2] & 1
        at = row + _UNSPENT + self._seats + other * (CELLS + 2 * self._seats)
        self._copy.pack_into(self._segment.map, at * 8, *cells, *shares)
        self._words[row + 2] = other

    def _find(self, place: int, digest: bytes, name: str) -> int:
        """The row of a name in its set, or the one it takes."""
        oldest, found = float("inf"), -1
        for number in range(place * SET_ROWS, (place + 1) * SET_ROWS):
            row = self._at(number)
            if self._digest(row) == digest:
                return number
            seen = self._copy.unpack_from(self._segment.map, self._copy_at(row) * 8)
            if seen[USED_AT] < oldest and not self._held(seen):
                oldest, found = seen[USED_AT], number
        if found < 0:
            self._refused.inc()
            raise Shed(
                "too many names have limits in use at once", reason="ledger_full", retry_after_s=1
            )
        row = self._at(found)
        for seat in range(self._seats):
            self._words[row + _UNSPENT + seat] = 0
        self._store(row, [0.0] * CELLS, [0] * (2 * self._seats))
        text = name.encode("utf-8", "replace")[: _NAME_BYTES - 1]
        at = (row + _NAME) * 8
        self._segment.map[at : at + _NAME_BYTES] = bytes((len(text),)) + text.ljust(
            _NAME_BYTES - 1, b"\0"
        )
        self._segment.map[row * 8 : row * 8 + 16] = digest
        return found

    def _held(self, seen: tuple[float, ...]) -> bool:
        """Whether somebody living holds something of a row."""
        for seat in range(self._seats):
            life, lease = int(seen[CELLS + 2 * seat]), int(seen[CELLS + 2 * seat + 1])
            if (life & _LOW or lease >> 8) and life >> 32 == self._epoch_of(seat):
                return True
        return False


def _left(unspent: int, lease: int) -> int:
    """What is left of a lease: all of it, if its owner had not come to say so."""
    if not lease >> 8:
        return 0
    return unspent if unspent & 0xFF == lease & 0xFF else lease
