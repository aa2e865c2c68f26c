"""Values on their way to a store that may be away."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fake_env import SilentMetrics, SilentSeries
from tests.support.wait import until
from tpo_mp.store.questions import VALUE_BYTES
from tpo_mp.worker import puts
from tpo_mp.worker.puts import Puts


class FlakyStore:
    """Refuses the first puts; each takes a turn of the loop."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.asked = 0
        self.kept: list[tuple[str, str, bytes, float]] = []
        self.waits: list[float] = []

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None:
        """Nobody asks."""
        raise AssertionError(table, key)

    async def put(
        self, table: str, key: str, value: bytes, ttl_s: float, wait_s: float = 0.05
    ) -> bool:
        """Take or refuse."""
        self.asked += 1
        self.waits.append(wait_s)
        await asyncio.sleep(0)
        if self.asked <= self.refusals:
            return False
        self.kept.append((table, key, value, ttl_s))
        return True


class Counted(SilentMetrics):
    """Counts what was given up."""

    def __init__(self) -> None:
        self.lost = SilentSeries()

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """The one there is."""
        assert (name, labels) == ("tpo_store_values_lost_total", {"table": "t"})
        return self.lost


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(puts, "RETRY_S", 0.0)
    monkeypatch.setattr(puts, "LONGEST_S", 0.0)


async def settle() -> None:
    """Let every put come to its end."""
    await until(lambda: len(asyncio.all_tasks()) == 1, what="the end of every put", every_s=0)


def test_value_is_put_until_it_is_taken() -> None:
    """Control may be restarting."""
    store = FlakyStore(refusals=7)

    async def story() -> None:
        Puts(store, "t", Counted()).put("a", b"1", 5.0)
        await settle()

    asyncio.run(story())
    assert store.kept == [("t", "a", b"1", 5.0)]


def test_newest_value_is_the_last_one_written() -> None:
    """Values that came while one was under way are not put after a newer one."""
    store = FlakyStore()

    async def story() -> None:
        waiting = Puts(store, "t", Counted())
        for value in (b"1", b"2", b"3"):
            waiting.put("a", value, 5.0)
            waiting.put("b", value, 5.0)
            await asyncio.sleep(0)
        await settle()

    asyncio.run(story())
    for key in ("a", "b"):
        values = [value for _, found, value, _ in store.kept if found == key]
        assert values[-1] == b"3"
        assert values == sorted(values)


def test_value_nobody_takes_waits_as_long_as_it_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be full for minutes; then it is counted, and the next value is tried anew."""
    now = [0.0]
    monkeypatch.setattr(puts, "monotonic", lambda: now[0])
    store, metrics = FlakyStore(refusals=10**9), Counted()

    async def story() -> None:
        waiting = Puts(store, "t", metrics)
        waiting.put("a", b"1", 60.0)
        many = "far more than ten seconds' worth of tries"
        await until(lambda: store.asked > 500, what=many, every_s=0)
        assert metrics.lost.value == 0
        now[0] = 60.0
        await settle()
        assert metrics.lost.value == 1
        store.refusals = 0
        waiting.put("a", b"2", 5.0)
        await settle()

    asyncio.run(story())
    assert [value for _, _, value, _ in store.kept] == [b"2"]


def test_what_waits_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes; what is put again meanwhile is put once at a time."""
    monkeypatch.setattr(puts, "MAX_BYTES", 10)
    monkeypatch.setattr(puts, "MAX_VALUES", 3)
    store, metrics = FlakyStore(refusals=40), Counted()

    async def story() -> None:
        waiting = Puts(store, "t", metrics)
        for name in "abcd":
            waiting.put(name, b"1", 60.0)
        assert metrics.lost.value == 1
        waiting.put("a", b"2", 60.0)
        waiting.put("e", b"123456789", 60.0)
        assert metrics.lost.value == 4
        await settle()

    asyncio.run(story())
    assert [(key, value) for _, key, value, _ in store.kept] == [("a", b"2"), ("e", b"123456789")]


def test_long_value_has_the_time_that_it_takes_to_be_written() -> None:
    """Else it would be sent again, whole, while control still writes it."""
    store = FlakyStore()

    async def story() -> None:
        waiting = Puts(store, "t", Counted())
        waiting.put("a", b"1", 5.0)
        waiting.put("b", bytes(2 * puts.SLOWEST_BYTES_S), 5.0)
        await settle()

    asyncio.run(story())
    short, long = sorted(store.waits)
    assert short < 0.1
    assert long > 2


def test_the_longest_value_leaves_room_for_others() -> None:
    """Neither it nor one that waits beside it is given up."""
    store, metrics = FlakyStore(refusals=10), Counted()

    async def story() -> None:
        waiting = Puts(store, "t", metrics)
        waiting.put("a", b"1", 5.0)
        waiting.put("b", bytes(VALUE_BYTES), 5.0)
        waiting.put("c", b"3", 5.0)
        await settle()

    asyncio.run(story())
    assert metrics.lost.value == 0
    assert {key for _, key, _, _ in store.kept} == {"a", "b", "c"}
