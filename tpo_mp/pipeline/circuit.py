"""What a circuit breaker knows and how it changes; four numbers in the ledger, exact on the host.

::

    cells 0  tally    generation * 2^28 + half * 2^27 + probe failures * 2^20 + failures * 2^10
                      + passed * 2^5 + missed
          1  since    when it came into the state it is in (CLOCK_MONOTONIC; 0: it never changed)
          2  until    0: closed; else the moment from which it may be probed
          3  prober   0: nobody; else who holds the one permit to probe (``owner_number``)

              failures in a row >= threshold                 its time is over: one permit
    closed ------------------------------------> open ----------------------------------> half open
      ^  ^                                        ^ |                                        |  |
      |  +--- enough probes passed ---------------|-+----------------------------------------+  |
      +------ reset by hand ----------------------+---- too many probes missed: waits longer ---+

The permit is the state ``half`` with a prober and ``until`` = when it lapses; given back, ``until``
is now.  Every change of state and every permit is a new generation, so that what a call found that
began before it says nothing about what came after.

The wait before a probe is ``open_s`` times 2^min(N, 6); N are the probes that failed since one
passed.  So the first opening waits once, after the k-th failed probe 2^k times.

Invariants: these functions are pure and total; whoever applies them does it in one update of the
ledger, after ``generation`` was compared.
Known weakness: generations repeat after 2^25 changes.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from zlib import crc32

from tpo_mp.ports import Cells

MAX_DOUBLINGS: Final = 6
MAX_FAILURES: Final = 1000
MAX_PROBES: Final = 20
_MOST_FAILURES: Final = (1 << 10) - 1
_MOST_PROBE_FAILURES: Final = (1 << 7) - 1
_GENERATIONS: Final = 1 << 25
_SEATS: Final = 1 << 10


class State(StrEnum):
    """What a circuit lets through: everything, one probe at a time, nothing."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Rules(NamedTuple):
    """When a circuit opens and closes."""

    threshold: int
    """Failures in a row that open it."""
    open_s: float
    probes: int
    """Probes of one trial."""
    success_rate: float
    """Share of them that must pass."""
    permit_s: float
    """After which a permit is no longer its prober's."""

    @property
    def needed(self) -> int:
        """Probes that must pass before it closes."""
        return max(math.ceil(self.probes * self.success_rate - 1e-9), 1)


class RuleOptions(Protocol):
    """The options of whoever configures them."""

    @property
    def threshold(self) -> int: ...
    @property
    def open_s(self) -> float: ...
    @property
    def probes(self) -> int: ...
    @property
    def success_rate(self) -> float: ...
    @property
    def permit_s(self) -> float: ...


def rules_of(options: RuleOptions) -> Rules:
    """The rules that options say."""
    return Rules(
        options.threshold, options.open_s, options.probes, options.success_rate, options.permit_s
    )


class Circuit(NamedTuple):
    """The four numbers in words."""

    generation: int = 0
    half: bool = False
    probe_failures: int = 0
    failures: int = 0
    passed: int = 0
    missed: int = 0
    since: float = 0.0
    until: float = 0.0
    prober: int = 0

    @property
    def calm(self) -> bool:
        """Whether it lets everything through and has nothing to forget."""
        return not self.until and not self.failures

    def state(self, now: float) -> State:
        """What it is; open no longer once it may be probed."""
        if not self.until:
            return State.CLOSED
        return State.HALF_OPEN if self.half or self.until <= now else State.OPEN


def unpack(cells: Cells) -> Circuit:
    """Read it off the ledger."""
    tally = int(cells[0])
    return Circuit(
        tally >> 28,
        bool(tally >> 27 & 1),
        tally >> 20 & 127,
        tally >> 10 & 1023,
        tally >> 5 & 31,
        tally & 31,
        cells[1],
        cells[2],
        int(cells[3]),
    )


def pack(c: Circuit) -> Cells:
    """Write it for the ledger."""
    tally = (
        (c.generation % _GENERATIONS) << 28
        | c.half << 27
        | min(c.probe_failures, _MOST_PROBE_FAILURES) << 20
        | min(c.failures, _MOST_FAILURES) << 10
        | c.passed << 5
        | c.missed
    )
    return (float(tally), c.since, c.until, float(c.prober))


def generation_of(cells: Cells) -> int:
    """The generation alone."""
    return int(cells[0]) >> 28


def wait_s(open_s: float, probe_failures: int) -> float:
    """How long it stays open after so many failed probes."""
    return open_s * float(1 << min(probe_failures, MAX_DOUBLINGS))


def owner_number(seat: int, life: tuple[int, int]) -> int:
    """A worker's process as one number; another process of the same seat has another one."""
    return 1 + seat % _SEATS + _SEATS * crc32(b"%d.%d" % life)


def seat_of(prober: int) -> int:
    """The seat of an owner."""
    return (prober - 1) % _SEATS


# -- changes ----------------------------------------------------------------------------------


def failed(c: Circuit, rules: Rules, now: float) -> Circuit:
    """A call failed while it was closed."""
    more = c._replace(failures=min(c.failures + 1, _MOST_FAILURES))
    return opened(more, rules, now) if more.failures >= rules.threshold else more


def succeeded(c: Circuit) -> Circuit:
    """A call succeeded while it was closed: failures are no longer in a row."""
    return c._replace(failures=0)


def opened(c: Circuit, rules: Rules, now: float) -> Circuit:
    """Let nothing through for a while."""
    return Circuit(
        generation=c.generation + 1,
        probe_failures=c.probe_failures,
        failures=c.failures,
        since=now,
        until=now + wait_s(rules.open_s, c.probe_failures),
    )


def closed(c: Circuit, now: float) -> Circuit:
    """Let everything through, and forget."""
    return Circuit(generation=c.generation + 1, since=now)


def taken(c: Circuit, rules: Rules, now: float, prober: int) -> Circuit:
    """Give the permit to a prober; ``until`` has come, or who had it is dead."""
    return c._replace(
        generation=c.generation + 1,
        half=True,
        since=c.since if c.half else now,
        until=now + rules.permit_s,
        prober=prober,
    )


def given_back(c: Circuit, now: float) -> Circuit:
    """The probe proved nothing: the next may try at once."""
    return c._replace(generation=c.generation + 1, until=now, prober=0)


def probe_passed(c: Circuit, rules: Rules, now: float) -> Circuit:
    """The probe succeeded; enough of them close it."""
    if c.passed + 1 >= rules.needed:
        return closed(c, now)
    return given_back(c._replace(passed=c.passed + 1, probe_failures=0), now)


def probe_failed(c: Circuit, rules: Rules, now: float) -> Circuit:
    """The probe failed; unless the others of its trial can still outweigh it, wait longer."""
    more = c._replace(
        probe_failures=min(c.probe_failures + 1, _MOST_PROBE_FAILURES), missed=c.missed + 1
    )
    if more.missed <= rules.probes - rules.needed:
        return given_back(more, now)
    return opened(more, rules, now)


def benched(c: Circuit, now: float, for_s: float) -> Circuit:
    """Leave it alone for as long as it asked; never shorter than it asked before."""
    return c._replace(since=now, until=max(c.until, now + for_s))
