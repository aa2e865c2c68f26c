"""Requests that kill: a body that was open in two workers when they died is not let in again.

Whoever sees a worker die (control, which finds its open calls; the shard that had forwarded one to
it) marks the bodies it had.  Marks are rows of the ledger, found by the body's digest::

    poison:armed    until when there may be marks (CLOCK_MONOTONIC)
    poison:<n>      digest | deaths | when the last one was known | until when it is kept

A death counts only against a call that began after the death before it: many calls with one body
that one or several simultaneous deaths took along are one suspicion, a body that is sent again and
kills again is two.  A call with a marked body that comes to its good end clears it.

Invariants: without a death nothing is hashed or looked up, a request pays one look at one word; who
is convicted is never displaced by a suspect; all is forgotten ``KEPT_S`` after the last death.
Known weakness: a body that is sent again before its first death is known (50 ms) may kill once
more.  An innocent long call that was sent again and was open at both deaths is taken for
the culprit.  Only the first ``DIGESTED_BYTES`` of a body and its length tell it from others.  Two
suspects whose digests meet in one row displace one another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Final

from tpo_mp.errors import Shed, WorkerLost
from tpo_mp.ports import Cells, Ledger, Metrics, Watch
from tpo_mp.types import Call, Ending, Terminal

from .endings import at_end

DEATHS: Final = 2
"""So many convict."""
KEPT_S: Final = 600.0
ROWS: Final = 256
DIGESTED_BYTES: Final = 256 * 1024
REASON: Final = "poison"
_ARMED: Final = "poison:armed"
_NOBODY: Final[Cells] = (0.0, 0.0, 0.0, 0.0)


def digest_of_body(body: bytes) -> int:
    """What a mark keeps of a body: 52 bits, which a float holds exactly; never 0."""
    size = len(body).to_bytes(8, "little")
    digest = blake2b(body[:DIGESTED_BYTES], digest_size=8, key=size).digest()
    return int.from_bytes(digest, "little") >> 12 or 1


class Poison:
    """One process's view of the marks."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float], metrics: Metrics) -> None:
        self._ledger = ledger
        self._clock = clock
        self._armed = ledger.watch(_ARMED)
        self._calm: tuple[Cells, ...] | None = None
        self._rows: dict[int, Watch] = {}
        self._refused = metrics.counter(
            "tpo_poison_refused_total", "Calls refused because their body had killed two workers."
        )

    def armed(self) -> bool:
        """Whether any body is marked."""
        seen = self._armed.peek()
        if seen is self._calm:
            return False
        if seen[0][0] > self._clock():
            return True
        self._calm = seen
        return False

    def check(self, call: Call) -> None:
        """Raise ``WorkerLost`` for a body that is convicted; watch one that is suspected."""
        digest = digest_of_body(call.body)
        number = digest % ROWS
        row = self._rows.get(number)
        if row is None:
            row = self._rows[number] = self._ledger.watch(_name(digest))
        known, deaths, _, until = row.peek()[0]
        left_s = until - self._clock()
        if known != digest or left_s <= 0:
            return
        if deaths < DEATHS:
            at_end(call, partial(self._ended, digest))
            return
        self._refused.inc()
        raise WorkerLost(
            f"this request was being worked on when {deaths:g} workers died, and is not let in",
            reason=REASON,
            status=503,
            retry_after_s=left_s,
        )

    def mark(self, digest: int, began_at: float, died_by: float) -> int:
        """Note that a worker died with a call of this body open; answers the deaths so far.

        ``began_at`` is when the call reached it, ``died_by`` when it was known to be dead.
        A ledger that cannot be asked knows of none.
        """
        now = self._clock()
        until = now + KEPT_S

        def change(cells: Cells) -> Cells:
            known, deaths, last, kept_until = cells
            fresh = kept_until <= now
            if known == digest and not fresh:
                more = began_at > last
                return (known, deaths + more, max(last, died_by), until)
            if not fresh and deaths >= DEATHS:
                return cells
            return (digest, 1.0, died_by, until)

        try:
            after = self._ledger.update(_name(digest), change)
            self._ledger.update(_ARMED, lambda cells: (max(cells[0], until), 0.0, 0.0, 0.0))
        except Shed:
            return 0
        return int(after[1]) if after[0] == digest else 0

    def _ended(self, digest: int, ended: Ending) -> None:
        """A suspect's call is over."""
        if ended.terminal is Terminal.DONE:
            with suppress(Shed):
                self._ledger.update(_name(digest), partial(_cleared, digest))


def _name(digest: int) -> str:
    return f"poison:{digest % ROWS}"


def _cleared(digest: int, cells: Cells) -> Cells:
    return _NOBODY if cells[0] == digest and cells[1] < DEATHS else cells
