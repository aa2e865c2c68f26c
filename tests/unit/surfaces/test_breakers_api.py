"""Breakers over HTTP: what is listed, what a reset and a trip change, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.config import load
from tpo_mp.errors import TpoError
from tpo_mp.pipeline.attribution import Blame
from tpo_mp.pipeline.breaker_rows import BreakerRow, BreakerRows
from tpo_mp.pipeline.circuit import Rules, benched, failed
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.surfaces.breakers_api import FEATURE

RULES = Rules(5, 60.0, 1, 0.8, 30.0)
TABLES: dict[str, Any] = {
    "backends": [
        {"name": "a", "kind": "echo", "models": ["m", "n"]},
        {"name": "b", "kind": "echo", "models": ["*"]},
    ]
}
ALL = "/api/v1/circuit-breakers"


class Board:
    """The surface, and the rows of a breaker beside it."""

    def __init__(self, arena: MetricsArena, **tables: Any) -> None:
        config = load.build({**TABLES, **tables}, {}, {}, None)
        self.surface = Surface(FEATURE, metrics_arena=arena, config=config)
        self.rows = BreakerRows(self.surface.world.env)

    def fail(self, name: str, fault: Blame, times: int = 5, crowd: bool = False) -> None:
        """Fail so often in a row."""
        now = self.surface.world.now
        for _ in range(times):
            row = BreakerRow(name, fault, crowd)
            self.rows.change(row, lambda c: failed(c, RULES, now))

    def get(self, target: str = ALL) -> Any:
        """What a page says."""
        return self.surface.ask("GET", target).json()

    def states(self) -> dict[str, str]:
        """Every breaker's state."""
        return {b["name"]: b["status"] for b in self.get()["circuit_breakers"]}


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """Nobody's metrics."""
    made = MetricsArena.create(2)
    yield made
    made.close()


def test_all_of_the_config_are_listed_and_those_that_failed(arena: MetricsArena) -> None:
    """Under a glob a model is known once it failed; what failed and worked is counted."""
    block = arena.block(0, 1)
    text = {"breaker": "b:x", "fault": "backend"}
    block.counter("tpo_breaker_failures_total", "", **text).inc(3)
    block.counter("tpo_breaker_successes_total", "", breaker="b:x").inc(9)
    board = Board(arena)
    board.fail("b:x", Blame.BACKEND, crowd=True)
    assert board.states() == {
        "a": "closed", "a:m": "closed", "a:n": "closed", "b": "closed", "b:x": "open",
    }  # fmt: skip
    shown = board.get(f"{ALL}/b:x")
    assert (shown["failed_total"], shown["successes"], shown["success_rate"]) == (3, 9, 0.75)
    assert (shown["failures"], shown["next_probe_in_secs"]) == (5, 60.0)


def test_a_record_tells_each_fault_and_time(arena: MetricsArena) -> None:
    """The worst of its circuits is its own state."""
    board = Board(arena)
    board.fail("a", Blame.CREDENTIAL)
    board.fail("a", Blame.NETWORK, times=2)
    board.surface.world.now += 20
    shown = board.get(f"{ALL}/a")
    assert shown["status"] == "open"
    assert shown["time_in_current_state"] == 20.0
    assert shown["faults"]["network"]["status"] == "closed"
    assert shown["faults"]["network"]["failures"] == 2
    assert shown["faults"]["credential"]["next_probe_in_secs"] == 40.0
    board.surface.world.now += 40
    assert board.get(f"{ALL}/a")["status"] == "half_open"


def test_a_reset_closes_a_backend_and_its_models(arena: MetricsArena) -> None:
    """And ends their pauses; other backends stay as they are."""
    board = Board(arena)
    for name, fault in (("a", Blame.NETWORK), ("a:m", Blame.BACKEND), ("b", Blame.NETWORK)):
        board.fail(name, fault)
    now = board.surface.world.now
    board.rows.change(BreakerRow("a:n", Blame.CAPACITY, False), lambda c: benched(c, now, 30))
    assert board.get(f"{ALL}/a:n")["paused_for_secs"] == 30
    done = board.surface.ask("POST", f"{ALL}/a/reset").json()
    assert done == {"reset": ["a", "a:m", "a:n"], "count": 3}
    assert {k for k, v in board.states().items() if v == "open"} == {"b"}
    assert board.get(f"{ALL}/a:n")["paused_for_secs"] == 0
    everything = board.surface.ask("POST", "/v1/circuit-breaker/reset", {}).json()
    assert everything["count"] == 4
    assert set(board.states().values()) == {"closed"}


def test_one_is_reset_by_the_name_in_the_body(arena: MetricsArena) -> None:
    """Its backend stays as it is."""
    board = Board(arena)
    board.fail("a:m", Blame.BACKEND)
    board.fail("a", Blame.NETWORK)
    asked = {"name": "a:m"}
    assert board.surface.ask("POST", "/v1/circuit-breaker/reset", asked).json()["count"] == 1
    assert board.states()["a:m"] == "closed"
    assert board.states()["a"] == "open"


def test_a_trip_opens_it_for_as_long_as_failures_would(arena: MetricsArena) -> None:
    """By the options of the config."""
    board = Board(arena, stages={"breaker": {"open_s": 7}})
    shown = board.surface.ask("POST", f"{ALL}/a:n/trip").json()
    assert (shown["status"], shown["next_probe_in_secs"]) == ("open", 7.0)
    assert board.surface.ask("POST", f"{ALL}/b/trip").json()["faults"]["network"]["status"] == (
        "open"
    )


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "reason"),
    [
        ("GET", f"{ALL}/nobody", b"", 404, "breaker_not_found"),
        ("GET", f"{ALL}/b:*", b"", 404, "breaker_not_found"),
        ("POST", f"{ALL}/a:q/reset", b"", 404, "breaker_not_found"),
        ("POST", f"{ALL}/nobody/trip", b"", 404, "breaker_not_found"),
        ("POST", "/v1/circuit-breaker/reset", b'{"name":"nobody"}', 404, "breaker_not_found"),
        ("POST", "/v1/circuit-breaker/reset", b'{"name":5}', 422, "VALIDATION_ERROR"),
        ("POST", "/v1/circuit-breaker/reset", b'{"nam":"a"}', 422, "VALIDATION_ERROR"),
        ("POST", "/v1/circuit-breaker/reset", b"[]", 422, "VALIDATION_ERROR"),
    ],
)
def test_what_is_not_there_or_wrong_is_refused(
    arena: MetricsArena, method: str, target: str, body: bytes, status: int, reason: str
) -> None:
    """In words of ours."""
    with pytest.raises(TpoError) as refusal:
        Board(arena).surface.send(method, target, body)
    assert (refusal.value.status, refusal.value.reason) == (status, reason)


def test_a_name_may_have_slashes(arena: MetricsArena) -> None:
    """Models of engines often do."""
    board = Board(arena, backends=[{"name": "c", "kind": "echo", "models": ["org/model"]}])
    for name in ("c:org/model", "c:org%2Fmodel"):
        assert board.surface.ask("POST", f"{ALL}/{name}/trip").json()["status"] == "open"
        assert board.get(f"{ALL}/{name}")["name"] == "c:org/model"
        assert board.surface.ask("POST", f"{ALL}/{name}/reset").json()["count"] == 1
        assert board.get(f"{ALL}/{name}")["status"] == "closed"


def test_without_a_breaker_nothing_can_be_tripped(arena: MetricsArena) -> None:
    """It would open nothing."""
    board = Board(arena, stages={"breaker": {"enabled": False}})
    refusal = board.surface.refusal("POST", f"{ALL}/a/trip")
    assert (refusal.status, refusal.reason) == (409, "breaker_off")
