"""The world as a feature sees it, held still: clock, timers, seeded random, silent metrics.

Metrics, log and store take everything and say nothing; a test that cares brings its own.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import structlog

from tpo_mp.config.prices import Prices
from tpo_mp.ports import Cells, Env, Timed
from tpo_mp.types import STAGES, Call, Quota, QuotaReading, QuotaUse

from .fake_scores import FakeScores

T = TypeVar("T")


class FakeWorld:
    """A clock and its timers; ``env`` is what a feature gets."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.filed: list[Timed] = []
        self.rooms = {stage: FakeRoom() for stage in STAGES}
        self.scores = FakeScores()
        self.env = Env(
            clock=lambda: self.now,
            random=random.Random(seed),
            metrics=SilentMetrics(),
            log=structlog.get_logger(),
            store=EmptyStore(),
            timers=self,
            rooms=self.rooms,
            ledger=FakeLedger(),
            quotas=FakeQuotas(),
            live=FakeLive(),
            journal=FakeJournal(),
            shares=FakeShares(),
            scores=self.scores.seat(0),
            prices=Prices(),
        )

    def add(self, entry: Timed, now: float) -> None:
        """File an entry, as ``http.wheel`` does."""
        self.filed.append(entry)

    def advance(self, seconds: float) -> None:
        """Move the clock and expire what is due."""
        self.now += seconds
        due = [entry for entry in self.filed if entry.deadline <= self.now]
        self.filed = [entry for entry in self.filed if entry.deadline > self.now]
        for entry in due:
            entry.deadline = float("inf")
            entry.expire()


class FakeRoom:
    """A waiting room with as many places as a test leaves it."""

    def __init__(self, places: int = 1000) -> None:
        self.places = places

    def enter(self) -> bool:
        """Take a place, if one is left."""
        if self.places == 0:
            return False
        self.places -= 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.places += 1


class SilentSeries:
    """A counter, gauge and histogram at once, kept as one number."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, n: int = 1) -> None:
        """Count."""
        self.value += n

    def set(self, value: float) -> None:
        """Set the level."""
        self.value = value

    def add(self, n: float) -> None:
        """Move the level."""
        self.value += n

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.value += 1


class SilentMetrics:
    """Metrics nobody scrapes."""

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make a counter."""
        return SilentSeries()

    def money(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make a series of money."""
        return self.counter(name, help, **labels)

    def gauge(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make a gauge."""
        return SilentSeries()

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], **labels: str
    ) -> SilentSeries:
        """Make a histogram."""
        return SilentSeries()


class EmptyStore:
    """A store that knows nothing and keeps nothing."""

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None:
        """Find nothing."""
        return None

    async def put(
        self, table: str, key: str, value: bytes, ttl_s: float, wait_s: float = 0.05
    ) -> bool:
        """Keep nothing."""
        return False

    async def post(
        self, table: str, key: str, value: bytes, *, ttl_s: float = 0.0, wait_s: float = 0.05
    ) -> tuple[bytes | None] | None:
        """Be unavailable."""
        return None


class FakeLedger:
    """A ledger of one process, with room for every name."""

    def __init__(self) -> None:
        self.names: dict[str, Cells] = defaultdict(lambda: (0.0, 0.0, 0.0, 0.0))

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Count one more."""
        return int(self.update(name, lambda c: (c[0] + 1, *c[1:]), crowd=crowd)[0])

    def update(self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False) -> Cells:
        """Change a name's numbers."""
        self.names[name] = after = change(self.names[name])
        return after

    def look(self, name: str, *, crowd: bool = False) -> Cells:
        """A name's numbers."""
        return self.names.get(name, (0.0, 0.0, 0.0, 0.0))

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> FakeWatch:
        """Look at names."""
        return FakeWatch(self, (*names, *crowd))


class FakeWatch:
    """Names of a fake ledger."""

    def __init__(self, ledger: FakeLedger, names: Sequence[str]) -> None:
        self._ledger = ledger
        self._names = names
        self._seen: tuple[Cells, ...] = ()

    def peek(self) -> tuple[Cells, ...]:
        """Their numbers; the same tuple while nothing has changed."""
        found = tuple(self._ledger.names[name] for name in self._names)
        if found != self._seen:
            self._seen = found
        return self._seen


class FakeQuotas:
    """The quotas of one process that nobody shares, with room for every name."""

    def __init__(self) -> None:
        self.names: dict[str, Quota] = defaultdict(Quota)
        self.crowd: dict[str, bool] = {}
        self.sharers = 1

    def update(self, name: str, change: Callable[[Quota], T], *, crowd: bool = False) -> T:
        """Change what is used of a name."""
        self.crowd[name] = crowd
        before = self.names[name]
        quota = Quota()
        for field in Quota.__slots__:
            setattr(quota, field, getattr(before, field))
        quota.cells = list(before.cells)
        answer = change(quota)
        self.names[name] = quota
        return answer

    def look(self, name: str, *, crowd: bool = False) -> QuotaUse | None:
        """What is used of a name that was used before."""
        quota = self.names.get(name)
        if quota is None:
            return None
        left = quota.unspent[0]
        if left & 0xFF != quota.number:
            left = quota.tokens << 24 | quota.requests << 8
        return QuotaUse(tuple(quota.cells), left >> 8 & 0xFFFF, left >> 24)

    @property
    def rows(self) -> int:
        """As many as there are names."""
        return len(self.names)

    def readings(self, first: int, rows: int) -> Iterator[QuotaReading]:
        """Each name, in the order they came."""
        for row, name in list(enumerate(self.names))[first : first + rows]:
            used = self.look(name)
            assert used is not None
            yield QuotaReading(row, name, used.cells, self.names[name].held, *used[1:])


class FakeLive:
    """A live text of one process."""

    def __init__(self) -> None:
        self.version = 0
        self.text = b""

    def read(self) -> tuple[int, bytes]:
        """Version and text."""
        return self.version, self.text

    def replace(self, seen: int, text: bytes) -> bool:
        """Replace it, unless it is another version."""
        if seen != self.version:
            return False
        self.version, self.text = seen + 1, text
        return True


class FakeJournal:
    """A journal of one process, with room for every entry."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def append(self, entry: bytes) -> bool:
        """Keep it."""
        self.kept.append(entry)
        return True

    def entries(self) -> Iterator[bytes]:
        """All of them."""
        return iter(list(self.kept))

    def clear(self) -> None:
        """Forget them."""
        self.kept.clear()


class FakeShares:
    """What the seats of one process hold; ``seat`` views of the same lines are other processes."""

    def __init__(self, lines: dict[str, dict[int, int]] | None = None, seat: int = 0) -> None:
        self.lines: dict[str, dict[int, int]] = {} if lines is None else lines
        self.seat = seat

    def of(self, name: str) -> FakeShare:
        """A line."""
        return FakeShare(self.lines.setdefault(name, {}), self.seat)

    def other(self, seat: int) -> FakeShares:
        """Another process's view."""
        return FakeShares(self.lines, seat)

    def die(self, seat: int) -> None:
        """A process is reaped."""
        for line in self.lines.values():
            line.pop(seat, None)


class FakeShare:
    """One line; the word of seat -1 is what is wanted, that of seat -2 the limit."""

    def __init__(self, words: dict[int, int], seat: int) -> None:
        self.words = words
        self.seat = seat

    @property
    def held(self) -> int:
        """What this seat holds."""
        return self.words.get(self.seat, 0)

    @property
    def wanted(self) -> int:
        """How many wait."""
        return self.words.get(-1, 0)

    @wanted.setter
    def wanted(self, n: int) -> None:
        self.words[-1] = n

    @property
    def limit(self) -> int:
        """How much there is."""
        return self.words.get(-2, 0)

    @limit.setter
    def limit(self, n: int) -> None:
        self.words[-2] = n

    def total(self) -> int:
        """What all seats hold."""
        return sum(n for seat, n in self.words.items() if seat >= 0)

    def take(self, n: int, limit: int) -> int:
        """Take what is left."""
        taken = max(min(n, limit - self.total()), 0)
        self.add(taken)
        return taken

    def add(self, n: int) -> None:
        """Hold more."""
        self.words[self.seat] = self.held + n

    def give(self, n: int) -> None:
        """Hold less."""
        assert n <= self.held, "more given back than held"
        self.words[self.seat] = self.held - n


def make_call(body: bytes, *, model: str = "echo", stream: bool = False, **more: Any) -> Call:
    """Make a call with a fixed id."""
    call = Call(id="call-1", model=model, body=body, stream=stream, started_at=1000.0)
    for name, value in more.items():
        setattr(call, name, value)
    return call
