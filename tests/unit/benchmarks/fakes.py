"""A transport that remembers, and a report with given rows."""

from collections.abc import Callable

from benchmarks.report import Report, Row, Series


class FakeTransport:
    """Collects what is written and hands it on when asked to."""

    def __init__(self, on_write: Callable[[bytes], None] | None = None) -> None:
        self.written: list[bytes] = []
        self.closed = False
        self.on_write = on_write

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if self.on_write is not None:
            self.on_write(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    @property
    def sent(self) -> bytes:
        return b"".join(self.written)


def report(scenario: str, quick: bool = False, **targets: list[Row]) -> Report:
    """Build a report; underscores in target names read as dashes, rounds are numbered."""
    series = {
        name.replace("_", "-"): Series(
            rows=[{"round": number, **row} for number, row in enumerate(rows)]
        )
        for name, rows in targets.items()
    }
    return Report(
        scenario=scenario,
        title=f"The {scenario}",
        date="2026-01-02 03:04 UTC",
        quick=quick,
        machine={"cpu": "Abacus", "cores": "2"},
        versions={"python": "3.11", "tpo-mp": "abc1234"},
        method={"text": "As measured.", "load": "wrk", "conns": 64, "rounds": 2, "secs": 4.0},
        targets=series,
    )
