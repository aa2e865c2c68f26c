"""One heap of deadlines per worker, met within microseconds.

An event loop waits in whole milliseconds and the shard's wheel in steps of 50.  Here the kernel's
own timer (``timerfd``) wakes the loop; where there is none, the loop's timers do; where the clock
is not the machine's (a test's), the world that owns the clock does.

::

    heap of (deadline, number, entry) ──► earliest ──► timerfd, armed ``_early_s`` before it
                                                           │ readable
              now ≥ deadline: entry.due(now) ◄── the last microseconds are spun away
              and so on until nothing is due, or the turn's time is up

Waking takes a while, so the timer is armed earlier by what waking was seen to take, and the rest
is spun away: at most ``SPIN_S`` at a time, and ``SPIN_SHARE`` of the time in all.

Invariants: nothing is ever due early; a turn ends after ``TURN_S``, so that many due entries do
not hold up the loop; a stopped entry is dropped when it comes up, and all of them when they are
half the heap.

Known weakness: without ``timerfd``, entries are due up to a millisecond late.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from tpo_mp.ports import Env, Histogram, Timers
from tpo_mp.shm.segment import portable

NEVER: Final = float("inf")
TURN_S: Final = 1e-3
SPIN_S: Final = 1e-4
SPIN_SHARE: Final = 0.05
_EARLY_STEP_S: Final = 1e-6
_LEAST_SWEPT: Final = 64
LAG: Final = "tpo_sim_schedule_lag_seconds"
LAG_S: Final = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Bounds of the histogram of what came late."""


_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
"""From ``linux/timerfd.h``; Python itself has the calls from 3.13 on."""


class Entry(Protocol):
    """Something that is due again and again."""

    stopped: bool
    """It is not wanted any more; say so to the timer by ``drop``."""

    def due(self, now: float) -> float:
        """Do what is due; answer the next deadline (monotonic seconds), ``NEVER``: none."""


class Waker(Protocol):
    """Calls ``MicroTimer.turn`` once at an instant or soon after it; ``NEVER``: not at all."""

    def arm(self, at: float) -> None: ...

    def close(self) -> None: ...


class MicroTimer:
    """The deadlines of one worker's simulated answers.

    ``make_waker`` is called in the running loop, when something first waits.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        lag: Histogram,
        make_waker: Callable[[Callable[[], None]], Waker],
    ) -> None:
        self._clock = clock
        self._observe = lag.observe
        self._make_waker = make_waker
        self._waker: Waker | None = None
        self._heap: list[tuple[float, int, Entry]] = []
        self._number = count().__next__
        self._stopped = 0
        self._turning = False
        self._armed_at = NEVER
        self._early_s = 0.0
        self._spin_after = 0.0
        self.users = 0
        """Backends that may still add entries."""

    def add(self, deadline: float, entry: Entry) -> None:
        """Call ``entry.due`` at ``deadline``; an entry is in the heap once at most."""
        heappush(self._heap, (deadline, self._number(), entry))
        if deadline < self._armed_at and not self._turning:
            self._arm(deadline)

    def close(self) -> None:
        """One user less; after the last, the kernel's timer goes when nothing waits."""
        self.users -= 1
        if not self.users and not self._heap:
            self._arm(NEVER)

    def drop(self) -> None:
        """Note that an entry in the heap was stopped."""
        self._stopped += 1
        if self._stopped >= _LEAST_SWEPT and self._stopped * 2 > len(self._heap):
            self._heap = [item for item in self._heap if not item[2].stopped]
            heapify(self._heap)
            self._stopped = 0

    def turn(self) -> None:
        """Do all that is due, for ``TURN_S`` at most, and wait for the rest."""
        clock, observe = self._clock, self._observe
        began_at = clock()
        self._learn(began_at)
        ends_at = began_at + TURN_S
        self._turning = True
        try:
            while self._heap:
                deadline, _, entry = self._heap[0]
                now = clock()
                if now < deadline:
                    if not self._may_spin(deadline, now):
                        break
                    while now < deadline:
                        now = clock()
                heappop(self._heap)
                if entry.stopped:
                    self._stopped -= 1
                    continue
                following = entry.due(now)
                now = clock()
                observe(now - deadline)
                if following != NEVER:
                    heappush(self._heap, (following, self._number(), entry))
                if now > ends_at:
                    break
        finally:
            self._turning = False
            self._arm(self._heap[0][0] if self._heap else NEVER)

    def _arm(self, deadline: float) -> None:
        if deadline == NEVER and self.users <= 0:
            self._armed_at = NEVER
            if self._waker is not None:
                self._waker.close()
                self._waker = None
            return
        if self._waker is None:
            self._waker = self._make_waker(self.turn)
        early_at = deadline - self._early_s
        # Too near to be woken early and not spun away: wait for the very instant.
        self._armed_at = deadline if early_at <= self._clock() else early_at
        self._waker.arm(self._armed_at)

    def _learn(self, now: float) -> None:
        """Follow the median of how late the loop wakes."""
        late_s = now - self._armed_at
        if late_s > self._early_s:
            self._early_s = min(self._early_s + _EARLY_STEP_S, SPIN_S)
        elif late_s >= 0:
            self._early_s = max(self._early_s - _EARLY_STEP_S, 0.0)

    def _may_spin(self, deadline: float, now: float) -> bool:
        """Whether so short a wait may be spun away; what was spun is paid for by waiting."""
        wait_s = deadline - now
        if wait_s > SPIN_S or now < self._spin_after:
            return False
        self._spin_after = deadline + wait_s / SPIN_SHARE
        return True


def _timerfd() -> tuple[Any, Any]:
    """The C library's two calls; raises ``OSError`` where it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        return library.timerfd_create, library.timerfd_settime
    except AttributeError as error:
        raise OSError(str(error)) from error


class KernelWaker:
    """A ``timerfd`` that the loop watches; raises ``OSError`` where there is none."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        create, self._settime = _timerfd()
        self._fd = create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = (ctypes.c_long * 4)()
        self._loop.add_reader(self._fd, turn)

    def arm(self, at: float) -> None:
        """Set the one instant; this also forgets an expiry that nobody has read."""
        seconds, part = divmod(at, 1.0) if at != NEVER else (0.0, 0.0)
        self._spec[2] = int(seconds)
        self._spec[3] = max(int(part * 1e9), 1) if at != NEVER else 0
        self._settime(self._fd, _TFD_TIMER_ABSTIME, self._spec, None)

    def close(self) -> None:
        """Give the descriptor back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


class LoopWaker:
    """The event loop's own timers, in whole milliseconds."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn = turn
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, at: float) -> None:
        """Set the one instant."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        if at != NEVER:
            self._handle = self._loop.call_later(max(at - monotonic(), 0.0), self._turn)

    def close(self) -> None:
        """Forget it."""
        self.arm(NEVER)


class WorldWaker:
    """The timers of whoever owns the clock."""

    def __init__(self, env: Env, turn: Callable[[], None]) -> None:
        self._env = env
        self._turn = turn
        self.deadline = NEVER
        self.filed_at = 0.0

    def arm(self, at: float) -> None:
        """Set the one instant."""
        self.deadline = at
        if at != NEVER:
            self._env.timers.add(self, self._env.clock())

    def expire(self) -> None:
        """The instant has come."""
        self._turn()

    def close(self) -> None:
        """Forget it."""
        self.deadline = NEVER


def timer_of(env: Env) -> MicroTimer:
    """The timer of this worker, shared by its simulated backends; each closes it at its end."""
    timer = _timers.get(env.timers)
    if timer is None:
        lag = env.metrics.histogram(LAG, "How late simulated tokens went.", LAG_S)
        if env.clock is monotonic:
            timer = MicroTimer(env.clock, lag, best_waker)
        else:
            timer = MicroTimer(env.clock, lag, lambda turn: WorldWaker(env, turn))
        _timers[env.timers] = timer
    timer.users += 1
    return timer


def best_waker(turn: Callable[[], None]) -> Waker:
    """What wakes the running loop most exactly on this machine."""
    if not portable():
        with suppress(OSError):
            return KernelWaker(turn)
    return LoopWaker(turn)


_timers: Final[WeakKeyDictionary[Timers, MicroTimer]] = WeakKeyDictionary()
