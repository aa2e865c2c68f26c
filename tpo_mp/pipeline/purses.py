"""What one process may spend of the host's budgets: set aside first, settled at what was spent.

A count is a quota of the host; its first cells are those of ``allowance``.  What is set aside is
spent already, and settling gives back what was not used: so whoever dies with something set aside
has spent it, once, and nobody needs to find out.

Far from a limit a process takes something ahead, its ``Purse``, and its next calls are set aside
from there and settled into it, each by the store of one word that it alone writes: a purse is what
``shm.quotas`` calls a lease.  What is in the purse of a process that dies goes back to the host,
exactly.  A purse is given back within 50 ms, and only a small part of what is left is taken into
one, so near a limit every call is set aside and settled at the host itself.

When a period starts anew, or a session is reset, all purses of it are void: a ``Purse`` belongs to
one start of a count, and what belongs to an earlier one is dropped, never credited to the next.

Invariants: a call is let in only when the count, with what it may spend at most and with what all
processes hold ahead, stays within the limit: what is spent and what is set aside together never
pass it, whoever dies.  What a call set aside is settled once.
Known weakness: a call that spends more than was set aside for it passes the limit by the rest
(``tpo_budget_overrun_total``); calls let in from a purse in the moment of a reset are not counted
after it; at the cap of the quotas the session not seen for longest begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tpo_mp.errors import Shed
from tpo_mp.ports import Quotas, Timers
from tpo_mp.types import NO_DEADLINE, Quota

from .allowance import NEVER, Span

SINCE, USED, CALLS_LET_IN, CHANGED_AT = 0, 1, 2, 3
"""Cells of a count."""
CALLS: Final = 0xFFFF << 8
"""Where a purse's word has the calls that are left; above them are the tokens."""
ONE_CALL: Final = 1 << 8
TOKENS_AT: Final = 24
PURSE_S: Final = 0.05
MOST_PURSES: Final = 64
"""Purses that hold something at once: giving each back costs the loop about 10 us."""
MOST_NAMES: Final = 4096
PART: Final = 8
"""All processes together take at most one part in so many of what is left ahead."""
CALLS_AHEAD: Final = 128
"""For how many calls like the present one is taken ahead, and for how many at least."""
LEAST_AHEAD: Final = 4
_SMALLEST: Final = 64
_LEASED_CALLS: Final = 0xFFFF
_MOST_AHEAD: Final = 1 << 38
FULL: Final = 1 << 63
"""A word that has no room for more: what is given back then goes to the host."""


class Count:
    """One budget in one process: its name, its limit, and the purse of its present period."""

    __slots__ = ("crowd", "known", "least", "limit", "name", "purse")

    def __init__(self, name: str, limit: float, least: float, *, crowd: bool) -> None:
        """``limit`` ``NEVER`` is none; ``least``: the lowest that others hold the same name to.

        ``crowd``: the name came from a client.
        """
        self.name = name
        self.limit = limit
        self.least = min(least, limit)
        self.crowd = crowd
        self.known = not crowd
        self.purse = Purse(self, -1.0)


class Purse:
    """What a process has ahead of one count since it last started.

    Whoever sets something aside from it takes that, and a call, out of ``word`` and then stores
    ``word`` in ``unspent``; there must be as much, and the wall clock before ``end``.
    """

    __slots__ = ("back", "calls", "count", "end", "leased", "over", "since", "unspent", "word")

    def __init__(self, count: Count, since: float) -> None:
        self.count = count
        self.since = since
        """-1: nobody has asked the host yet."""
        self.end = 0.0
        self.word = 0
        self.unspent: memoryview[int] | list[int] = [0]
        self.leased = self.over = False
        self.back = self.calls = 0
        """Tokens, and calls that never were, which the host must hear of."""


class Purses:
    """All counts as one process uses them; bounded."""

    deadline: float = NO_DEADLINE
    filed_at: float = 0.0

    def __init__(
        self,
        quotas: Quotas,
        timers: Timers,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._quotas = quotas
        self._timers = timers
        self._clock = clock
        self._wall = wall
        self._counts: dict[str, Count] = {}
        self._out: set[Purse] = set()

    def count(self, name: str, limit: float, least: float = NEVER, *, crowd: bool) -> Count:
        """The count of a name.  Under two limits it is two, of which one at most holds a purse."""
        if len(self._counts) >= MOST_NAMES:
            self._counts = {p.count.name: p.count for p in self._out if not p.over}
        found = self._counts.get(name)
        if found is None or found.limit != limit:
            found = self._counts[name] = Count(name, limit, least, crowd=crowd)
        return found

    def take(self, count: Count, span: Span, amount: int) -> float | None:
        """Set ``amount`` aside at the host; ``None``, or how much is spent already: too much.

        ``count.purse`` is then the one of the present period.  Raises ``Shed``.
        """
        purse, now = count.purse, self._wall()
        ahead = count.known and (purse in self._out or len(self._out) < MOST_PURSES)

        def change(quota: Quota) -> tuple[bool, int, Quota]:
            cells = quota.cells
            _bring_in(quota, purse)
            if cells[SINCE] < span.start:
                cells[:3] = span.start, 0.0, 0.0
                quota.void()
            cells[CHANGED_AT] = now
            if cells[USED] + amount > count.limit:
                return False, -1, quota
            cells[USED] += amount
            cells[CALLS_LET_IN] += 1
            return True, self._ahead(quota, count, amount) if ahead else -1, quota

        taken, more, quota = self._quotas.update(count.name, change, crowd=count.crowd)
        self._told(purse, quota, more)
        count.purse.end = span.end
        count.known = True
        return None if taken else quota.cells[USED]

    def in_use(self, count: Count) -> float:
        """What is really spent and set aside, without what anybody holds ahead; raises ``Shed``."""
        found = self._quotas.look(count.name, crowd=count.crowd)
        return 0.0 if found is None else found.spent()[USED]

    def settle(self, purse: Purse, back: int) -> None:
        """Give back what was not spent of what was set aside (less than 0: more was spent)."""
        if purse.over or not back:
            return
        word = purse.word + (back << TOKENS_AT)
        if purse.leased and 0 <= word < FULL:
            purse.word = word
            purse.unspent[0] = word
        else:
            purse.back += back
            self._tell(purse)

    def undo(self, purse: Purse, amount: int) -> None:
        """The call was not let in after all: it is as if it had never come."""
        if purse.over:
            return
        if purse.leased and purse.word & CALLS != CALLS:
            purse.word += amount << TOKENS_AT | ONE_CALL
            purse.unspent[0] = purse.word
        else:
            purse.back += amount
            purse.calls += 1
            self._tell(purse)

    def expire(self) -> None:
        """Give back what purses hold; what the host cannot take now is tried again."""
        self.deadline = NO_DEADLINE
        out, self._out = self._out, set()
        for purse in out:
            if not purse.over and (purse.leased or purse.back or purse.calls):
                self._give_back(purse)

    # -- at the host ------------------------------------------------------------------------------

    def _tell(self, purse: Purse) -> None:
        """A call gave something back where no purse holds it: the host hears of it now."""
        count = purse.count
        ahead = not count.crowd and (purse in self._out or len(self._out) < MOST_PURSES)
        self._give_back(purse, purse.back if ahead else 0)

    def _give_back(self, purse: Purse, like: int = 0) -> None:
        """Tell the host everything; ``like``: more will be given back, about as much each time."""
        now = self._wall()

        def change(quota: Quota) -> tuple[int, Quota]:
            if not _bring_in(quota, purse):
                return -1, quota
            quota.cells[CHANGED_AT] = now
            plenty = like > 0 and self._part(quota, purse.count) >= LEAST_AHEAD * like
            return _lease(quota, 0) if plenty else -1, quota

        try:
            more, quota = self._quotas.update(purse.count.name, change, crowd=purse.count.crowd)
        except Shed:
            self._note(purse)
            return
        self._told(purse, quota, more)

    def _part(self, quota: Quota, count: Count) -> float:
        """The most that one process may take ahead."""
        used = quota.cells[USED]
        limit = count.least if used < count.least else count.limit
        return (limit - used) / (PART * self._quotas.sharers)

    def _ahead(self, quota: Quota, count: Count, amount: int) -> int:
        """Take something ahead if there is plenty; answers how much, or -1."""
        least = max(amount, _SMALLEST)
        more = int(min(self._part(quota, count), CALLS_AHEAD * least, _MOST_AHEAD))
        return -1 if more < LEAST_AHEAD * least else _lease(quota, more)

    def _told(self, purse: Purse, quota: Quota, more: int) -> None:
        """The update came to pass; the purse has ``more`` now (-1: it holds nothing)."""
        since = quota.cells[SINCE]
        if purse.since != since:
            if purse.since >= 0:
                purse.over = True
                purse.leased, purse.word = False, 0
                self._out.discard(purse)
                count = purse.count
                purse = Purse(count, since)
                count.purse = purse
            purse.since = since
        purse.back = purse.calls = 0
        purse.unspent = quota.unspent
        purse.leased, purse.word = more >= 0, 0
        if more >= 0:
            purse.word = more << TOKENS_AT | _LEASED_CALLS << 8 | quota.number
            purse.unspent[0] = purse.word
            self._note(purse)

    def _note(self, purse: Purse) -> None:
        """Have what a purse holds given back soon."""
        self._out.add(purse)
        if self.deadline == NO_DEADLINE:
            now = self._clock()
            self.deadline = now + PURSE_S
            self._timers.add(self, now)


def _bring_in(quota: Quota, purse: Purse) -> bool:
    """Credit what the dead and this purse had left; false: the purse is of an earlier start."""
    cells = quota.cells
    used, calls = cells[USED] - quota.lost_tokens, cells[CALLS_LET_IN] - quota.lost_requests
    if purse.leased and (quota.requests or quota.tokens) and quota.number == purse.word & 0xFF:
        used -= purse.word >> TOKENS_AT
        calls -= (purse.word & CALLS) >> 8
        quota.lease(0, 0)
    present = cells[SINCE] == purse.since
    if present:
        used -= purse.back
        calls -= purse.calls
    cells[USED], cells[CALLS_LET_IN] = max(used, 0.0), max(calls, 0.0)
    return present


def _lease(quota: Quota, tokens: int) -> int:
    """Take tokens and calls ahead, unless another purse of this process holds some; -1: it does."""
    if quota.requests or quota.tokens:
        return -1
    quota.cells[USED] += tokens
    quota.cells[CALLS_LET_IN] += _LEASED_CALLS
    quota.lease(_LEASED_CALLS, tokens)
    return tokens
