"""How soon one slot may be started again (the rule of an Erlang supervisor, per slot).

More than ``deaths`` within ``window_s`` make the slot back off ``backoff_min_s``, doubled for every
further death that comes before it has lived ``window_s``, up to ``backoff_max_s``.  A process that
refuses to boot says that the next one will, too: its slot backs off at once.

Invariant: two starts of one slot are never closer than ``SPACING_S``, whatever happened between.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SPACING_S = 0.1
LOOP_LEVEL = 3
"""A slot that died again in its third back-off in a row is in a crash loop."""


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """When to back off, and for how long."""

    deaths: int = 5
    window_s: float = 10.0
    backoff_min_s: float = 1.0
    backoff_max_s: float = 30.0


class Intensity:
    """Deaths and starts of one slot."""

    __slots__ = ("_deaths", "_retry_at", "level", "limits")

    def __init__(self, limits: RestartLimits) -> None:
        self.level = 0
        self.limits = limits
        self._deaths: deque[float] = deque()
        self._retry_at = float("-inf")

    def started(self, now: float) -> None:
        """Note a start."""
        self._retry_at = max(self._retry_at, now + SPACING_S)

    def died(self, now: float, lived_s: float, *, refused: bool = False) -> None:
        """Note a death, or a boot that was refused."""
        limits = self.limits
        if lived_s >= limits.window_s:
            self.level = 0
        self._deaths.append(now)
        while self._deaths[0] <= now - limits.window_s:
            self._deaths.popleft()
        if self.level or refused or len(self._deaths) > limits.deaths:
            pause = min(limits.backoff_max_s, limits.backoff_min_s * 2**self.level)
            self.level += 1
            self._retry_at = max(self._retry_at, now + pause)

    def may_start(self, now: float) -> bool:
        """Say whether a start is allowed now."""
        return now >= self._retry_at

    def pause_s(self, now: float) -> float:
        """Return how long the slot still has to wait."""
        return max(0.0, self._retry_at - now)

    @property
    def looping(self) -> bool:
        """Say whether this slot keeps dying whatever we do."""
        return self.level > LOOP_LEVEL
