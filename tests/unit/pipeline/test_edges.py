"""Waiting rooms: bounded per shard, and per host in front of inference."""

from __future__ import annotations

from tests.support.fake_env import SilentMetrics, SilentSeries
from tpo_mp.pipeline.edges import CAPACITY_OF, Edge, make_edges, resize_edges
from tpo_mp.types import STAGES


class Metrics(SilentMetrics):
    """Remembers its gauges."""

    def __init__(self) -> None:
        self.gauges: dict[str, SilentSeries] = {}

    def gauge(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a gauge."""
        return self.gauges.setdefault(f"{name}{sorted(labels.values())}", SilentSeries())


def test_room_is_bounded_and_says_how_full_it_is() -> None:
    """Who does not fit is refused, and takes no place."""
    metrics = Metrics()
    edge = Edge("rag", 2, metrics)
    assert [edge.enter() for _ in range(4)] == [True, True, False, False]
    assert edge.depth == 2
    assert metrics.gauges["orchestrator_queue_depth['rag']"].value == 2
    edge.leave()
    assert edge.enter()


def test_capacity_is_shown_by_who_takes_calls() -> None:
    """A spare has no room yet; a capacity of the whole host is shown in equal parts."""
    metrics = Metrics()
    shown = "orchestrator_channel_capacity['inference']"
    edge = Edge("inference", 1024, metrics, shared_by=4)
    assert metrics.gauges[shown].value == 0
    edge.resize(512)
    assert metrics.gauges[shown].value == 0
    edge.open()
    assert metrics.gauges[shown].value == 128
    edge.resize(2048)
    assert metrics.gauges[shown].value == 512


def test_room_that_shrinks_keeps_who_waits() -> None:
    """The next one must wait for both to go."""
    edge = Edge("rag", 2, Metrics())
    assert [edge.enter(), edge.enter()] == [True, True]
    edge.resize(1)
    edge.leave()
    assert not edge.enter()
    edge.leave()
    assert edge.enter()


def test_host_wide_room_counts_the_others() -> None:
    """Its own number is published before it looks, so two shards cannot both be last."""
    published: list[int] = []
    seen_by_others: list[int] = []

    def others() -> int:
        seen_by_others.append(published[-1])
        return 3

    edge = Edge("inference", 5, Metrics(), publish=published.append, others=others)
    assert [edge.enter() for _ in range(3)] == [True, True, False]
    assert seen_by_others == [1, 2, 3]
    assert published == [1, 2, 3, 2]
    edge.leave()
    assert published[-1] == 1


def test_each_stage_has_its_configured_capacity() -> None:
    """Only inference is host-wide."""
    capacities = {name: i + 1 for i, name in enumerate(CAPACITY_OF.values())}
    published: list[int] = []
    rooms = make_edges(capacities, Metrics(), published.append, lambda: 0)
    assert tuple(rooms) == STAGES
    for stage in STAGES:
        assert rooms[stage].capacity == capacities[CAPACITY_OF[stage]]
        assert rooms[stage].enter()
    assert published == [1]
    resize_edges(rooms, {name: 100 + size for name, size in capacities.items()})
    for stage in STAGES:
        assert rooms[stage].capacity == capacities[CAPACITY_OF[stage]] + 100
