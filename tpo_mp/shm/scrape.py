"""What a scrape reads: every series of every seat, added up by name and labels.

The memory it reads is drawn in ``series``.
Invariants: a histogram's buckets are cumulative and its count is the last of them.
A seat whose bounds differ (a series made under an older configuration) is folded into the first
seat's bounds, each bucket into the next wider one.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from .series import MICRO, BlockView, Kind, Labels, SeriesEntry


@dataclass(frozen=True, slots=True)
class Sample:
    """One series, summed over the seats.

    ``value`` is a counter's or gauge's value, or a histogram's count; ``buckets`` are cumulative
    ``(upper bound, count)`` pairs, the last bound infinite; ``sum`` is in the metric's own unit.
    """

    labels: Labels
    value: float
    buckets: tuple[tuple[float, int], ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one name."""

    name: str
    help: str
    kind: Kind
    samples: tuple[Sample, ...]


@dataclass(slots=True)
class FamilyFold:
    """A family while the seats are added up."""

    help: str
    kind: Kind
    totals: dict[Labels, list[float]] = field(default_factory=dict)
    bounds: dict[Labels, tuple[float, ...]] = field(default_factory=dict)

    def add(self, entry: SeriesEntry, block: BlockView) -> None:
        """Add one seat's series."""
        self.help = self.help or entry.help
        where = slice(entry.first, entry.first + entry.width)
        cells: list[float] = []
        cells += (block.levels if entry.kind == "gauge" else block.cells)[where].tolist()
        total = self.totals.get(entry.labels)
        if total is None:
            self.totals[entry.labels] = cells
            self.bounds[entry.labels] = entry.bounds
            return
        bounds = self.bounds[entry.labels]
        for bound, n in zip((*entry.bounds, float("inf")), cells, strict=False):
            total[bisect_left(bounds, bound)] += n
        if entry.kind == "histogram":
            total[-1] += cells[-1]

    def family(self, name: str) -> Family:
        """The sums so far."""
        return Family(name, self.help, self.kind, tuple(map(self._sample, self.totals)))

    def _sample(self, labels: Labels) -> Sample:
        cells = self.totals[labels]
        if self.kind != "histogram":
            scale = self.bounds[labels]
            return Sample(labels, cells[0] / scale[0] if scale else cells[0])
        counts = [int(n) for n in accumulate(cells[:-1])]
        bounds = (*self.bounds[labels], float("inf"))
        buckets = tuple(zip(bounds, counts, strict=True))
        return Sample(labels, counts[-1], buckets, cells[-1] / MICRO)
