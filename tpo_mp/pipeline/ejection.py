"""Which backend of several stands out, and for how long it is left out of their choice.

An ejection is a row of the ledger (``outlier:BACKEND``), so all processes of a host see the same::

    cells 0  until   CLOCK_MONOTONIC; 0 or past: it takes part
          1  times   ejections that are not forgotten yet; each makes the next one longer
          2  at      when the row last changed
          3  why     the place of a reason in ``REASONS``

Invariants: these functions are pure; who has nobody to be compared with never stands out, and
neither does one of several that are all alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from tpo_mp.ports import Cells
from tpo_mp.types import TryTally

REASONS: Final = ("", "failures", "slow")
SWEEP_ROW: Final = "outlier:sweep"
"""Cell 0: when somebody last judged."""
TWICE: Final = 2.0
"""So much worse than the others together is a share of failures that stands out."""
MOST_TIMES: Final = 64


class EjectionOptions(Protocol):
    """The options of whoever configures them."""

    @property
    def min_tries(self) -> int: ...
    @property
    def failure_share(self) -> float: ...
    @property
    def slow_factor(self) -> float: ...
    @property
    def slow_floor_s(self) -> float: ...
    @property
    def eject_s(self) -> float: ...
    @property
    def max_eject_s(self) -> float: ...
    @property
    def max_share(self) -> float: ...


class Ejection(NamedTuple):
    """A row in words."""

    until: float = 0.0
    times: int = 0
    at: float = 0.0
    why: str = ""

    def left_s(self, now: float) -> float:
        """For how long it is left out from now on."""
        return max(self.until - now, 0.0)


def row_of(backend: str) -> str:
    """Its name in the ledger."""
    return f"outlier:{backend}"


def unpack_ejection(cells: Cells) -> Ejection:
    """Read it off the ledger."""
    return Ejection(cells[0], int(cells[1]), cells[2], REASONS[int(cells[3]) % len(REASONS)])


def pack_ejection(ejection: Ejection) -> Cells:
    """Write it for the ledger."""
    why = float(REASONS.index(ejection.why))
    return (ejection.until, float(ejection.times), ejection.at, why)


def ejected(
    before: Ejection, why: str, options: EjectionOptions, now: float, jitter: float
) -> Ejection:
    """Leave it out, the longer the more often; ``jitter`` (0 to 1) adds up to a tenth."""
    times = min(before.times + 1, MOST_TIMES)
    for_s = min(options.eject_s * times, options.max_eject_s) * (1 + jitter / 10)
    return Ejection(now + for_s, times, now, why)


def forgiven(before: Ejection, now: float) -> Ejection:
    """It was in order for a while."""
    return Ejection(0.0, max(before.times - 1, 0), now, "")


def stands_out(mine: TryTally, others: Sequence[TryTally], options: EjectionOptions) -> str:
    """Why a backend is worse than the others it is among; empty: it is not, or nobody knows.

    By failures when its share of them is the configured one and twice that of the others together;
    by slowness when its median time to a first byte is so many times the median of theirs.
    """
    if _tries(mine) < options.min_tries:
        return ""
    pool = TryTally()
    for other in others:
        pool = pool.plus(other)
    if _tries(pool) < options.min_tries:
        return ""
    share = mine.bad / _tries(mine)
    if share >= options.failure_share and share >= TWICE * pool.bad / _tries(pool):
        return "failures"
    if options.slow_factor and sum(mine.times) >= options.min_tries <= sum(pool.times):
        took_s, usual_s = mine.quantile_s(0.5) or 0.0, pool.quantile_s(0.5) or 0.0
        if took_s >= max(usual_s * options.slow_factor, options.slow_floor_s):
            return "slow"
    return ""


def has_room(
    backend: str,
    groups: Sequence[Sequence[str]],
    out: Collection[str],
    options: EjectionOptions,
) -> bool:
    """Whether one more may be left out of each group it is in; one of each always stays."""
    for group in groups:
        if backend in group:
            most = min(max(int(len(group) * options.max_share), 1), len(group) - 1)
            if sum(name in out for name in group) >= most:
                return False
    return True


def worst_first(tallies: Mapping[str, TryTally]) -> list[str]:
    """Backends by their share of failures, then by how slow they are."""

    def badness(name: str) -> tuple[float, float]:
        tally = tallies[name]
        return (tally.bad / max(_tries(tally), 1), tally.quantile_s(0.5) or 0.0)

    return sorted(tallies, key=badness, reverse=True)


def _tries(tally: TryTally) -> int:
    return tally.good + tally.bad
