"""How much slower a model gets as calls come faster.

The load is the rate of arrivals at one profile on this host over ``window_s``; all workers
count together, exactly.  A curve says how waits grow with it:

::

    linear        1 + slope · load / base
    exponential   e ^ (alpha · load / base)
    mm1           1 / (1 - min(load / capacity, 0.99))       one queue, one server
    piecewise     straight lines between points [load, factor]

and is divided by its own value at ``base_per_s``, so that a profile's figures hold at its base
load, where they were measured; under that they hold too, nothing gets faster.

Invariants: a factor is from 1 to ``MOST``; a host without its ledger counts as idle.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Ledger

MOST: Final = 1000.0
MOST_UTILISATION: Final = 0.99

Rate = Annotated[float, Meta(gt=0, le=1e6)]
Slope = Annotated[float, Meta(ge=0, le=1000)]
Alpha = Annotated[float, Meta(ge=0, le=100)]
Window = Annotated[float, Meta(gt=0, le=3600)]
Point = tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=1)]]
Points = Annotated[tuple[Point, ...], Meta(min_length=2, max_length=1000)]


class Degradation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One curve; the options of the others are left out."""

    curve: Annotated[
        Literal["none", "linear", "exponential", "mm1", "piecewise"],
        Meta(description="How waits grow with calls a second on this host."),
    ] = "none"
    base_per_s: Annotated[Rate, Meta(description="Calls a second at which the figures hold.")] = 1.0
    slope: Annotated[Slope | None, Meta(description="Of `linear`: 1 + slope · load / base.")] = None
    alpha: Annotated[
        Alpha | None, Meta(description="Of `exponential`: e to the alpha · load / base.")
    ] = None
    capacity_per_s: Annotated[
        Rate | None, Meta(description="Of `mm1`: calls a second that one server could serve.")
    ] = None
    points: Annotated[Points | None, Meta(description="Of `piecewise`: load and factor.")] = None
    window_s: Annotated[Window, Meta(description="Over how long calls are counted.")] = 5.0

    def __post_init__(self) -> None:
        needs = _NEEDS[self.curve]
        for option in ("slope", "alpha", "capacity_per_s", "points"):
            given = getattr(self, option) is not None
            if given != (option == needs):
                wrong = "needs" if option == needs else "has no"
                raise ValueError(f"the curve {self.curve} {wrong} {option}")
        if self.points is not None and list(self.points) != sorted(self.points):
            raise ValueError("points must rise")
        if self.capacity_per_s is not None and self.capacity_per_s <= self.base_per_s:
            raise ValueError("capacity_per_s must be over base_per_s")

    def factor(self, load_per_s: float) -> float:
        """How many times as long everything takes at this load."""
        if self.curve == "none" or load_per_s <= self.base_per_s:
            return 1.0
        at_base = self._raw(self.base_per_s)
        return min(max(self._raw(load_per_s) / at_base, 1.0), MOST)

    def _raw(self, load_per_s: float) -> float:
        share = load_per_s / self.base_per_s
        if self.slope is not None:
            return 1 + self.slope * share
        if self.alpha is not None:
            return math.exp(min(self.alpha * share, 700.0))
        if self.capacity_per_s is not None:
            return 1 / (1 - min(load_per_s / self.capacity_per_s, MOST_UTILISATION))
        return _between(self.points or ((0.0, 1.0),), load_per_s)


class HostRate:
    """The rate of arrivals under one name, over all workers of the host.

    Cells of the ledger: the number of the window, calls in it, calls in the one before.
    """

    def __init__(self, ledger: Ledger, name: str, window_s: float) -> None:
        self._ledger = ledger
        self._name = f"latency:rate:{name}"
        self._window_s = window_s

    def arrived(self, now: float) -> float:
        """Count one more call; the calls a second, this one included."""
        window, part = divmod(now / self._window_s, 1.0)

        def change(cells: Cells) -> Cells:
            if cells[0] == window:
                return window, cells[1] + 1, cells[2], 0.0
            return window, 1.0, cells[1] if cells[0] == window - 1 else 0.0, 0.0

        try:
            _, here, before, _ = self._ledger.update(self._name, change)
        except Shed:
            return 0.0
        return (here + before * (1 - part)) / self._window_s


def _between(points: tuple[tuple[float, float], ...], load: float) -> float:
    at = bisect_right(points, load, key=lambda point: point[0])
    if at in (0, len(points)):
        return points[min(at, len(points) - 1)][1]
    (low, under), (high, over) = points[at - 1 : at + 1]
    return under + (load - low) / (high - low) * (over - under)


_NEEDS: Final = {"none": None, "linear": "slope", "exponential": "alpha", "mm1": "capacity_per_s",
                 "piecewise": "points"}  # fmt: skip
