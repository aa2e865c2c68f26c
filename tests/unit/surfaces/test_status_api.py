"""The host's state as JSON: sums of shared memory, words of the configuration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_env import FakeWorld
from tests.support.fake_gateway import Surface
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import HostState, Plane
from tpo_mp.surfaces import status_api
from tpo_mp.surfaces.status_api import FEATURE


@pytest.fixture
def surface() -> Iterator[Surface]:
    """Two seats that have written something."""
    plane, arena = Plane.create(2, 5, bytes(16)), MetricsArena.create(5)
    plane.host_state = HostState.RUNNING
    for seat in (0, 1):
        block = arena.block(seat, 1)
        block.gauge("orchestrator_queue_depth", "w", stage="inference").set(3)
        block.counter("tpo_calls_total", "c", terminal="done").inc(5)
        plane.seat(seat).open_calls = 2
    yield Surface(FEATURE, plane=plane, metrics_arena=arena)
    plane.close()
    arena.close()


def test_queues_are_added_up_over_the_host(surface: Surface) -> None:
    """Free places and waiting calls make all places; inference is one room for all shards."""
    body = surface.ask("GET", "/api/v1/pipeline/status").json()
    assert (body["status"], body["pending_requests"]) == ("running", 4)
    assert body["pipeline_queue_len"] == 6
    assert (
        body["pipeline_queue_len"] + body["pipeline_queue_capacity"] == (body["pipeline_queue_max"])
    )
    rooms = {stage["stage"]: stage for stage in body["stages"]}
    assert (rooms["inference"]["waiting"], rooms["inference"]["capacity"]) == (6, 1024)
    assert rooms["rag"]["capacity"] == 2 * 512


def test_metrics_are_those_of_the_whole_host(surface: Surface) -> None:
    """Each series once, and what is not configured says so."""
    body = surface.ask("GET", "/v1/metrics").json()
    assert body["server_metrics"]["calls"] == {"done": 10}
    assert body["metrics"]["tpo_calls_total"] == [{"labels": {"terminal": "done"}, "value": 10}]
    assert body["auth_stats"] == {"enabled": False, "keys": 0}
    assert body["rate_limit_stats"]["enabled"] is False


def test_cluster_is_this_host(surface: Surface) -> None:
    """One node with its slots; none of them serves here."""
    body = surface.ask("GET", "/v1/cluster/status").json()
    assert (body["total_nodes"], body["healthy_nodes"], body["shards_ready"]) == (1, 0, 0)
    assert [shard["slot"] for shard in body["nodes"][0]["shards"]] == [0, 1]


def test_inside_is_shown_on_request_only(surface: Surface) -> None:
    """The routes exist only where the configuration says so."""
    quiet = {endpoint.template for endpoint in surface.gateway.table}
    built = FEATURE.build(status_api.Config(debug=True), FakeWorld().env)
    loud = {endpoint.template for endpoint in built.endpoints(surface.gateway)}
    assert loud - quiet == {f"/api/v1/debug/{name}" for name in ("dlq", "pipeline", "dedup-index")}
