"""Time for simulated answers: one alarm, and the pace that follows a schedule.

A schedule is drawn as it is used: each step is a deadline and how many tokens it lets go.
Deadlines are absolute, so lateness never adds up; steps that are due together go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from .timer import NEVER, MicroTimer
from .timing import EVERYTHING, Asked, Pace

Step: TypeAlias = tuple[float, int]
"""A deadline in monotonic seconds, and the tokens that may go then."""


class Alarm:
    """Calls back once; see ``source.Later``."""

    __slots__ = ("_then", "_timer", "stopped")

    def __init__(self, timer: MicroTimer, then: Callable[[], None]) -> None:
        self._timer = timer
        self._then: Callable[[], None] | None = then
        self.stopped = False

    @classmethod
    def set(cls, timer: MicroTimer, at: float, then: Callable[[], None]) -> Callable[[], None]:
        """Ring at ``at``; what is answered stops it."""
        alarm = cls(timer, then)
        timer.add(at, alarm)
        return alarm.stop

    def stop(self) -> None:
        """Never ring."""
        if self._then is not None:
            self._then = None
            self.stopped = True
            self._timer.drop()

    def due(self, now: float) -> float:  # noqa: ARG002 - an alarm is only late
        """Ring."""
        then, self._then = self._then, None
        if then is not None:
            then()
        return NEVER


class SchedulePace:
    """Follows the steps of a schedule; when they end, everything may go.

    ``chunks`` says how many tokens each event has, none: one each.
    """

    __slots__ = ("_at", "_ends_at", "_filed", "_late", "_release", "_steps", "_timer", "_tokens",
                 "chunks", "stopped")  # fmt: skip

    def __init__(
        self, timer: MicroTimer, steps: Iterator[Step], chunks: Iterator[int] | None = None
    ) -> None:
        self._timer = timer
        self._steps = steps
        self.chunks = chunks
        self._at = NEVER
        self._tokens = 0
        self._ends_at = NEVER
        self._late: Callable[[], None] | None = None
        self._release: Callable[[int], None] | None = None
        self._filed = False
        self.stopped = False

    def limit(self, ends_at: float, late: Callable[[], None]) -> None:
        """Call ``late`` once if it has not let everything go by ``ends_at``; before ``begin``.

        A schedule knows when its next step is, so its end needs no alarm of its own.
        """
        self._ends_at, self._late = ends_at, late

    def begin(self, release: Callable[[int], None]) -> None:
        """Wait for the first step."""
        self._release = release
        first = next(self._steps, None)
        if first is None:
            self._late = None
            release(EVERYTHING)
            return
        self._at, self._tokens = first
        self._filed = True
        self._timer.add(min(self._at, self._ends_at), self)

    def stop(self) -> None:
        """Follow it no further."""
        self._release = self._late = None
        self.stopped = True
        if self._filed:
            self._filed = False
            self._timer.drop()

    def due(self, now: float) -> float:
        """Release what is due, and say when the next step is."""
        self._filed = False
        if self._at > self._ends_at:
            return self._ended()
        until = min(now, self._ends_at)
        deadline, tokens = self._at, self._tokens
        for step in self._steps:
            deadline, more = step
            if deadline > until:
                self._at, self._tokens = step
                break
            tokens += more
        else:
            deadline, tokens = NEVER, EVERYTHING
            self._late = None  # what is left is up to the client
        if self._release is not None:
            self._release(tokens)
        if self._release is None:
            return NEVER
        self._filed = deadline != NEVER
        return min(deadline, self._ends_at) if self._filed else NEVER

    def _ended(self) -> float:
        """The time is up before the next step is."""
        late, self._late = self._late, None  # kept once: it holds the whole answer
        if late is not None:
            late()
        return NEVER


class LimitedPace:
    """Another pace, and ``late()`` once if that has not let everything go by ``ends_at``."""

    __slots__ = ("_ends_at", "_filed", "_late", "_pace", "_release", "_timer", "stopped")

    def __init__(
        self, pace: Pace, timer: MicroTimer, ends_at: float, late: Callable[[], None]
    ) -> None:
        self._pace = pace
        self._timer = timer
        self._ends_at = ends_at
        self._late: Callable[[], None] | None = late
        self._release: Callable[[int], None] | None = None
        self._filed = False
        self.stopped = False

    def begin(self, release: Callable[[int], None]) -> None:
        """Begin the other one, with the alarm set before it may be through."""
        self._release = release
        self._filed = True
        self._timer.add(self._ends_at, self)
        self._pace.begin(self._released)

    def stop(self) -> None:
        """Stop both."""
        self._quiet()
        self._release = None
        self._pace.stop()

    def due(self, now: float) -> float:  # noqa: ARG002 - an end is only late
        """The time is up."""
        self._filed = False
        late, self._late = self._late, None
        if late is not None:
            late()
        return NEVER

    def _released(self, tokens: int) -> None:
        if tokens >= EVERYTHING:
            self._quiet()  # what is left is up to the client
        if self._release is not None:
            self._release(tokens)

    def _quiet(self) -> None:
        self._late = None
        self.stopped = True
        if self._filed:
            self._filed = False
            self._timer.drop()


def limited(pace: Pace, timer: MicroTimer, ends_at: float, late: Callable[[], None]) -> Pace:
    """A pace that calls ``late()`` once if it has not let everything go by ``ends_at``."""
    if isinstance(pace, SchedulePace):
        pace.limit(ends_at, late)
        return pace
    return LimitedPace(pace, timer, ends_at, late)


class FixedTiming:
    """The same first wait and the same gap for every call."""

    def __init__(self, timer: MicroTimer, first_s: float, gap_s: float) -> None:
        self._timer = timer
        self._first_s = first_s
        self._gap_s = gap_s

    def pace(self, asked: Asked) -> SchedulePace:
        """A token per gap, counted from the first wait's end."""
        first_at = asked.arrived_at + self._first_s * asked.factor
        gap_s = self._gap_s * asked.factor
        return SchedulePace(self._timer, SteadySteps(first_at, gap_s, asked.tokens or 1))


class SteadySteps:
    """A token per gap, the first one at ``first_at``; a generator is four times as large."""

    __slots__ = ("_first_at", "_gap_s", "_number", "_tokens")

    def __init__(self, first_at: float, gap_s: float, tokens: int) -> None:
        self._first_at = first_at
        self._gap_s = gap_s
        self._number = 0
        self._tokens = tokens

    def __iter__(self) -> SteadySteps:
        return self

    def __next__(self) -> Step:
        number = self._number
        if number >= self._tokens:
            raise StopIteration
        self._number = number + 1
        return self._first_at + self._gap_s * number, 1
