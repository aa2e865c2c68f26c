"""Hedging in a running gateway: two workers before two upstreams, one of which is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.load import Crowd
from tests.support.raw import chat
from tests.support.shards import Way, ways
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

FLOOR = 12


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[tuple[Gateway, list[Upstream], list[Way]]]:
    """``race`` may ask a second backend as often as it likes, ``scarce`` twelve times."""
    with ExitStack() as made:
        both = [made.enter_context(Upstream()) for _ in range(2)]
        race = {"strategy": "hedge", "backends": ["left", "right"], "budget": 0.0}
        config = (
            ECHO
            + backend("left", both[0].base_url, "*")
            + backend("right", both[1].base_url, "*")
            + section("[[routes]]", models=["echo"], backends=["echo"])
            + section("[[routes]]", models=["race"], delay_s=0.1, budget_floor=1000, **race)
            + section("[[routes]]", models=["scarce"], delay_s=0.1, budget_floor=FLOOR, **race)
        )
        gateway = made.enter_context(Gateway(short_tmp / "hedge", config=config, workers=2))
        found = ways(gateway.url)
        yield gateway, both, [found["local-fast"], found["forwarded-fast"]]


@pytest.mark.parametrize("stream", [False, True])
def test_slow_backend_costs_no_answer(
    bench: tuple[Gateway, list[Upstream], list[Way]], stream: bool
) -> None:
    """Whichever is asked first, the quick one answers, and the slow one's request is cancelled."""
    _, (left, right), roads = bench
    left.forget()
    right.forget()
    left.play("hang")
    aborted = left.counters.aborted
    for _ in range(2):
        for road in roads:
            reply = road.ask(chat("hi", "race", stream=stream))
            assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "right")
    assert left.seen
    wait_for(lambda: left.counters.aborted - aborted == len(left.seen), 5, "cancelled requests")
    assert len(right.seen) == 4


def test_second_requests_are_bounded_for_the_host(
    bench: tuple[Gateway, list[Upstream], list[Way]],
) -> None:
    """Twelve of forty calls, whoever of two workers serves them; the rest wait for the slow."""
    gateway, both, _ = bench
    before = _hedges(gateway)  # of the other test: the purse is one for all routes
    all_here = threading.Event()
    for upstream in both:
        upstream.forget()
        upstream.play("answer", until=all_here)
    began = time.monotonic()
    with Crowd(gateway.url, 40, model="scarce", stream=False, apart=True) as crowd:
        try:
            wanted = 40 + FLOOR - before
            wait_for(lambda: sum(len(one.seen) for one in both) >= wanted, 15, "second requests")
        finally:
            all_here.set()
        attempts = crowd.ended()
    spans = (time.monotonic() - began) / 10
    assert {attempt.status for attempt in attempts} == {200}
    assert {attempt.slot for attempt in attempts} == {0, 1}
    more = sum(len(upstream.seen) for upstream in both) - 40
    assert FLOOR - before <= more <= FLOOR * (1 + spans) + 1
    assert _hedges(gateway) - before == more > 0
    page = gateway.metrics()
    assert metric(page, "tpo_hedge_lost_tokens_total") >= 7 * more


def _hedges(gateway: Gateway) -> float:
    return metric(gateway.metrics(), "tpo_hedges_total")
