"""A Redis that is silent or dead under load: every call is answered, and no memory grows for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.support.effort import LONG
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, ask, chat
from tests.support.redis import RedisServer
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
CLIENTS = 8
PAD_BYTES = 80_000
CALLS = 500
"""Their answers are 40 MB: kept for Redis, they would be seen."""
AWAY_S = 90.0
MOST_GROWTH_BYTES = 20 << 20
"""Two workers may keep 8 MiB each (``store.answer_tier``), and need some for themselves."""


class Asking:
    """Clients that ask what nobody asked before, as fast as they are answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count()
        self._over = threading.Event()
        self.took_s: list[float] = []
        self.failed: list[object] = []

    def run(self, until: Callable[[], bool]) -> list[float]:
        """Ask until then; how long each answer took."""
        self.took_s, self._over = [], threading.Event()
        threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        wait_for(lambda: until() or self.failed, AWAY_S + 60, "calls", every_s=0.05)
        self._over.set()
        for thread in threads:
            thread.join(60)
        assert not self.failed
        return self.took_s

    def _client(self) -> None:
        try:
            with RawClient(self._url, timeout_s=30) as client:
                while not self._over.is_set():
                    body = chat(f"question {next(self._numbers)}", "up", temperature=0)
                    begun = time.monotonic()
                    reply = client.post_json(CHAT, body)
                    self.took_s.append(time.monotonic() - begun)
                    if reply.status != 200 or reply.headers["x-tpo-cache"] != "miss":
                        self.failed.append(reply)
                        return
        except Exception as error:
            self.failed.append(error)

    def enough(self) -> Callable[[], bool]:
        """Some calls, or, in the long form, as many as come in the time."""
        ends_at = time.monotonic() + AWAY_S
        if LONG:
            return lambda: time.monotonic() >= ends_at
        return lambda: len(self.took_s) >= CALLS


def own_bytes(gateway: Gateway) -> int:
    """What all its processes hold for themselves; what they share is bounded when they start."""
    total = 0
    for pid in gateway.processes():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:"))
    return total


def quantile(took_s: list[float], part: float) -> float:
    """Milliseconds."""
    return sorted(took_s)[int(len(took_s) * part)] * 1e3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_memory_is_flat_while_redis_is_away(short_tmp: Path, how: str) -> None:
    """For 500 answers of 80 kB, or for 90 s: none of them is kept for it; then it is used again."""
    with Upstream() as upstream, RedisServer(short_tmp / "gone-redis") as redis:
        upstream.play(pad_bytes=PAD_BYTES)
        config = backend("up", upstream.base_url) + NO_RETRIES
        config += section("[distributed]", redis_url=redis.url)
        config += section("[stages.cache]", ttl_s=300)
        with Gateway(short_tmp / f"gone-{how}", config=config, workers=2) as gateway:

            def degraded() -> bool:
                return bool(ask(gateway.ops, "/ready").json()["degraded"])

            wait_for(lambda: not degraded(), 20, "Redis to be reached")
            asking = Asking(gateway.url)
            there = asking.run(lambda: len(asking.took_s) >= CALLS)
            wait_for(lambda: gateway.status()["spare"]["state"] == "parked", 60, "a whole host")
            before = own_bytes(gateway)
            (redis.stop if how == "stop" else redis.kill)()
            asking.run(degraded)
            away = asking.run(asking.enough())
            grown = own_bytes(gateway) - before
            print(
                f"{how}: {len(away)} calls, {grown / 2**20:+.1f} MiB; median and p99 "
                f"{quantile(there, 0.5):.1f} {quantile(there, 0.99):.1f} ms with Redis, "
                f"{quantile(away, 0.5):.1f} {quantile(away, 0.99):.1f} ms without"
            )
            assert grown < MOST_GROWTH_BYTES
            if LONG:  # the machine may be less free than it was
                for part in (0.5, 0.99):
                    assert quantile(away, part) <= 1.5 * quantile(there, part) + 5
            (redis.go_on if how == "stop" else redis.start)()
            wait_for(lambda: not degraded(), 20, "Redis to be used again")
