"""Garbage collection when nobody waits for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.support.fake_env import SilentMetrics, SilentSeries
from tpo_mp.worker.sweep import IDLE_EVERY_S, IdleSweep


class Pauses(SilentMetrics):
    """Counts collections."""

    def __init__(self) -> None:
        self.seen = SilentSeries()

    def histogram(self, name: str, help: str, buckets: object, **labels: str) -> SilentSeries:
        """The one there is."""
        return self.seen


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pauses]:
    """The collector's settings are this process's: they are put back, and nothing is collected."""
    before = gc.get_threshold()
    monkeypatch.setattr(gc, "collect", lambda: 0)
    yield Pauses()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_full_collection_never_runs_by_itself(pauses: Pauses) -> None:
    """The young generations do."""
    IdleSweep(pauses, 0.0)
    young, _, old = gc.get_threshold()
    assert young == 10_000
    assert old >= 1_000_000
    assert gc.get_freeze_count() > 0


def test_idle_shard_collects_now_and_then(pauses: Pauses) -> None:
    """Not in every pause, and never while calls are open."""
    sweep = IdleSweep(pauses, 100.0)
    sweep.tick(101.0, idle=True)
    sweep.tick(100.0 + IDLE_EVERY_S + 1, idle=False)
    assert pauses.seen.value == 0
    sweep.tick(100.0 + IDLE_EVERY_S + 1, idle=True)
    sweep.tick(100.0 + IDLE_EVERY_S + 2, idle=True)
    assert pauses.seen.value == 1


def test_growing_heap_is_collected_under_load(
    pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better a pause than no memory."""
    sweep = IdleSweep(pauses, 100.0)
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, 6))
    sweep.tick(101.0, idle=False)
    assert pauses.seen.value == 1
