"""What the host says of itself, asked of both workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, ask, chat
from tests.support.shards import CHAT, connect_to, each_shard
from tests.support.toml import ECHO
from tests.support.wait import wait_for

CONFIG = ECHO + "[surfaces.status_api]\ndebug = true\n"
DEBUG = ("/api/v1/debug/dlq", "/api/v1/debug/pipeline", "/api/v1/debug/dedup-index")


@pytest.fixture(scope="module")
def open_host(short_tmp: Path) -> Iterator[Gateway]:
    """Two shards that show their inside."""
    with Gateway(short_tmp / "status", config=CONFIG, workers=2) as gateway:
        yield gateway


@pytest.fixture
def clients(open_host: Gateway) -> Iterator[tuple[RawClient, RawClient]]:
    """A connection to each of them; what was asked to find them is counted."""
    with each_shard(open_host.url) as both:
        open_host.settle()
        yield both


def test_both_workers_count_the_calls_of_both(clients: tuple[RawClient, RawClient]) -> None:
    """One truth per host, whoever is asked."""

    def done(client: RawClient) -> int:
        found: int = client.request("GET", "/v1/metrics").json()["server_metrics"]["calls"]["done"]
        return found

    before = max(done(client) for client in clients)
    for client in clients:
        for _ in range(3):
            assert client.post_json(CHAT, chat("x")).status == 200
    for client in clients:
        wait_for(lambda c=client: done(c) == before + 6, 5, "six more calls")  # type: ignore[misc]


@pytest.mark.parametrize(
    "path", ["/api/v1/pipeline/status", "/v1/cluster/status", "/api/v1/debug/dlq"]
)
def test_both_workers_answer_alike(clients: tuple[RawClient, RawClient], path: str) -> None:
    """But for memory, which breathes, and a second that ends between the two."""
    bodies: list[dict[str, Any]] = []

    def alike() -> bool:
        bodies.clear()
        for client in clients:
            body = told(client, path)
            body.pop("memory", None)
            for node in body.get("nodes", []):
                node.pop("rss_bytes")
            bodies.append(body)
        return bodies[0] == bodies[1]

    try:
        wait_for(alike, 5, "the same from both")
    finally:
        print(bodies)


def told(client: RawClient, path: str) -> dict[str, Any]:
    """What a worker answers, when control is not too busy to be asked."""

    def answered() -> RawReply | None:
        reply = client.request("GET", path)
        assert reply.status in (200, 503), reply
        return reply if reply.status == 200 else None

    found: dict[str, Any] = wait_for(answered, 20, path, every_s=0.1).json()
    return found


def test_queues_and_backends_are_the_configured_ones(clients: tuple[RawClient, RawClient]) -> None:
    """Nothing waits; one backend; both shards serve."""
    status = clients[0].request("GET", "/api/v1/pipeline/status").json()
    assert (status["status"], status["pipeline_queue_len"]) == ("running", 0)
    assert status["pipeline_queue_capacity"] == status["pipeline_queue_max"] > 0

    def cluster_now() -> dict[str, Any]:
        told: dict[str, Any] = clients[1].request("GET", "/v1/cluster/status").json()
        return told if (told["healthy_nodes"], told["shards_ready"]) == (1, 2) else {}

    cluster = wait_for(cluster_now, 10, "one node of two shards")
    assert [b["name"] for b in cluster["inference_engine"]["backends"]] == ["echo"]


def test_debug_dlq_is_the_dlq(clients: tuple[RawClient, RawClient]) -> None:
    """Another path to the same list."""
    same = [told(clients[0], path) for path in ("/api/v1/dlq", DEBUG[0], "/v1/dlq")]
    assert same[0] == same[1] == same[2]


def test_shared_answers_are_counted_for_the_host(clients: tuple[RawClient, RawClient]) -> None:
    """Of calls that came to either worker; sampled ones share nothing."""
    for client in clients:
        for _ in range(2):
            assert client.post_json(CHAT, chat("the same", temperature=0)).status == 200
        assert client.post_json(CHAT, chat("the same", temperature=1)).status == 200

    def counted() -> bool:
        one, other = (client.request("GET", DEBUG[2]).json() for client in clients)
        assert (one["enabled"], one["semantic"]["enabled"]) == (True, False)
        return bool(one == other and 1 <= one["total_submitted"] <= 4)

    wait_for(counted, 10, "the count, alike from both workers")


def test_inside_is_404_unless_configured(echo_gateway: Gateway) -> None:
    """As a route that does not exist."""
    for path in DEBUG:
        assert echo_gateway.ask(path).status == 404


def test_health_counts_the_same_rooms(echo_gateway: Gateway) -> None:
    """Both ports and both workers: inference is one room for all, the others one per shard."""
    status = echo_gateway.ask("/api/v1/pipeline/status").json()
    assert {s["stage"]: s["capacity"] for s in status["stages"]} == {
        "rag": 1024, "assemble": 1024, "inference": 1024, "post_process": 1024, "stream": 512,
    }  # fmt: skip
    said = [ask(echo_gateway.ops, "/health").json()]
    for slot in (0, 1):
        with connect_to(echo_gateway.url, slot) as client:
            said.append(client.request("GET", "/health").json())
    assert [s["pipeline"]["inbound_queue"]["capacity"] for s in said] == [
        status["pipeline_queue_max"]
    ] * 3
