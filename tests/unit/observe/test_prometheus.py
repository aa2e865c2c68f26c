"""The exposition is valid whatever the arena holds."""

from __future__ import annotations

import os

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.observe.views import (
    FakeArena,
    FakeFamily,
    FakePlane,
    FakeSample,
    gauge,
    running_host,
)
from tpo_mp.observe.prometheus import render


def parsed(page: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels; a series that appears twice fails."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            series = found.setdefault(sample.name, {})
            assert labels not in series, (sample.name, labels)
            series[labels] = sample.value
    return found


def test_every_kind_of_series_is_rendered() -> None:
    """Counters end in _total, histograms have cumulative buckets, sum and count."""
    arena = FakeArena(
        [
            FakeFamily("orchestrator_requests_total", "counter",
                       (FakeSample((("stage", "rag"),), 7),)),
            FakeFamily("odd_counter", "counter", (FakeSample((), 3),)),
            gauge("tpo_level", 2.5),
            FakeFamily("orchestrator_stage_duration_seconds", "histogram",
                       (FakeSample((("stage", "rag"),), 5, ((0.1, 2), (float("inf"), 5)), 1.25),)),
        ]
    )  # fmt: skip
    found = parsed(render(arena, running_host()))
    assert found["orchestrator_requests_total"] == {(("stage", "rag"),): 7}
    assert found["odd_counter_total"] == {(): 3}
    assert found["tpo_level"] == {(): 2.5}
    assert found["orchestrator_stage_duration_seconds_bucket"] == {
        (("le", "0.1"), ("stage", "rag")): 2,
        (("le", "+Inf"), ("stage", "rag")): 5,
    }
    assert found["orchestrator_stage_duration_seconds_sum"] == {(("stage", "rag"),): 1.25}
    assert found["orchestrator_stage_duration_seconds_count"] == {(("stage", "rag"),): 5}


def test_what_the_control_words_know_is_derived() -> None:
    """States, restarts and processes appear without any series in the arena."""
    plane = running_host()
    plane.restarts_total = 4
    plane.lines[0].pid = os.getpid()
    plane.lines[1].state = 1
    found = parsed(render(FakeArena(), plane))
    assert found["tpo_worker_restarts_total"] == {(): 4}
    assert found["tpo_slot_up"] == {(("slot", "0"),): 1, (("slot", "1"),): 0}
    assert (("seat", "1"), ("state", "booting")) in found["tpo_seat_state"]
    assert found["tpo_process_resident_memory_bytes"][(("seat", "0"),)] > 1 << 20
    assert found["tpo_process_cpu_seconds_total"][(("seat", "0"),)] >= 0


def test_series_that_are_not_valid_are_left_out() -> None:
    """Bad names and labels do not spoil the page; values are escaped."""
    arena = FakeArena(
        [
            gauge("bad name", 1),
            gauge("tpo_ok", 1, **{"bad-label": "x"}),
            FakeFamily("tpo_other", "summary"),
            gauge("tpo_uptime_seconds", 99),
            gauge("tpo_escaped", 1, model='a"b\\c\nd'),
            gauge("tpo_nan", float("nan")),
        ]
    )
    found = parsed(render(arena, FakePlane()))
    assert "bad" not in found
    assert found.get("tpo_ok", {}) == {}
    assert found["tpo_escaped"] == {(("model", 'a"b\\c\nd'),): 1}
    assert len(found["tpo_uptime_seconds"]) == 1


def test_a_family_that_appears_twice_is_rendered_once() -> None:
    """A counter and a gauge of the same base would be invalid together."""
    arena = FakeArena([FakeFamily("tpo_x_total", "counter"), gauge("tpo_x", 1)])
    assert "tpo_x" not in parsed(render(arena, FakePlane()))
