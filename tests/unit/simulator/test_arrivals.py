"""The client that knows when tokens are due, against a server that keeps the time or does not."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from tests.support.wait import until
from tpo_mp.simulator import arrivals
from tpo_mp.simulator.arrivals import BETWEEN_STARTS_S, Arrivals, Asking, measure, schedule
from tpo_mp.simulator.distributions import Fixed, Uniform
from tpo_mp.simulator.profiles import Profile, ProfileSchedule

MINE = ProfileSchedule(
    Profile(first_token_ms=Uniform(low=5, high=30), token_ms=Fixed(value=4), speed_cv=0.2)
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


LATE = ProfileSchedule(Profile(first_token_ms=Fixed(value=60_000), token_ms=Fixed(value=4)))


def run(early_s: float = 0.0, drop: bool = False, profile: ProfileSchedule = MINE) -> Arrivals:
    """Two dozen streams against a server whose tokens come ``early_s`` before their time."""

    asking = Asking("127.0.0.1", 0, "m", profile, 6, 24, 8)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = await reader.readuntil(b"}]}")
        key = re.search(rb"x-sim-key: (\S+)", asked)
        assert key is not None
        writer.write(HEAD + b'data: {"content":""}\n\n')
        for at in schedule(asking, key[1].decode()):
            await asyncio.sleep(max(began + at - early_s - loop.time(), 0))
            writer.write(b'data: {"content":"word"}\n\n')
            if drop:
                break
        else:
            writer.write(b"data: [DONE]\n\n")
        writer.close()

    async def story() -> Arrivals:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await measure(replace(asking, port=port))

    return asyncio.run(story())


def test_server_that_keeps_the_time_is_a_little_late_and_never_early() -> None:
    """Every token is compared with its own schedule."""
    seen = run()
    assert (len(seen.first), len(seen.gaps), len(seen.lags)) == (24, 24 * 5, 24 * 6)
    assert seen.failed == 0
    assert min(seen.lags) > -1.5  # the server of this test rounds to the loop's milliseconds


def test_server_that_is_early_shows() -> None:
    """All of its tokens come long before their time, however long the machine stands still."""
    lags = run(early_s=120.0, profile=LATE).lags
    assert len(lags) == 24 * 6
    assert max(lags) < 0


def test_stream_that_is_cut_is_a_failure() -> None:
    """And adds no times."""
    seen = run(drop=True)
    assert seen.failed == 24
    assert len(seen.lags) == 0


def test_schedule_is_the_keys() -> None:
    """The same as the server's, another for another key."""
    asking = Asking("h", 1, "m", MINE, 6, 1, 1)
    assert schedule(asking, "a") == schedule(asking, "a") != schedule(asking, "b")
    assert schedule(asking, "a")[0] == pytest.approx(0.0175, abs=0.0126)


def test_clients_do_not_begin_at_one_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of connects would be measured as lateness."""
    began: list[float] = []

    async def asked(_asking: Asking, _key: str) -> tuple[float, list[float]]:
        began.append(asyncio.get_running_loop().time())
        await asyncio.Event().wait()
        raise AssertionError

    async def story() -> None:
        first_at = asyncio.get_running_loop().time()
        running = asyncio.create_task(measure(Asking("h", 1, "m", MINE, 6, 9, 4)))
        await until(lambda: len(began) >= 4, 20, "all clients to begin")
        running.cancel()
        # A loop may be late, and wakes up to its clock's resolution early.
        for number, at in enumerate(began):
            assert at - first_at >= number * BETWEEN_STARTS_S - 0.002

    monkeypatch.setattr(arrivals, "_stream", asked)
    asyncio.run(asyncio.wait_for(story(), 30))
