"""How often each dead letter was asked again, by whom, and when it may be next.

::

    letter_attempts   call_id · attempts · next_at · run, seat, epoch of who asks now · repeated

A row is written before a backend is asked, so an attempt is never forgotten: one whose end nobody
told (its worker died, or all did), or whose end was unclear, makes the letter ``repeated``, for its
backend may have done the work.

``dead_letters.look_at`` says before when a letter need not be looked at: in a moment, when its
worker is done, when its predecessor is, or never.  It is a hint only: what it says is checked when
the time has come, and triggers set it to 0 when an attempt begins or ends, and that of a session's
first letter when another one of the session is closed, gone, or tried too often.

Invariants: of one session's letters the oldest open one alone is due; a letter is in one pair of
hands at a time.  One that was tried as often as allowed stays open and holds nobody up.
Weakness: a database that was damaged and made anew counts attempts from 0 again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from .tables import Tables

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
ASKING_S: Final = 700.0
"""After so long without a word an attempt is over; longer than a replay keeps its lease."""
MOST_LOOKED_AT: Final = 512
"""By one call of ``due``, where one look costs up to some 10 us."""
_LOOK: Final = 128
_NEVER: Final = 1e11
_ASKED: Final = 1e12
_BEHIND: Final = 2e12
_SPENT: Final = 3e12
"""The schema knows this one: a letter that will not be asked is nobody's predecessor."""
_MARK: Final = "replay_attempts_allowed"
_FOR_GOOD: Final = 1_000_000
"""Added to the attempts of a letter that can never be asked, so that they are enough."""
_LOCKED: Final = 1_000_000_000
"""The same for one whose key is away, until the keys are others."""
_KEYS: Final = "replay_keys"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What is known of one letter."""

    attempts: int = 0
    repeated: bool = False


def wait_s(attempts: int) -> float:
    """Seconds after the ``attempts``-th attempt: 2, 4, 8 … and at most a minute."""
    return min(2.0 ** min(attempts, 6), LONGEST_WAIT_S)


def due(tables: Tables, now: float, most: int, limit: int) -> list[str]:
    """Letters to ask now, oldest first: open, waited long enough, tried less than ``most`` times.

    None of a session that has an older one still to come: the instant of the drop counts, for
    letters of two workers come in any order within a moment.  Looks at ``MOST_LOOKED_AT`` letters;
    what is due beyond them is found by the next calls.
    """
    _allow(tables, most)
    for _ in range(MOST_LOOKED_AT // _LOOK):
        rows = tables.read(
            "SELECT l.seq, l.call_id, l.dropped_at, a.attempts, a.next_at, a.run,"
            " CASE WHEN l.session='' THEN l.seq ELSE (SELECT f.seq FROM letter_first f"
            " WHERE f.tenant=l.tenant AND f.session=l.session ORDER BY f.dropped_at, f.seq"
            " LIMIT 1) END FROM dead_letters l INDEXED BY dead_letters_look"
            " LEFT JOIN letter_attempts a ON a.call_id=l.call_id"
            " WHERE l.status='open' AND l.look_at<=? ORDER BY l.look_at, l.seq LIMIT ?",
            (now, _LOOK),
        ).fetchall()
        again = [(_look_at(most, *row[2:], behind=row[6] != row[0]), row[0]) for row in rows]
        later = sorted(one for one in again if one[0] > now)  # the spent last: others are told
        found = [row[:2] for row, (look_at, _) in zip(rows, again, strict=True) if look_at <= now]
        if later:
            tables.write_many("UPDATE dead_letters SET look_at=? WHERE seq=?", later)
        if not later or len(found) >= limit:
            break
    return [str(call_id) for _, call_id in sorted(found)[:limit]]


def _allow(tables: Tables, most: int) -> None:
    """Look at all letters again when another number of attempts is allowed."""
    if tables.mark(_MARK) != str(most):
        tables.set_mark(_MARK, str(most))
        tables.write("UPDATE dead_letters SET look_at=0 WHERE status='open' AND look_at>0")


def _look_at(
    most: int,
    dropped_at: float,
    attempts: int | None,
    next_at: float,
    run: str | None,
    _first: int | None,
    *,
    behind: bool,
) -> float:
    """When a letter may be due if nothing happens."""
    if run:
        return _ASKED
    if attempts is not None and attempts >= most:
        return _SPENT
    if behind:
        return _BEHIND
    return dropped_at + FIRST_WAIT_S if attempts is None else next_at


def begin(tables: Tables, call_id: str, now: float, run: str, seat: int, epoch: int) -> int:
    """Note that a letter is being asked; answers the attempt's number, counted from 1.

    Who asked until now is believed dead: only one worker holds the lease.
    """
    row = tables.write(
        "INSERT INTO letter_attempts(call_id, attempts, next_at, run, seat, epoch)"
        " VALUES(?,1,?,?,?,?) ON CONFLICT(call_id) DO UPDATE SET attempts=attempts+1,"
        " repeated=repeated OR run!='',"
        " next_at=excluded.next_at, run=excluded.run, seat=excluded.seat, epoch=excluded.epoch"
        " RETURNING attempts",
        (call_id, now + ASKING_S, run, seat, epoch),
    ).fetchall()
    return int(row[0][0])


def under_way(tables: Tables, call_id: str, attempt: int, run: str, seat: int, epoch: int) -> bool:
    """Whether this attempt has not ended, and is that worker's."""
    row = tables.read(
        "SELECT 1 FROM letter_attempts WHERE call_id=? AND attempts=? AND run=? AND seat=?"
        " AND epoch=?",
        (call_id, attempt, run, seat, epoch),
    ).fetchone()
    return row is not None


def failed(
    tables: Tables,
    call_id: str,
    attempt: int,
    now: float,
    *,
    for_good: bool = False,
    unclear: bool = False,
) -> None:
    """Note that it was not answered; ``for_good``: nor ever will be.

    ``unclear``: its backend may have done the work nevertheless.
    """
    next_at = _NEVER if for_good else now + wait_s(attempt)
    tables.write(
        "UPDATE letter_attempts SET run='', next_at=?, attempts=attempts+?, repeated=repeated OR ?"
        " WHERE call_id=? AND attempts=? AND run!=''",
        (next_at, _FOR_GOOD if for_good else 0, unclear, call_id, attempt),
    )


def locked(tables: Tables, call_id: str, attempt: int, now: float) -> None:
    """Note that it cannot be asked with the keys of now, which was no attempt."""
    tables.write(
        "UPDATE letter_attempts SET run='', next_at=?, attempts=attempts%?+?"
        " WHERE call_id=? AND attempts=? AND run!=''",
        (now, _LOCKED, _LOCKED - 1, call_id, attempt),
    )


def keys_are(tables: Tables, keys: str) -> None:
    """Ask the locked ones again if the keys are others than last time."""
    if (tables.mark(_KEYS) or "") != keys:
        tables.set_mark(_KEYS, keys)
        tables.write(
            "UPDATE letter_attempts SET attempts=attempts%? WHERE attempts>=?", (_LOCKED, _LOCKED)
        )


def answered(tables: Tables, call_id: str, attempt: int, *, unclear: bool = False) -> None:
    """Note that it was; also if somebody else took it for lost meanwhile and asks it now."""
    tables.write(
        "UPDATE letter_attempts SET run='', repeated=repeated OR ? OR attempts!=? WHERE call_id=?",
        (unclear, attempt, call_id),
    )


def ended(tables: Tables, call_id: str) -> None:
    """Note that nobody asks it any more, whatever became of it."""
    tables.write("UPDATE letter_attempts SET run='' WHERE call_id=? AND run!=''", (call_id,))


def withdrawn(tables: Tables, call_id: str, run: str, seat: int, epoch: int) -> None:
    """Note that a worker does not ask it, which may have been noted as asking it."""
    tables.write(
        "UPDATE letter_attempts SET run='' WHERE call_id=? AND run=? AND seat=? AND epoch=?",
        (call_id, run, seat, epoch),
    )


def asked_by(tables: Tables, run: str) -> list[tuple[str, int, int, int]]:
    """Who asks what: call id, attempt, seat and epoch."""
    rows = tables.read(
        "SELECT call_id, attempts, seat, epoch FROM letter_attempts WHERE run=?", (run,)
    )
    return [(str(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in rows]


def lost(tables: Tables, now: float, run: str, living: Collection[tuple[int, int]]) -> int:
    """Take letters back from who died asking, or never said how it ended; answers how many."""
    asked = tables.read("SELECT call_id, run, seat, epoch, next_at FROM letter_attempts"
                        " WHERE run!=''").fetchall()  # fmt: skip
    gone = [row[0] for row in asked if row[1] != run or row[2:4] not in living or row[4] <= now]
    for call_id in gone:
        tables.write(
            "UPDATE letter_attempts SET run='', repeated=1, next_at=? WHERE call_id=?",
            (now, call_id),
        )
    return len(gone)


def asking(tables: Tables) -> int:
    """How many are being asked."""
    return int(tables.read("SELECT count(*) FROM letter_attempts WHERE run!=''").fetchone()[0])


def too_old(tables: Tables, before: float, limit: int) -> list[str]:
    """Open letters dropped before, that nobody is asking."""
    rows = tables.read(
        "SELECT l.call_id FROM dead_letters l INDEXED BY dead_letters_dropped"
        " LEFT JOIN letter_attempts a ON a.call_id=l.call_id"
        " WHERE l.status='open' AND l.dropped_at<? AND COALESCE(a.run,'')=''"
        " ORDER BY l.dropped_at LIMIT ?",
        (before, limit),
    )
    return [str(row[0]) for row in rows]


def of(tables: Tables, call_id: str) -> Attempts:
    """What is known of a letter."""
    row = tables.read(
        "SELECT attempts, repeated FROM letter_attempts WHERE call_id=?", (call_id,)
    ).fetchone()
    return Attempts() if row is None else Attempts(int(row[0]) % _FOR_GOOD, bool(row[1]))


def tidy(tables: Tables) -> None:
    """Forget letters that are no more."""
    tables.write(
        "DELETE FROM letter_attempts WHERE call_id NOT IN (SELECT call_id FROM dead_letters)"
    )
