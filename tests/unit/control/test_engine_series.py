"""The series of supervised engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_env import FakeLedger
from tpo_mp.control.engine_series import EngineSeries
from tpo_mp.shm.engine_rows import ENGINE_STATES, engine_cells, engine_row, read_engine
from tpo_mp.shm.metrics import MetricsArena


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """One seat's metrics."""
    made = MetricsArena.create(1)
    yield made
    made.close()


def levels(arena: MetricsArena) -> dict[str, float]:
    """Sums by name."""
    return {f.name: sum(s.value for s in f.samples) for f in arena.collect()}


def say(ledger: FakeLedger, state: str, restarts: int) -> None:
    """Write as the supervisor does."""
    ledger.update(engine_row("one"), lambda _: engine_cells(state, restarts))


def test_restarts_are_counted_once_whoever_counts(arena: MetricsArena) -> None:
    """Another control goes on; an engine that came back begins at nothing and is added."""
    ledger = FakeLedger()
    for epoch in (1, 2):
        series = EngineSeries(ledger, arena.block(0, epoch), arena)
        series.configure(["one"])
        for restarts in (2, 3):
            say(ledger, "ready", restarts if epoch == 1 else 4)
            series.show()
    assert levels(arena)["tpo_engine_restarts_total"] == 4
    assert levels(arena)["tpo_engine_state"] == 3
    say(ledger, "backing off", 1)
    series.show()
    assert levels(arena)["tpo_engine_restarts_total"] == 5
    assert levels(arena)["tpo_engine_state"] == 5
    series.configure([])
    series.show()
    assert levels(arena)["tpo_engine_state"] == 0


@pytest.mark.parametrize("state", ENGINE_STATES)
def test_a_row_says_what_was_written(state: str) -> None:
    """Every state; a row that is not there, or makes no sense, is an unknown one."""
    assert read_engine(engine_cells(state, 7)) == (ENGINE_STATES.index(state), 7)
    assert read_engine((0.0,) * 4) == (0, 0)
    assert read_engine((99.0, 1.0, 0.0, 0.0)) == (0, 1)
