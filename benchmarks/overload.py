"""What an overloaded gateway did, read off the requests of one phase.

All figures are of requests by when they were due, never by when they were answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from .openloop import BROKEN, Shot
from .stats import median

WINDOW_S = 0.25
NEVER = 1e6
"""Stands for endless: a report knows finite numbers only."""
SLOWER = 1.5
"""A recovered p99 may be so many times that of before the overload."""


def good_per_s(shots: Sequence[Shot], secs: float) -> float:
    """Answers a second, of requests due in so many seconds."""
    return sum(shot.good for shot in shots) / secs


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def p99_good_ms(shots: Sequence[Shot]) -> float:
    """Of the answered."""
    return percentile([shot.took_ms for shot in shots if shot.good], 0.99)


def p99_refused_ms(shots: Sequence[Shot]) -> float:
    """Of the refused: a refusal ought to be cheap."""
    return percentile([shot.took_ms for shot in shots if shot.refused], 0.99)


def failed(shots: Sequence[Shot]) -> int:
    """Neither answered, nor told to come later, nor too late by their own deadline."""
    return sum(not (s.good or s.refused or s.status == 504) or s.status == BROKEN for s in shots)


def recovery_s(after: Sequence[Shot], usual_p99_ms: float, secs: float) -> float:
    """How long after the overload until all is as before, and stays so; ``NEVER``: it did not."""
    windows = int(secs / WINDOW_S)
    for begin in range(windows - 1, -1, -1):
        seen = [s for s in after if begin * WINDOW_S <= s.due_s < (begin + 1) * WINDOW_S]
        well = all(s.good for s in seen) and p99_good_ms(seen) <= SLOWER * usual_p99_ms
        if not well:
            return (begin + 1) * WINDOW_S if begin + 1 < windows else NEVER
    return 0.0


def told_off_by(shots: Sequence[Shot]) -> float:
    """How far off ``retry-after`` is: it against the waits of those let in about then, middle.

    1 is the truth, 2 is twice or half; 0 when nobody was refused.
    """
    ratios = []
    for begin in sorted({int(s.due_s / WINDOW_S) for s in shots}):
        seen = [s for s in shots if int(s.due_s / WINDOW_S) == begin]
        told = [s.pause_ms for s in seen if s.refused and s.pause_ms]
        waited = [s.queued_ms for s in seen if s.good and s.queued_ms]
        if told and waited:
            ratios.append(median(told) / median(waited))
    if not ratios:
        return 0.0
    middle = median(ratios)
    return max(middle, 1 / middle)


def share_of_fair(shots: Sequence[Shot], kind: str, capacity: float, secs: float) -> float:
    """A tenant's answers against its fair share: what it asked for, or half of the capacity."""
    mine = [shot for shot in shots if shot.kind == kind]
    fair = min(len(mine), capacity * secs / 2)
    return sum(shot.good for shot in mine) / fair if fair else 0.0


def wait_of_bound(
    shots: Sequence[Shot], kind: str, overdue_s: float, per_s: float, places: int
) -> float:
    """The longest wait of a kind against what is promised it, the worst call.

    A call is overdue after ``overdue_s``; then it is served within ``4 (m + 1)`` places, where
    ``m`` came before it and were still there.  So many come back within the time that they take
    one after the other, and one reply's more: equal calls that began together end together.
    ``NEVER``: one was not served.
    """
    mine = sorted((s for s in shots if s.kind == kind), key=lambda shot: shot.due_s)
    worst = 0.0
    for number, shot in enumerate(mine):
        if not shot.good:
            return NEVER
        overdue_at = shot.due_s + overdue_s
        before = sum(s.due_s + s.queued_ms / 1e3 > overdue_at for s in mine[:number])
        bound_s = overdue_s + (4 * (before + 1) + places) / per_s
        worst = max(worst, shot.queued_ms / 1e3 / bound_s)
    return worst
