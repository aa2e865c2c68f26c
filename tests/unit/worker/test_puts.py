"""Values on their way to a store that may be away."""

from __future__ import annotations

import asyncio

import pytest

from tpo_mp.worker import puts
from tpo_mp.worker.puts import Puts


class FlakyStore:
    """Refuses the first puts; each takes a turn of the loop."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.asked = 0
        self.kept: list[tuple[str, str, bytes, float]] = []

    async def get(self, table: str, key: str) -> bytes | None:
        """Nobody asks."""
        raise AssertionError(table, key)

    async def put(self, table: str, key: str, value: bytes, ttl_s: float) -> bool:
        """Take or refuse."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.asked <= self.refusals:
            return False
        self.kept.append((table, key, value, ttl_s))
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(puts, "RETRY_S", 0.0)


async def settle() -> None:
    """Let every put come to its end."""
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)


def test_value_is_put_until_it_is_taken() -> None:
    """Control may be restarting."""
    store = FlakyStore(refusals=7)

    async def story() -> None:
        Puts(store, "t").put("a", b"1", 5.0)
        await settle()

    asyncio.run(story())
    assert store.kept == [("t", "a", b"1", 5.0)]


def test_newest_value_is_the_last_one_written() -> None:
    """Values that came while one was under way are not put after a newer one."""
    store = FlakyStore()

    async def story() -> None:
        waiting = Puts(store, "t")
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


def test_value_nobody_takes_is_given_up() -> None:
    """After so many tries, and the next value of that key is tried anew."""
    store = FlakyStore(refusals=puts.TRIES)

    async def story() -> None:
        waiting = Puts(store, "t")
        waiting.put("a", b"1", 5.0)
        await settle()
        assert store.asked == puts.TRIES
        waiting.put("a", b"2", 5.0)
        await settle()

    asyncio.run(story())
    assert [value for _, _, value, _ in store.kept] == [b"2"]
