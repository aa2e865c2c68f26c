"""Makes a process's series and sums those of all processes.

The memory, its byte layout and what is left when a writer dies are drawn in ``series``; a scrape's
arithmetic is in ``scrape``.

Invariants: the same name and labels answer the same cells, now and for the next occupant; values
of one label are at most 64 per metric and block beside those ``allow`` names, the rest is
``other``; a full block counts the series it turned away and lets them write into a sink.
Known weakness: gauges are added over seats, so a level that is no sum needs a seat label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from .scrape import Family, FamilyFold, Sample
from .segment import Segment
from .series import (
    ARENA_HEADER,
    BLOCK_BYTES,
    CELLS,
    EPOCH_WORD,
    LAYOUT,
    MAGIC,
    MAX_BOUNDS,
    MICRO,
    NANO,
    OVERFLOW_CELL,
    SINK_CELL,
    BlockView,
    Kind,
    Labels,
    SeriesEntry,
)  # fmt: skip

MAX_LABEL_VALUES = 64
MAX_LABEL_CHARS = 64
OTHER = "other"
MAX_OBSERVED = 1e12


class CellCounter:
    """A counter; hot code may do ``block.cells[counter.index] += 1`` instead of ``inc``."""

    __slots__ = ("_cells", "index")

    def __init__(self, cells: memoryview, index: int) -> None:
        self._cells = cells
        self.index = index

    def inc(self, n: int = 1) -> None:
        """Add ``n`` (not negative)."""
        self._cells[self.index] += n


class CellGauge:
    """A level; the scrape adds the seats up."""

    __slots__ = ("_levels", "index")

    def __init__(self, levels: memoryview[float], index: int) -> None:
        self._levels = levels
        self.index = index

    def set(self, value: float) -> None:
        """Replace the level."""
        self._levels[self.index] = value

    def add(self, n: float) -> None:
        """Move the level by ``n``."""
        self._levels[self.index] += n


class CellHistogram:
    """A distribution; ``observe`` is two stores."""

    __slots__ = ("_bounds", "_cells", "_sum", "index")

    def __init__(self, cells: memoryview, index: int, bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._bounds = bounds
        self._sum = index + len(bounds) + 1
        self.index = index

    def observe(self, value: float) -> None:
        """Count ``value``; a negative, NaN or absurd one adds nothing to the sum."""
        cells = self._cells
        cells[self.index + bisect_left(self._bounds, value)] += 1
        if 0.0 < value < MAX_OBSERVED:
            cells[self._sum] += int(value * MICRO)


class MetricsBlock:
    """The occupant's side of one block; implements ``ports.Metrics``.

    ``cells`` are the block's words, for code that cannot afford a call per increment.
    """

    def __init__(self, block: BlockView, epoch: int) -> None:
        self._block = block
        self._directory = block.directory
        self.cells = block.cells
        self._occupy(epoch)
        self._families: dict[str, tuple[Kind, tuple[str, ...]]] = {}
        self._values: dict[tuple[str, str], set[str]] = {}
        self._series: dict[tuple[str, Labels], CellCounter | CellGauge | CellHistogram] = {}
        for entry in self._directory.entries:
            self._remember(entry, entry.first)

    def _occupy(self, epoch: int) -> None:
        block, directory = self._block, self._directory
        directory.refresh()
        directory.cut()
        blank = CELLS - directory.next_cell
        block.cells[directory.next_cell :] = memoryview(bytes(8 * blank)).cast("Q")
        if block.words[EPOCH_WORD] != epoch:
            block.zero_gauges()
            block.words[EPOCH_WORD] = epoch
            directory.refresh()

    @property
    def overflows(self) -> int:
        """Series of this block that found no room."""
        return int(self.cells[OVERFLOW_CELL])

    def counter(self, name: str, help: str, **labels: str) -> CellCounter:
        """Make or find a counter."""
        made = self._find(name, help, "counter", labels, ())
        assert isinstance(made, CellCounter)
        return made

    def money(self, name: str, help: str, **labels: str) -> CellCounter:
        """Make or find a counter of dollars, whose cell counts their billionths."""
        made = self._find(name, help, "counter", labels, (NANO,))
        assert isinstance(made, CellCounter)
        return made

    def gauge(self, name: str, help: str, **labels: str) -> CellGauge:
        """Make or find a gauge."""
        made = self._find(name, help, "gauge", labels, ())
        assert isinstance(made, CellGauge)
        return made

    def histogram(
        self,
        name: str,
        help: str,
        buckets: Sequence[float],
        **labels: str,
    ) -> CellHistogram:
        """Make or find a histogram; ``buckets`` are upper bounds, ascending, +Inf left out.

        A series that exists keeps the bounds it was first made with.
        """
        made = self._find(name, help, "histogram", labels, tuple(map(float, buckets)))
        assert isinstance(made, CellHistogram)
        return made

    def _find(
        self, name: str, text: str, kind: Kind, labels: dict[str, str], bounds: tuple[float, ...]
    ) -> CellCounter | CellGauge | CellHistogram:
        family = self._families.get(name)
        if family is not None and family != (kind, tuple(sorted(labels))):
            raise ValueError(f"metric {name!r} exists as {family[0]} with labels {family[1]}")
        if len(bounds) > MAX_BOUNDS or sorted(set(bounds)) != list(bounds):
            raise ValueError(f"metric {name!r}: bounds must ascend, at most {MAX_BOUNDS}")
        key = tuple((label, self._bounded(name, label, labels[label])) for label in sorted(labels))
        found = self._series.get((name, key))
        if found is not None:
            return found
        first = self._directory.next_cell
        entry = SeriesEntry(name, "" if family else text, kind, key, bounds, first)
        if self._directory.append(entry):
            return self._remember(entry, first)
        self.cells[OVERFLOW_CELL] += 1
        return self._remember(entry, SINK_CELL)

    def allow(self, name: str, label: str, values: Iterable[str]) -> None:
        """Let a label have these values beside its first 64: whoever names them bounds them."""
        self._values.setdefault((name, label), set()).update(map(clean_label, values))

    def _bounded(self, name: str, label: str, value: str) -> str:
        clean = clean_label(value)
        known = self._values.get((name, label), ())
        return clean if clean in known or len(known) < MAX_LABEL_VALUES else OTHER

    def _remember(self, entry: SeriesEntry, first: int) -> CellCounter | CellGauge | CellHistogram:
        self._families[entry.name] = (entry.kind, tuple(label for label, _ in entry.labels))
        for label, value in entry.labels:
            if value != OTHER:
                self._values.setdefault((entry.name, label), set()).add(value)
        handle = self._handle(entry, first)
        self._series[entry.name, entry.labels] = handle
        return handle

    def _handle(self, entry: SeriesEntry, first: int) -> CellCounter | CellGauge | CellHistogram:
        if entry.kind == "counter":
            return CellCounter(self.cells, first)
        if entry.kind == "gauge":
            return CellGauge(self._block.levels, first)
        return CellHistogram(self.cells, first, entry.bounds)


def clean_label(value: str) -> str:
    """Cut a label value to 64 printable characters."""
    short = value[:MAX_LABEL_CHARS]
    return short if short.isprintable() else "".join(c if c.isprintable() else "?" for c in short)


class MetricsArena:
    """All seats' blocks: hands one to its occupant, sums all for a scrape."""

    def __init__(self, segment: Segment, seats: int) -> None:
        self._segment = segment
        self.fd = segment.fd
        self.seats = seats
        self._blocks = [BlockView(segment.buf, seat) for seat in range(seats)]

    @staticmethod
    def size(seats: int) -> int:
        """Bytes of an arena."""
        return ARENA_HEADER + seats * BLOCK_BYTES

    @classmethod
    def create(cls, seats: int) -> MetricsArena:
        """Make the host's arena (supervisor only)."""
        segment = Segment.create("tpo-metrics", cls.size(seats)).signed(MAGIC, LAYOUT, seats)
        return cls(segment, seats)

    @classmethod
    def attach(cls, fd: int, seats: int) -> MetricsArena:
        """Map an inherited arena; raises ``Fault`` when it is not one of ours."""
        segment = Segment.attach(fd, cls.size(seats)).checked("metrics arena", MAGIC, LAYOUT, seats)
        return cls(segment, seats)

    def block(self, seat: int, epoch: int) -> MetricsBlock:
        """Occupy a seat's block: counters go on, gauges restart at zero when ``epoch`` is new."""
        return MetricsBlock(self._blocks[seat], epoch)

    def retire(self, seat: int) -> None:
        """Zero a dead occupant's gauges now, should its successor be long in coming."""
        block = self._blocks[seat]
        block.directory.refresh()
        block.zero_gauges()

    def collect(self) -> list[Family]:
        """Sum every series over the seats, families in order of first appearance."""
        folds: dict[str, FamilyFold] = {}
        for block in self._blocks:
            block.directory.refresh()
            for entry in block.directory.entries:
                fold = folds.setdefault(entry.name, FamilyFold(entry.help, entry.kind))
                if fold.kind == entry.kind:
                    fold.add(entry, block)
        return [fold.family(name) for name, fold in folds.items()] + [self._overflows()]

    def _overflows(self) -> Family:
        total = sum(block.cells[OVERFLOW_CELL] for block in self._blocks)
        text = "Series that found no room in their seat's block."
        return Family("tpo_metrics_overflow_total", text, "counter", (Sample((), total),))

    def close(self) -> None:
        """Unmap; blocks and series must not be used afterwards."""
        self._segment.close()
