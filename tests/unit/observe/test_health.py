"""Health and readiness from the control words."""

from __future__ import annotations

import os

import pytest

from tests.unit.observe.views import FakeArena, FakePlane, FakeSeat, gauge, running_host
from tpo_mp.observe import health
from tpo_mp.pipeline.scoring import BackendTally
from tpo_mp.shm.plane import HostState, SeatState

PLACES = {"rag": 256}


def test_the_names_of_states_are_those_of_the_plane() -> None:
    """The numbers are not known here twice with different meanings."""
    assert [s.name.lower() for s in HostState] == list(health.HOST_STATES)
    assert [s.name.lower() for s in SeatState] == list(health.SEAT_STATES)
    assert (health.RUNNING, health.READY) == (HostState.RUNNING, SeatState.READY)


def test_live_depends_on_nothing() -> None:
    """It always says alive."""
    assert health.live() == {"status": "alive", "alive": True}


def test_ready_while_one_shard_serves() -> None:
    """One shard is enough; what is missing is named."""
    plane = running_host()
    assert health.ready(plane) == (200, {"status": "ready", "ready": True, "degraded": []})
    plane.lines[1].state = 1
    plane.lines[4].state = 0
    status, body = health.ready(plane)
    assert (status, body["degraded"]) == (200, ["slot-1", "control"])


@pytest.mark.parametrize(
    ("host", "reason"), [(0, "starting"), (2, "shutting_down"), (3, "shutting_down")]
)
def test_a_host_that_does_not_run_is_not_ready(host: int, reason: str) -> None:
    """Starting and draining answer 503 with the reason."""
    plane = running_host()
    plane.host_state = host
    status, body = health.ready(plane)
    assert (status, body["reason"], body["ready"]) == (503, reason, False)


def test_without_a_shard_it_is_not_ready() -> None:
    """No seat serves, or no slot has one."""
    plane = running_host()
    plane.slots = [0xFFFF, 0xFFFF]
    assert health.ready(plane)[1]["reason"] == "no_shard"
    plane.slots = [0, 1]
    plane.lines[0].state = plane.lines[1].state = 4
    assert health.ready(plane)[0] == 503


def test_a_store_that_cannot_write_degrades_readiness() -> None:
    """Service goes on, and says so."""
    arena = FakeArena([gauge("tpo_store_broken", 1, part="letters")])
    status, body = health.ready(running_host(), arena)
    assert (status, body["degraded"]) == (200, ["store-letters"])


def test_a_redis_that_is_away_degrades_readiness() -> None:
    """One worker without it is enough."""
    for down, missing in ((0, []), (1, ["redis"])):
        arena = FakeArena([gauge("tpo_redis_down", down)])
        status, body = health.ready(running_host(), arena)
        assert (status, body["degraded"]) == (200, missing)


def test_health_has_the_documented_shape() -> None:
    """Every key of the health payload is there, with its numbers."""
    plane = running_host()
    plane.lines[0].pid = os.getpid()
    arena = FakeArena(
        [
            gauge("tpo_open_calls_limit", 100),
            gauge("tpo_dead_letters", 7),
            gauge("orchestrator_queue_depth", 128, stage="rag"),
        ]
    )
    body = health.health(plane, arena, PLACES)
    assert health.health_status(body) == 200
    assert body["status"] == "healthy"
    assert body["shutting_down"] is False
    assert body["uptime_secs"] > 0
    assert body["pipeline"] == {
        "inbound_queue": {"used": 128, "capacity": 512, "depth_pct": 25.0},
        "circuit_breaker": {"state": "closed", "is_open": False},
        "dead_letter_queue_depth": 7,
    }
    assert body["worker_pool"] == {
        "pending_requests": 6,
        "tracker_used": 6,
        "tracker_capacity": 100,
        "tracker_depth_pct": 6.0,
    }
    assert body["memory"]["rss_bytes"] > 1 << 20
    assert body["circuit_breaker"]["state"] == "closed"
    assert [shard["state"] for shard in body["host"]["shards"]] == ["ready", "ready"]
    assert body["degraded"] == []
    assert (body["total_nodes"], body["healthy_nodes"], body["cluster_load"]) == (1, 1, 0.06)
    assert body["loaded_models"] == []
    assert body["load_balancer_stats"] == {
        "total_requests": 0, "unhealthy_count": 0, "by_endpoint": {},
    }  # fmt: skip


def test_health_tells_how_backends_stand_and_which_models_there_are() -> None:
    """Alike for all pages; a host that drains is no node that is well."""
    states = gauge(health.STATE_GAUGE, 4, backend="b")
    states.samples += gauge(health.STATE_GAUGE, 2, backend="a").samples
    plane = running_host()
    tries = {"a": BackendTally(7, 2, 1.5), "c": BackendTally(0, 0, None)}
    body = health.health(plane, FakeArena([states]), PLACES, ["m", "k", "m"], tries)
    assert body["loaded_models"] == ["k", "m"]
    assert body["load_balancer_stats"] == {
        "total_requests": 7,
        "unhealthy_count": 1,
        "by_endpoint": {
            "a": {"state": "ready", "is_healthy": True, "requests": 7, "failures": 2,
                  "avg_latency_ms": 1.5},
            "b": {"state": "down", "is_healthy": False},
            "c": {"state": "unknown", "is_healthy": True, "requests": 0, "failures": 0,
                  "avg_latency_ms": None},
        },
    }  # fmt: skip
    breakers = gauge(health.BREAKER_GAUGE, 2, worker="c")
    breakers.samples += gauge(health.BREAKER_GAUGE, 0, worker="a").samples
    tries = {name: BackendTally(1, 1, None, failing=True) for name in ("a", "c", "d")}
    told = health.health(plane, FakeArena([breakers]), PLACES, (), tries)["load_balancer_stats"]
    assert told["unhealthy_count"] == 2
    well = {name: one["is_healthy"] for name, one in told["by_endpoint"].items()}
    assert well == {"a": True, "c": False, "d": False}, "of d there is no breaker to ask"
    plane.host_state = 2
    assert health.health(plane, FakeArena(), PLACES)["healthy_nodes"] == 0


def test_health_is_503_while_draining_or_when_every_breaker_is_open() -> None:
    """One closed breaker is enough to be healthy."""
    name = health.BREAKER_GAUGE
    one_open = gauge(name, 2, worker="a")
    one_open.samples += gauge(name, 0, worker="b").samples
    both_open = gauge(name, 2, worker="a")
    both_open.samples += gauge(name, 2, worker="b").samples
    plane = running_host()
    body = health.health(plane, FakeArena([one_open]), PLACES)
    assert (health.health_status(body), body["circuit_breaker"]["state"]) == (200, "closed")
    assert (body["status"], body["degraded"]) == ("degraded", ["breaker-a"])
    models = gauge(name, 2, worker="a:m")
    models.samples += gauge(name, 0, worker="a").samples
    body = health.health(plane, FakeArena([models]), PLACES)
    assert (health.health_status(body), body["degraded"]) == (200, ["breaker-a:m"])
    body = health.health(plane, FakeArena([both_open]), PLACES)
    assert (health.health_status(body), body["circuit_breaker"]["state"]) == (503, "open")
    plane.host_state = 2
    body = health.health(plane, FakeArena(), PLACES)
    assert (health.health_status(body), body["status"]) == (503, "shutting_down")


def test_a_slot_without_a_seat_is_shown_empty() -> None:
    """Words out of range are no reason to fail."""
    plane = FakePlane(slots=[0xFFFF, 1])
    plane.lines[1] = FakeSeat(epoch=3, pid=0, state=99)
    body = health.health(plane, FakeArena(), PLACES)
    assert [shard["state"] for shard in body["host"]["shards"]] == ["empty", "unknown"]


def test_a_process_that_is_gone_has_no_memory() -> None:
    """A pid that died between reading and asking counts nothing."""
    plane = running_host()
    plane.lines[0].pid = 2**22 + 1
    assert health.health(plane, FakeArena(), PLACES)["memory"]["rss_bytes"] == 0
