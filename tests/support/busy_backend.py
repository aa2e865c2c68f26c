"""A backend that answers a few calls at a time and lets others wait, in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

from tpo_mp.pipeline.place_math import (
    MANY,
    WINDOW_S,
    LimitBounds,
    LimitState,
    LimitWindow,
    begun,
    due,
    judged,
)


class BusyBackend:
    """``servers`` at a time, each for ``service_s`` on average; always as many calls as let in.

    ``refuses_above`` calls in flight, it answers overload.
    """

    def __init__(
        self,
        servers: int,
        service_s: float,
        bounds: LimitBounds,
        *,
        seed: int = 1,
        offered: float = float("inf"),
        refuses_above: float = float("inf"),
    ) -> None:
        self.servers = servers
        self.service_s = service_s
        self.bounds = bounds
        self.random = Random(seed)
        self.offered = offered
        self.refuses_above = refuses_above
        self.now = 1000.0
        self.state = LimitState() if bounds.waits else begun(bounds, self.now)
        self.refuses = 0.0
        """Share of the calls that are refused, however few there are."""
        self.window = LimitWindow()
        self.waiting: list[float] = []
        self.running: list[tuple[float, float]] = []
        self.served = self.refused = 0
        self.limits: list[float] = []

    def run(self, seconds: float, spread: Callable[[Random], float] | None = None) -> list[float]:
        """Let time pass; the limits that were judged in it."""
        drawn = spread or (lambda random: random.expovariate(1.0))
        self.limits = []
        end = self.now + seconds
        next_look = self.now + WINDOW_S / 2
        while self.now < end:
            self._let_in(drawn)
            done_at = self.running[0][0] if self.running else end
            self.now = min(done_at, next_look, end)
            if self.now == next_look:
                next_look += WINDOW_S / 2
                self._look()
            elif self.running and self.now == done_at:
                _, since = heappop(self.running)
                self.served += 1
                w = self.window
                self.window = w._replace(
                    wholes=w.wholes + 1, whole_sum_s=w.whole_sum_s + self.now - since
                )
        return self.limits

    def _let_in(self, drawn: Callable[[Random], float]) -> None:
        places = int(self.state.limit) or MANY
        while (held := len(self.running) + len(self.waiting)) < min(places, self.offered):
            if held >= self.refuses_above or self.random.random() < self.refuses:
                self.refused += 1
                self.window = self.window._replace(lost=self.window.lost + 1)
                break
            self.waiting.append(self.now)
        if self.offered > places:
            self.window = self.window._replace(full=self.window.full + 1)
        while self.waiting and len(self.running) < self.servers:
            since = self.waiting.pop(0)
            heappush(self.running, (self.now + self.service_s * drawn(self.random), since))

    def _look(self) -> None:
        if not self.state.limit:
            if self.window.lost:
                self.state = begun(self.bounds, self.now)
            self.window = LimitWindow()
        elif due(self.state, self.window, self.now):
            held = len(self.running) + len(self.waiting)
            self.state = judged(self.state, self.window, self.bounds, held, self.now)
            self.window = LimitWindow()
            if not self.state.resume:
                self.limits.append(self.state.limit)


def settled(states: list[float]) -> tuple[float, float, float]:
    """The least, middle and most of the last half."""
    last = sorted(states[len(states) // 2 :])
    return last[0], last[len(last) // 2], last[-1]
