"""Calls leave no reference cycles: whatever they made goes when the last one lets go of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import RawClient, build, chat
from tests.support.shards import CHAT
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CALLS = 4000
BATCH = 50
PER_CALL = 0.25
"""A cycle has more objects than one; connections and their first heads make a few."""


@pytest.fixture(scope="module")
def gateway(short_tmp: Path) -> Iterator[Gateway]:
    """Two shards before an upstream and an echo."""
    with Upstream() as upstream:
        config = ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "garbage", config=config, workers=2) as gateway:
            yield gateway


def collected(gateway: Gateway) -> float:
    """What all shards' collectors have freed, as of their last count."""
    return metric(page(gateway), "tpo_gc_collected_total")


def page(gateway: Gateway) -> str:
    """The metrics as control has them: to render them makes cycles, but not in a shard."""
    return gateway.metrics()


def settled(gateway: Gateway) -> float:
    """The same once every shard has counted again."""

    def counts() -> float:
        return metric(page(gateway), "tpo_loop_lag_seconds_count")

    target = counts() + 60  # the beats of one second and a half, of two shards
    wait_for(lambda: counts() >= target, 20, "a second of both", every_s=0.2)
    return collected(gateway)


def requests(number: int, model: str, **body: object) -> Iterator[bytes]:
    """Requests of sessions of both shards."""
    for n in range(number):
        headers = {
            "Host": "127.0.0.1", "Content-Type": "application/json", "X-Session-Id": f"g-{n % 16}",
        }  # fmt: skip
        yield build("POST", CHAT, headers, json.dumps(chat(f"call {n}", model, **body)).encode())


def ask_all(gateway: Gateway, every: Iterable[bytes], status: int) -> None:
    """Send them in batches on one connection."""
    todo = list(every)
    with RawClient(gateway.url, timeout_s=30) as client:
        for at in range(0, len(todo), BATCH):
            client.send(b"".join(todo[at : at + BATCH]))
            for _ in todo[at : at + BATCH]:
                assert client.read_reply("POST").status == status


@pytest.mark.parametrize(
    ("model", "stream", "status", "calls"),
    [
        ("echo", False, 200, CALLS),
        ("echo", True, 200, CALLS),
        ("nobody", False, 404, CALLS),
        ("up", False, 200, CALLS // 4),
        ("up", True, 200, CALLS // 4),
    ],
    ids=["unary", "stream", "error", "relayed", "relayed stream"],
)
def test_calls_leave_nothing_for_the_collector(
    gateway: Gateway, model: str, stream: bool, status: int, calls: int
) -> None:
    """Local and forwarded: the collector finds next to nothing after thousands of calls."""
    ask_all(gateway, requests(BATCH, model, stream=stream), status)
    before = settled(gateway)
    ask_all(gateway, requests(calls, model, stream=stream), status)
    freed = settled(gateway) - before
    print(f"{freed:.0f} objects after {calls} calls")
    assert freed < PER_CALL * calls
