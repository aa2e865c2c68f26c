"""Metrics under death: totals are exact over processes and occupations, levels are not kept."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.actor import StartActor
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.scrape import Sample

SEATS = 3


@pytest.fixture
def arena(platform: str) -> Iterator[MetricsArena]:
    """An arena that children inherit."""
    made = MetricsArena.create(SEATS)
    yield made
    made.close()


def sample(arena: MetricsArena, name: str) -> Sample:
    """A family's only sample."""
    (only,) = next(family for family in arena.collect() if family.name == name).samples
    return only


def test_totals_are_exact_over_processes_and_a_kill(arena: MetricsArena, actor: StartActor) -> None:
    """Three processes count, one is killed, its successor goes on; nothing is lost or doubled."""
    common = (arena.fd, SEATS)
    first = [
        actor("count_metrics", *common, seat, 1, 1000 + seat, fds=(arena.fd,)) for seat in range(3)
    ]
    for process in first:
        assert process.said() == "counted"
    assert sample(arena, "calls_total").value == 3003
    assert sample(arena, "calls_open").value == 3.0
    first[1].kill()
    assert sample(arena, "calls_total").value == 3003, "the dead count stands"
    arena.retire(1)
    assert sample(arena, "calls_open").value == 2.0, "the dead level does not"
    successor = actor("count_metrics", *common, 1, 2, 500, fds=(arena.fd,))
    assert successor.said() == "counted"
    assert sample(arena, "calls_total").value == 3503
    assert sample(arena, "calls_open").value == 3.0
    seconds = sample(arena, "calls_seconds")
    assert seconds.value == 3503
    assert seconds.sum == pytest.approx(3503 * 0.005)
    assert [count for _, count in seconds.buckets] == [0, 3503, 3503, 3503]


def test_a_new_occupant_zeroes_levels_by_itself(arena: MetricsArena, actor: StartActor) -> None:
    """Also where nobody retired the seat."""
    for epoch in (1, 2, 3):
        process = actor("count_metrics", arena.fd, SEATS, 0, epoch, 1, fds=(arena.fd,))
        assert process.said() == "counted"
        assert sample(arena, "calls_open").value == 1.0
        process.kill()
    assert sample(arena, "calls_total").value == 3


def test_a_scrape_during_kills_is_always_whole(
    arena: MetricsArena, actor: StartActor, rng: random.Random
) -> None:
    """Kill a busy process at any moment, five times, scraping all the while: no total falls."""
    last = 0.0
    for epoch in range(1, 6):
        busy = actor("churn_metrics", arena.fd, SEATS, 0, epoch, fds=(arena.fd,))
        assert busy.said() == "ready"
        for _ in range(rng.randrange(10, 500)):
            now = sample(arena, "calls_total").value
            assert now >= last
            last = now
        busy.kill()
        counted, echoed = sample(arena, "calls_total").value, sample(arena, "echoes_total").value
        assert 0 <= counted - echoed <= epoch, "at most one step of each occupant is unfinished"
