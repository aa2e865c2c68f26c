"""The host's breakers as series: what a backend's state is, and what health makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.observe.health import BREAKER_GAUGE
from tpo_mp.pipeline.attribution import Blame
from tpo_mp.pipeline.breaker_board import BreakerSeries
from tpo_mp.pipeline.breaker_rows import BreakerRow, BreakerRows, KnownTargets
from tpo_mp.pipeline.circuit import Rules, failed
from tpo_mp.ports import BackendConfig
from tpo_mp.shm.metrics import MetricsArena

RULES = Rules(5, 60.0, 1, 0.8, 30.0)


class Host:
    """Two workers' metrics and one ledger."""

    def __init__(self, arena: MetricsArena, *backends: BackendConfig) -> None:
        self.world = FakeWorld()
        self.workers = []
        for seat in range(2):
            rows = BreakerRows(replace(self.world.env, metrics=arena.block(seat, 1)))
            rows.introduce(KnownTargets(backends))
            self.workers.append(rows)
        self.series = BreakerSeries(arena, self.world.env.ledger, lambda: self.world.now)

    def fail(self, name: str, fault: Blame, crowd: bool = False) -> None:
        """Open a breaker, both workers taking turns."""
        for n in range(RULES.threshold):
            place = BreakerRow(name, fault, crowd)
            self.workers[n % 2].change(place, lambda c: failed(c, RULES, self.world.now))
            self.workers[n % 2].failures(place).inc()

    def gauge(self, name: str = BREAKER_GAUGE) -> dict[str, float]:
        """One family by breaker."""
        family = next(f for f in self.series.collect() if f.name == name)
        return {dict(s.labels)["worker"]: s.value for s in family.samples}


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """Metrics of two seats."""
    made = MetricsArena.create(2)
    yield made
    made.close()


def backend(name: str, *models: str) -> BackendConfig:
    """An entry."""
    return BackendConfig(name=name, kind="echo", models=models)


def test_every_backend_and_model_of_the_config_has_a_state(arena: MetricsArena) -> None:
    """Before anything failed, whichever worker is asked, and once."""
    host = Host(arena, backend("a", "m", "n"), backend("b", "*"))
    assert host.gauge() == {"a": 0, "a:m": 0, "a:n": 0, "b": 0}


def test_states_are_the_ledgers_not_sums_of_workers(arena: MetricsArena) -> None:
    """Opened by both together: 2, five failures, a minute; half open when it is over."""
    host = Host(arena, backend("a", "m"))
    host.fail("a", Blame.CREDENTIAL)
    assert host.gauge()["a"] == 2
    assert host.gauge("orchestrator_circuit_breaker_failures")["a"] == 5
    host.world.now += 50
    assert host.gauge("orchestrator_circuit_breaker_next_probe_seconds")["a"] == 10
    host.world.now += 10
    assert host.gauge()["a"] == 1


def test_a_backend_is_shut_when_all_its_models_are(arena: MetricsArena) -> None:
    """Unless it serves others that nobody named."""
    host = Host(arena, backend("a", "m", "n"), backend("b", "m", "*"))
    host.fail("a:m", Blame.BACKEND)
    host.fail("b:m", Blame.BACKEND)
    host.fail("b:x", Blame.BACKEND, crowd=True)
    assert host.gauge() == {"a": 0, "a:m": 2, "a:n": 0, "b": 0, "b:m": 2, "b:x": 2}
    host.fail("a:n", Blame.BACKEND)
    assert host.gauge()["a"] == 2
