"""Sessions keep to their backend, and leave it only for reasons."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.routed import RoutedHost, RoutedTarget
from tpo_mp.routes.consistent_hash import Config

TARGETS = [RoutedTarget(name) for name in "abcd"]


def homes(host: RoutedHost, targets: list[RoutedTarget], worker: int = 0) -> dict[str, str]:
    """Where each of many sessions goes."""
    return {s: host.pick(worker, targets, affinity=s) for s in (f"s{n}" for n in range(400))}


def test_every_worker_knows_the_same_home() -> None:
    """Also one that starts later; sessions are spread over all."""
    host = RoutedHost("consistent_hash")
    found = homes(host, TARGETS)
    assert found == homes(host, TARGETS, worker=1) == homes(RoutedHost("consistent_hash"), TARGETS)
    assert min(Counter(found.values()).values()) > 50


def test_a_backend_that_goes_moves_only_its_own_sessions() -> None:
    """And they come back with it."""
    host = RoutedHost("consistent_hash")
    before = homes(host, TARGETS)
    shut = [RoutedTarget(t.name, shut=t.name == "b") for t in TARGETS]
    without = homes(host, shut)
    fewer = homes(host, [t for t in TARGETS if t.name != "b"])
    for found in (without, fewer):
        assert {s for s in before if before[s] != found[s]} == {
            s for s in before if before[s] == "b"
        }
    assert homes(host, TARGETS) == before


def test_a_session_leaves_a_backend_that_has_more_than_its_share() -> None:
    """By the load of all workers, for the next on the ring; without a bound it stays."""
    host, firm = RoutedHost("consistent_hash"), RoutedHost("consistent_hash", spill=0)
    home = host.pick(0, TARGETS, affinity="s")
    for made in (host, firm):
        for name in "abcd":
            made.load(1, name, 20 if name == home else 4)
    moved = host.pick(0, TARGETS, affinity="s")
    assert moved != home
    assert host.pick(1, TARGETS, affinity="s") == moved
    assert firm.pick(0, TARGETS, affinity="s") == home


def test_a_session_stays_where_only_its_own_call_is() -> None:
    """An idle host moves nobody about."""
    host = RoutedHost("consistent_hash")
    home = host.pick(0, TARGETS, affinity="s")
    assert {host.pick(0, TARGETS, affinity="s") for _ in range(5)} == {home}


def test_sessions_of_two_tenants_are_two() -> None:
    """The same name says nothing."""
    host = RoutedHost("consistent_hash")
    pairs = [
        (host.pick(0, TARGETS, affinity=f"s{n}", tenant="x"),
         host.pick(0, TARGETS, affinity=f"s{n}", tenant="y"))
        for n in range(50)
    ]  # fmt: skip
    assert any(x != y for x, y in pairs)


def test_memory_is_bounded() -> None:
    """Sessions are forgotten, not collected."""
    host = RoutedHost("consistent_hash")
    for n in range(6000):
        host.pick(0, TARGETS, affinity=str(n))
    assert len(host.routes[0]._rings._orders) <= 4096


def test_a_bound_below_the_fair_share_is_refused() -> None:
    """It would never hold."""
    with pytest.raises(ValueError, match="below 1"):
        Config(spill=0.5)
