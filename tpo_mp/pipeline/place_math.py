"""How many calls a backend answers at a time, judged by how it answers.

One window of samples after the other: how long replies took to begin (whole ones: to come), against
how long they take when the backend has room::

    slow    mean / best, over streams and whole replies apart, weighed by their number
    next    limit x (tolerance / slow, at least 1/2, at most 1) + sqrt(limit)

A limit rises only when it held calls back, and falls half of the way at a time, so that it settles
where replies are ``tolerance`` times as slow as the best, and the square root more.  For a backend
that answers k at a time and lets others wait, that is about ``tolerance x k``: it is always busy.
A window with overload answers or timeouts (more than one in 50) takes a fifth off instead, and
for a while after that the limit rises by ones.

The best is only known where the backend has room, so when the limit holds calls back, or all is
slower than tolerated, a *probe* now and then lowers it to a part, waits until the calls from before
are gone, and takes what it then measures for the best.  Once that is known, at most a twentieth of
the time is probes.

Where the bounds say ``waits``, there is no limit (0) until a backend answers overload, and how long
it takes says nothing.  From then on calls are counted, a window with overload takes a fifth off
what is under way, and others raise it again, the faster the longer overload is past; when nobody
had to wait for ``CALM_S``, there is no limit any more.  If a limit that fell costs answers for two
windows and there is overload all the same, fewer calls are no help (one model of many is out of its
quota, say), and it is let alone for a minute.

Invariants: the limit stays in its bounds; the same states and windows lead to the same limits.
Known weakness: a window is one mean, so a change in what is asked (longer prompts, another model)
looks like a slower backend until the next probe.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Final, NamedTuple

WINDOW_S: Final = 0.5
LEAST_SAMPLES: Final = 10
MOST_SAMPLES: Final = 500
MANY: Final = 1_000_000
"""Calls are counted, and never too many."""
FEW_LOST: Final = 0.02
CUT: Final = 0.8
CAREFUL_S: Final = 5.0
"""After a cut the limit rises by one a window, by two after so long, and so on."""
FIRST_PROBE_S: Final = 2.0
MOST_PROBE_S: Final = 60.0
PROBE_PART: Final = 20
EARLY_PART: Final = 8
"""The same for the first ones."""
NEWS_PART: Final = 2
"""The same while the best becomes better from probe to probe."""
NEWS: Final = 0.75
LONGEST_PROBE_S: Final = 30.0
"""A probe that saw too little by then leaves the best as it was."""
_LEAST_OF_KIND: Final = 5
CALM_S: Final = 60.0
"""Without overload and without anybody who waits, after which no limit is needed."""
HELPLESS: Final = 0.6
"""Part of the answers that is left when a limit that fell is no help."""
HELPLESS_S: Final = 60.0


class LimitBounds(NamedTuple):
    """What the configuration says."""

    start: int = 16
    least: int = 1
    most: int = 1000
    tolerance: float = 1.5
    waits: bool = False
    """There is no limit before the first overload."""


class LimitState(NamedTuple):
    """What all processes know of one backend's limit; instants are CLOCK_MONOTONIC, 0 is never.

    ``resume`` is the limit to go back to after a probe: above 0 while calls from before it end,
    below 0 while it measures.  ``probe_at`` is when the next step of a probe is due.

    Where a limit waits for overload, ``first_s`` is how many answers a second there were when it
    began to fall (0: it does not; below 0: the last window doubts that this helps), and before
    ``probe_at`` it does not fall.
    """

    limit: float = 0.0
    judged_at: float = 0.0
    lost_at: float = 0.0
    resume: float = 0.0
    first_s: float = 0.0
    whole_s: float = 0.0
    probe_at: float = 0.0
    probe_every_s: float = 0.0


class LimitWindow(NamedTuple):
    """What was seen since the last judgement, by all processes."""

    firsts: float = 0.0
    first_sum_s: float = 0.0
    wholes: float = 0.0
    whole_sum_s: float = 0.0
    lost: float = 0.0
    full: float = 0.0

    @property
    def seen(self) -> float:
        """Tries that say something."""
        return self.firsts + self.wholes + self.lost

    @property
    def mean_s(self) -> float:
        """Of all samples."""
        n = self.firsts + self.wholes
        return (self.first_sum_s + self.whole_sum_s) / n if n else 0.0


def begun(bounds: LimitBounds, now: float) -> LimitState:
    """The state before anything is known; at the first overload, where it waits for that."""
    if bounds.waits:
        return LimitState(limit=float(MANY), judged_at=now, lost_at=now)
    return LimitState(
        limit=_within(bounds.start, bounds),
        judged_at=now,
        probe_at=now,
        probe_every_s=FIRST_PROBE_S,
    )


def due(state: LimitState, window: LimitWindow, now: float) -> bool:
    """Whether enough was seen to judge."""
    if state.resume > 0:
        return now >= state.probe_at
    if state.resume < 0 and now >= state.judged_at + LONGEST_PROBE_S:
        return True
    half = 0.0 if state.limit >= MANY else state.limit / 2
    enough = min(max(half, LEAST_SAMPLES), MOST_SAMPLES)
    return now >= state.judged_at + WINDOW_S and window.seen >= enough


def judged(
    state: LimitState, window: LimitWindow, bounds: LimitBounds, held: int, now: float
) -> LimitState:
    """The next state; ``held`` is how many places are taken now."""
    if bounds.waits:
        return _of_overload(state, window, bounds, held, now)
    state = state._replace(judged_at=now)
    if state.resume > 0:  # calls from before the probe: they say nothing
        return state._replace(resume=-state.resume)
    if state.resume < 0:
        return _probed(state, window, bounds, now)
    state = _with_best(state, window)
    if window.lost > FEW_LOST * window.seen:
        return state._replace(limit=_within(state.limit * CUT, bounds), lost_at=now)
    slow = slowness(state, window)
    limited = window.full > 0
    if now >= state.probe_at and (limited or slow > bounds.tolerance):
        return _probing(state, window, bounds, held, now)
    rise = min(sqrt(state.limit), max((now - state.lost_at) / CAREFUL_S, 1.0))
    target = state.limit * min(max(bounds.tolerance / slow, 0.5), 1.0) + rise
    if target > state.limit:
        limit = target if limited else state.limit
    else:  # not held back: it is not the limit that fills the backend
        limit = (state.limit + target) / 2 if limited or held > state.limit / 2 else state.limit
    return state._replace(limit=_within(limit, bounds))


def _of_overload(
    state: LimitState, window: LimitWindow, bounds: LimitBounds, held: int, now: float
) -> LimitState:
    """The next state of a limit that only overload brings about."""
    good = (window.firsts + window.wholes) / max(now - state.judged_at, 1e-3)
    state = state._replace(judged_at=now)
    if window.lost > FEW_LOST * window.seen:
        before, doubted = abs(state.first_s), state.first_s < 0
        state = state._replace(lost_at=now)
        if now < state.probe_at:
            return state
        helpless = before > 0 and good < HELPLESS * before
        if helpless and doubted:  # a single such window may be one in which the machine stood still
            return state._replace(limit=float(MANY), first_s=0.0, probe_at=now + HELPLESS_S)
        limit = _within(min(state.limit, max(held, 1)) * CUT, bounds)
        return state._replace(limit=limit, first_s=-before if helpless else before or good)
    state = state._replace(first_s=0.0)
    if not window.full:
        return state._replace(limit=0.0) if now >= state.lost_at + CALM_S else state
    # Slowly where overload was, and the faster the longer none came: each look costs refusals.
    rise = min(sqrt(state.limit), ((now - state.lost_at) / CAREFUL_S) ** 2)
    return state._replace(limit=min(state.limit + rise, float(MANY)))


def slowness(state: LimitState, window: LimitWindow) -> float:
    """How many times as long as the best replies took."""
    total = weight = 0.0
    for n, took_s, best_s in (
        (window.firsts, window.first_sum_s, state.first_s),
        (window.wholes, window.whole_sum_s, state.whole_s),
    ):
        if n and best_s > 0:
            total += took_s / best_s
            weight += n
    return total / weight if weight else 1.0


def _with_best(state: LimitState, window: LimitWindow) -> LimitState:
    return state._replace(
        first_s=_best(state.first_s, window.firsts, window.first_sum_s),
        whole_s=_best(state.whole_s, window.wholes, window.whole_sum_s),
    )


def _best(best_s: float, n: float, sum_s: float) -> float:
    """A better mean pulls it down by a part, because it may be luck."""
    if n < _LEAST_OF_KIND:
        return best_s
    mean_s = sum_s / n
    if not best_s:
        return mean_s
    return best_s + 0.3 * (mean_s - best_s) if mean_s < best_s else best_s


def _probing(
    state: LimitState, window: LimitWindow, bounds: LimitBounds, held: int, now: float
) -> LimitState:
    part = ceil(min(state.limit, max(held, 1)) / (2 * bounds.tolerance))
    return state._replace(
        limit=_within(part, bounds),
        resume=state.limit,
        probe_at=now + max(2 * window.mean_s, WINDOW_S),
    )


def _probed(state: LimitState, window: LimitWindow, bounds: LimitBounds, now: float) -> LimitState:
    before = state
    if window.firsts >= _LEAST_OF_KIND:
        state = state._replace(first_s=window.first_sum_s / window.firsts)
    if window.wholes >= _LEAST_OF_KIND:
        state = state._replace(whole_s=window.whole_sum_s / window.wholes)
    took_s = 2 * (now - state.probe_at) + WINDOW_S
    every_s = min(2 * state.probe_every_s, MOST_PROBE_S)
    part = PROBE_PART if every_s == MOST_PROBE_S else EARLY_PART
    if state.first_s < NEWS * before.first_s or state.whole_s < NEWS * before.whole_s:
        every_s, part = FIRST_PROBE_S, NEWS_PART  # the best may be better yet
    return state._replace(
        limit=_within(-state.resume, bounds),
        resume=0.0,
        probe_every_s=every_s,
        probe_at=now + max(every_s, part * took_s),
    )


def _within(limit: float, bounds: LimitBounds) -> float:
    return float(min(max(limit, bounds.least), max(bounds.most, bounds.least)))
