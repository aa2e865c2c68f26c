"""Control's own series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.control.gauges import ControlGauges
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.store.letters import Letter
from tpo_mp.store.shelf import Shelf, ShelfOptions


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """One seat's metrics."""
    made = MetricsArena.create(1)
    yield made
    made.close()


def levels(arena: MetricsArena) -> dict[str, float]:
    """Sums by name."""
    return {f.name: sum(s.value for s in f.samples) for f in arena.collect()}


def test_counters_move_by_the_difference_of_totals(arena: MetricsArena) -> None:
    """A total that starts again at zero never counts backwards."""
    gauges = ControlGauges(arena.block(0, 1))
    for total in (2, 5, 5, 0, 3):
        gauges.count({"tpo_control_batches_total": total})
    assert levels(arena)["tpo_control_batches_total"] == 8


def test_the_state_of_the_store_is_shown(arena: MetricsArena, tmp_path: Path) -> None:
    """Depth, fill and faults."""
    gauges = ControlGauges(arena.block(0, 1))
    gauges.set_limit(77)
    shelf = Shelf(tmp_path, ShelfOptions())
    shelf.add_letters([Letter("a", "", "", "shed", 1.0, "m", "t", "/", b"{}")])
    shelf.put("results", "k", b"12345", 9.0)
    shelf.commit()
    gauges.show(shelf.state())
    seen = levels(arena)
    assert seen["tpo_open_calls_limit"] == 77
    assert seen["tpo_dead_letters"] == 1
    assert seen["tpo_dead_letter_bytes"] > 0
    assert (seen["tpo_store_rows"], seen["tpo_store_bytes"]) == (1, 5)
    assert seen["tpo_store_broken"] == 0
    gauges.show_copy(calls=3, file_bytes=900, broken=True)
    seen = levels(arena)
    assert (seen["tpo_open_copy_calls"], seen["tpo_open_copy_bytes"]) == (3, 900)
    assert seen["tpo_store_broken"] == 1
    shelf.close()


def test_expiry_is_shown_only_when_there_is_a_certificate(arena: MetricsArena) -> None:
    """A gauge of 0 would ring every alarm."""
    gauges = ControlGauges(arena.block(0, 1))
    gauges.set_certificate(None)
    assert "tpo_tls_certificate_expires_seconds" not in levels(arena)
    gauges.set_certificate(1_800_000_000.0)
    assert levels(arena)["tpo_tls_certificate_expires_seconds"] == 1_800_000_000.0
