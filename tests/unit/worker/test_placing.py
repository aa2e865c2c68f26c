"""Which seat serves a key: stable, tenant-proof, and as new as the map."""

from __future__ import annotations

import pytest

from tests.support.fake_shards import FakeHost
from tests.unit.worker.conftest import MakeHost
from tpo_mp.shm.plane import BUCKETS, NO_SEAT
from tpo_mp.worker.placing import Placing


def test_key_keeps_its_seat(host: FakeHost) -> None:
    """In every process of the host, for as long as its install key lives."""
    one, other = Placing(host.plane), Placing(host.plane)
    keys = [f"key-{i}" for i in range(200)]
    assert [one.seat_of("t", k) for k in keys] == [other.seat_of("t", k) for k in keys]
    assert {one.seat_of("t", k) for k in keys} == {0, 1}


def test_tenants_do_not_share_places(host: FakeHost) -> None:
    """A guessed session of another tenant lands by chance; joined names are not equal names."""
    placing = Placing(host.plane)
    pairs = [(placing.seat_of("a", str(i)), placing.seat_of("b", str(i))) for i in range(200)]
    assert 50 < sum(a == b for a, b in pairs) < 150
    host.plane.publish_map([i % 2 for i in range(BUCKETS)])
    differ = [placing.seat_of("a", f"b{i}") != placing.seat_of("ab", f"{i}") for i in range(100)]
    assert any(differ)


def test_new_map_holds_at_once(host: FakeHost) -> None:
    """Also the seats nobody serves."""
    placing = Placing(host.plane)
    before = placing.version
    host.plane.publish_map([1] * BUCKETS)
    assert placing.seat_of("", "any") == 1
    assert placing.version > before
    host.plane.publish_map([NO_SEAT] * BUCKETS)
    assert placing.seat_of("", "any") == NO_SEAT


@pytest.mark.parametrize("key", ["", "x" * 100_000, "\ud800", "\0", "ключ", "🎈"])
def test_any_string_is_a_key(host: FakeHost, key: str) -> None:
    """Bodies may hold anything."""
    assert Placing(host.plane).seat_of("t", key) in (0, 1)


def test_only_a_dead_slots_keys_move(make_host: MakeHost) -> None:
    """Everybody else's session stays where it is."""
    host = make_host(workers=4)
    placing = Placing(host.plane)
    keys = [str(i) for i in range(2000)]
    before = {key: placing.seat_of("", key) for key in keys}
    host.plane.publish_map([(i % 4) if i % 4 != 2 else 3 for i in range(BUCKETS)])
    after = {key: placing.seat_of("", key) for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {
        key for key in keys if before[key] == 2
    }
