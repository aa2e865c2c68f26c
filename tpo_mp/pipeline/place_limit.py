"""The limit of a backend whose places nobody counted: all processes measure, one at a time judges.

Each process sums up what it sees and adds it to the host's numbers four times a second, never in a
call's way; whoever finds enough there takes the numbers, judges them (``place_math``) and writes
the new limit into the word that all read when they take places (``Share.limit``).

::

    limit:NAME         limit, judged_at, lost_at, resume         ┐ LimitState
    limit:NAME:best    first_s, whole_s, probe_at, probe_every_s ┘
    limit:NAME:took    firsts, their seconds, wholes, their seconds  ┐ LimitWindow
    limit:NAME:met     lost, full, -, -                              ┘

A limit that waits for overload (``LimitBounds.waits``) is ``idle`` until then: there is none, and
only failures come here.

Invariants: every sample counts once, in whichever process it was seen, and is judged once: the
moment of the last judgement is taken by one.  The state is the host's, so nothing is lost with a
process but a quarter of a second of samples.
Known weakness: a process that dies while it judges loses that window; one that is stopped there
for longer than a window may write over a newer judgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tpo_mp.errors import Shed, TpoError
from tpo_mp.ports import Cells, Env, Share
from tpo_mp.types import NO_DEADLINE

from .place_math import LimitBounds, LimitState, LimitWindow, begun, due, judged

TOLD_S = 0.25
_OVERLOADED = frozenset(
    ("upstream_rate_limited", "upstream_overloaded", "upstream_timeout", "first_byte_timeout")
)
_NOTHING: Cells = (0.0, 0.0, 0.0, 0.0)


class PlaceLimit:
    """One backend's, in one process; ``changed()`` is called when the limit may be another."""

    def __init__(
        self, env: Env, name: str, share: Share, bounds: LimitBounds, changed: Callable[[], None]
    ) -> None:
        self.ledger = env.ledger
        self._clock = env.clock
        self._timers = env.timers
        self._share = share
        self._bounds = bounds
        self._changed = changed
        state = f"limit:{name}"
        self._names = (state, f"{state}:best", f"{state}:took", f"{state}:met")
        self._firsts = self._wholes = self._lost = self._full = 0
        self._first_s = self._whole_s = 0.0
        self._usual_s = 0.0
        self._watching = False
        self.deadline = NO_DEADLINE
        self.filed_at = 0.0
        self._waits = bounds.waits
        self.idle = bounds.waits and not share.limit
        """Whether there is no limit yet, and nobody needs to know how long calls take."""
        if not share.limit and not bounds.waits:
            share.limit = int(begun(bounds, 0.0).limit)

    # -- what calls see -------------------------------------------------------------------------

    def first(self, took_s: float) -> None:
        """A stream's first event came."""
        self._firsts += 1
        self._first_s += took_s
        self._watch()

    def whole(self, took_s: float) -> None:
        """A whole reply came."""
        self._wholes += 1
        self._whole_s += took_s
        self._watch()

    def failed(self, error: BaseException | None, after_s: float, *, stream: bool) -> None:
        """A try failed: for want of room, or with nobody waiting for it any more, or otherwise."""
        if isinstance(error, TpoError) and error.reason in _OVERLOADED:
            # Who says when to come back counts in time, not in calls: that is a breaker's matter.
            if not self._waits or error.retry_after_s is None:
                self._lost += 1
                self._watch()
        elif self.idle:
            return
        elif after_s > 2 * self._usual_s > 0 and _was_left(error):
            # It would have taken longer yet: what is known of it must not be lost, or a backend
            # that all leave would look like one that answers few.
            (self.first if stream else self.whole)(after_s)

    def full(self) -> None:
        """A call had to wait."""
        self._full += 1
        self._watch()

    # -- what is told ---------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            now = self._clock()
            self.deadline = now + TOLD_S
            self._timers.add(self, now)

    def expire(self) -> None:
        """Tell what was seen, and judge if that is enough."""
        self._watching = False
        now = self._clock()
        try:
            window = self._tell()
            self._judge(window, now)
        except Shed:  # another process is in the way: later
            self._watch()
        self._changed()

    def _tell(self) -> LimitWindow:
        """Add this process's samples to the host's; answers all of these."""
        _, _, took_name, met_name = self._names
        took = self.ledger.look(took_name)
        if self._firsts or self._wholes:
            mine = (float(self._firsts), self._first_s, float(self._wholes), self._whole_s)
            took = self.ledger.update(took_name, lambda cells: _sum(cells, mine))
            self._firsts = self._wholes = 0
            self._first_s = self._whole_s = 0.0
        met = self.ledger.look(met_name)
        if self._lost or self._full:
            more = (float(self._lost), float(self._full), 0.0, 0.0)
            met = self.ledger.update(met_name, lambda cells: _sum(cells, more))
            self._lost = self._full = 0
        return LimitWindow(*took, *met[:2])

    def _judge(self, window: LimitWindow, now: float) -> None:
        ledger, share = self.ledger, self._share
        name, best_name, took_name, met_name = self._names
        state = LimitState(*ledger.look(name), *ledger.look(best_name))
        if not state.limit:
            if self._waits and not window.lost:
                share.limit = 0  # else who wrote the state died before it wrote this
                return
            state = begun(self._bounds, now)
            if self._waits:  # what was seen before is of another time
                _taken(ledger.update, took_name)
                _taken(ledger.update, met_name)
        elif not due(state, window, now):
            self._look(state)
            return
        elif not self._claim(state.judged_at, now):
            return
        else:
            met = _taken(ledger.update, met_name)
            window = LimitWindow(*_taken(ledger.update, took_name), *met[:2])
            state = judged(state, window, self._bounds, share.total(), now)
        ledger.update(best_name, lambda _: (state[4], state[5], state[6], state[7]))
        ledger.update(name, lambda _: (state[0], state[1], state[2], state[3]))
        share.limit = int(state.limit)
        self._look(state)

    def _claim(self, judged_at: float, now: float) -> bool:
        """Take the judgement after that one."""
        mine = False

        def claim(cells: Cells) -> Cells:
            nonlocal mine
            mine = cells[1] == judged_at
            return (cells[0], now, cells[2], cells[3]) if mine else cells

        self.ledger.update(self._names[0], claim)
        return mine

    def _look(self, state: LimitState) -> None:
        self._usual_s = max(state.first_s, state.whole_s)
        if state.resume:  # a probe has to end, also if no call comes
            self._watch()


def _was_left(error: BaseException | None) -> bool:
    """Whether nobody waited for it any more."""
    return isinstance(error, asyncio.CancelledError)


def _sum(cells: Cells, more: Cells) -> Cells:
    return (cells[0] + more[0], cells[1] + more[1], cells[2] + more[2], cells[3] + more[3])


def _taken(update: Callable[[str, Callable[[Cells], Cells]], Cells], name: str) -> Cells:
    """The numbers of a name, which begin again at zeros."""
    before = _NOTHING

    def take(cells: Cells) -> Cells:
        nonlocal before
        before = cells
        return _NOTHING

    update(name, take)
    return before
