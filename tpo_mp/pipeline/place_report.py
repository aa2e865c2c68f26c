"""What is told of places: how many a backend has, how many are taken, who waits.

Gauges are added over the processes of a host, so each tells what its own calls hold, and the limit
is told by one of them, the one that keeps the backend's queue.

Invariants: a host tells a backend's limit once.  Known weakness: for up to ``EVERY_S`` after the
queue moved to another process the limit is told twice, or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from tpo_mp.ports import Env, Gauge
from tpo_mp.types import NO_DEADLINE

from .place_math import MANY

if TYPE_CHECKING:
    from .places import Door

EVERY_S: Final = 0.5
LIMIT_GAUGE: Final = "tpo_backend_concurrency_limit"
HELD_GAUGE: Final = "tpo_backend_calls"


class PlaceReport:
    """Keeps the gauges of one process's doors."""

    def __init__(self, env: Env, doors: Mapping[str, Door], kept_here: Callable[[str], bool]):
        self._env = env
        self._doors = doors
        self._kept_here = kept_here
        self._gauges: dict[str, tuple[Gauge, Gauge]] = {}
        self._begun = False
        self.deadline = NO_DEADLINE
        self.filed_at = 0.0

    def begin(self) -> None:
        """Tell it from now on."""
        if not self._begun:
            self._begun = True
            self.expire()

    def expire(self) -> None:
        """Set the gauges."""
        for name in self._gauges.keys() - self._doors.keys():
            for gauge in self._gauges.pop(name):
                gauge.set(0)
        for name, door in self._doors.items():
            door.heed()
            limit, held = self._gauges.get(name) or self._made(name)
            there = door.told if door.told >= 0 else door.share.limit % MANY
            limit.set(there if self._kept_here(name) else 0)
            held.set(door.used)
        now = self._env.clock()
        self.deadline = now + EVERY_S
        self._env.timers.add(self, now)

    def _made(self, name: str) -> tuple[Gauge, Gauge]:
        gauge = self._env.metrics.gauge
        made = self._gauges[name] = (
            gauge(LIMIT_GAUGE, "Calls a backend answers at a time; 0: no limit.", backend=name),
            gauge(HELD_GAUGE, "Calls that hold a place at a backend.", backend=name),
        )
        return made


def share_name(backend: str) -> str:
    """What a backend's places are called among all shares."""
    return f"backend:{backend}"
