"""What one scenario measured: rows per target, with machine, versions, method and date.

A row is one round of one target; rows of different targets with the same ``round`` were measured
within the same minute and may be compared.  Reports are JSON files that ``render`` reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from .stats import median, spread

Row = dict[str, float]
NOISY = 0.1
"""The share of the gateway's core beyond which other processes spoil a measurement."""


class Series(msgspec.Struct, kw_only=True):
    """All rounds of one target; ``skipped`` says why there are none."""

    rows: list[Row] = msgspec.field(default_factory=list)
    version: str = ""
    skipped: str = ""

    def values(self, field: str) -> list[float]:
        """Answer one field of every row that has it."""
        return [row[field] for row in self.rows if field in row]

    def median(self, field: str) -> float | None:
        """Answer the middle of a field, ``None`` without rows."""
        values = self.values(field)
        return median(values) if values else None

    def spread(self, field: str) -> float | None:
        """Answer the spread of a field as a share of its median, ``None`` without rows."""
        values = self.values(field)
        return spread(values) if values else None


class Report(msgspec.Struct, kw_only=True):
    """One scenario's result."""

    scenario: str
    title: str
    date: str
    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    method: dict[str, str | int | float]
    targets: dict[str, Series]

    def median(self, target: str, field: str) -> float | None:
        """Answer the middle of one target's field."""
        series = self.targets.get(target)
        return series.median(field) if series else None

    def difference(self, target: str, base: str, field: str) -> float | None:
        """Answer the middle of ``target - base`` over the rounds that measured both."""
        pairs = self._pairs(target, base, field)
        return median([left - right for left, right in pairs]) if pairs else None

    def ratio(self, target: str, base: str, field: str) -> float | None:
        """Answer the middle of ``target / base`` over the rounds that measured both."""
        pairs = self._pairs(target, base, field)
        return median([left / right for left, right in pairs if right]) if pairs else None

    def failed(self, targets: Iterable[str]) -> int:
        """Count the requests of some targets that did not succeed."""
        found = (self.targets[name] for name in targets if name in self.targets)
        return round(sum(sum(series.values("failed")) for series in found))

    def busy(self, targets: Iterable[str]) -> bool:
        """Say whether others took much of the gateway's core in most rounds of some target."""
        shares = (self.median(name, "others_share") for name in targets)
        return any(share is not None and share > NOISY for share in shares)

    def save(self, directory: Path) -> Path:
        """Write ``SCENARIO.json``."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.scenario}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        return path

    def _pairs(self, target: str, base: str, field: str) -> list[tuple[float, float]]:
        def rounds(name: str) -> dict[float, float]:
            series = self.targets.get(name) or Series()
            return {row["round"]: row[field] for row in series.rows if field in row}

        left, right = rounds(target), rounds(base)
        return [(left[number], right[number]) for number in sorted(left.keys() & right.keys())]


def load(path: Path) -> Report:
    """Read one report."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def load_all(directory: Path) -> dict[str, Report]:
    """Read all reports of a directory by scenario."""
    found = (load(path) for path in sorted(directory.glob("*.json")))
    return {report.scenario: report for report in found}
