"""The operations surface: every path answers from shared memory alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import Plane
from tpo_mp.surfaces.ops_api import FEATURE


@pytest.fixture
def surface() -> Iterator[Surface]:
    """A surface over an empty two-worker host."""
    plane = Plane.create(2, 5, bytes(16))
    arena = MetricsArena.create(5)
    yield Surface(FEATURE, plane=plane, metrics_arena=arena)
    plane.close()
    arena.close()


@pytest.mark.parametrize("path", ["/live", "/livez", "/healthz", "/version", "/"])
def test_paths_that_need_nobody_answer_200(surface: Surface, path: str) -> None:
    """This process is alive, whatever the host is."""
    exchange = surface.ask("GET", path)
    assert exchange.status == 200
    assert exchange.json()


@pytest.mark.parametrize("path", ["/ready", "/readyz"])
def test_host_without_a_serving_shard_is_not_ready(surface: Surface, path: str) -> None:
    """Readiness is the host's, not this process's."""
    assert surface.ask("GET", path).status == 503


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_has_the_whole_picture(surface: Surface, path: str) -> None:
    """It answers with a body even when the host is not well."""
    exchange = surface.ask("GET", path)
    assert exchange.status == 503
    body = exchange.json()
    assert body["status"]
    # As configured, though no shard has published its rooms: two shards, one room for inference.
    room = body["pipeline"]["inbound_queue"]["capacity"]
    assert room == 2 * (512 + 512 + 512 + 256) + 1024


def test_metrics_are_prometheus_text(surface: Surface) -> None:
    """The exposition's own media type."""
    exchange = surface.ask("GET", "/metrics")
    assert exchange.content_type.startswith(b"text/plain")
    assert b"# TYPE" in exchange.answer


def test_banner_lists_the_routes(surface: Surface) -> None:
    """The front door names every template once, in order."""
    listed = surface.ask("GET", "/").json()["endpoints"]
    assert listed == sorted(set(listed))
    assert "/metrics" in listed
