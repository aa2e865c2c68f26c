"""The second tier over a real Redis that is slow, stopped, killed, emptied, full or lied to."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.fake_env import SilentMetrics
from tests.support.redis import RedisServer
from tests.support.wait import until
from tpo_mp.errors import Shed
from tpo_mp.store import answer_tier, redis_link
from tpo_mp.store.answer_tier import ANSWER, GENERATION, RedisTier
from tpo_mp.types import TierResult

WHOSE = b"tenant a"
Found = tuple[bytes, float] | None


@pytest.fixture(scope="module")
def server(short_tmp: Path) -> Iterator[RedisServer]:
    """One for all; each test begins with an empty one that answers."""
    with RedisServer(short_tmp / "redis") as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in it; who lost it looks for it often."""
    server.ask("FLUSHALL")
    monkeypatch.setattr(redis_link, "AGAIN_S", 0.05)


class Host:
    """The tier of one process, and what it counted."""

    def __init__(self, server: RedisServer, wait_s: float = 15.0, url: str = "") -> None:
        self.counts: Counter[TierResult] = Counter()
        self.said: list[str] = []
        self.tier = RedisTier(
            url or server.url, wait_s=wait_s, most=1 << 16, random=random.Random(1),
            metrics=SilentMetrics(), count=self._count, warn=self._warn,
        )  # fmt: skip

    def _count(self, result: TierResult) -> None:
        self.counts[result] += 1

    def _warn(self, event: str, *, why: str) -> None:
        self.said.append(f"{event} {why}")

    async def ready(self) -> None:
        """Wait until it may be asked, and knows the generation."""
        await until(lambda: self.tier.up and self.tier.generation, 10, "Redis to be reached")

    async def find(self, key: bytes, whose: bytes = WHOSE) -> Found:
        """What is told of a key."""
        told: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self.tier.find(key, whose, told.set_result)
        return await asyncio.wait_for(told, 20)

    async def keep(self, server: RedisServer, key: bytes, answer: bytes) -> None:
        """Keep an answer, again where Redis was too busy to take it, until it lies there."""
        name = ANSWER + key.hex().encode()

        def lies_there() -> bool:
            if server.ask("EXISTS", name):
                return True
            if not self.tier._writing:
                self.tier.keep(key, WHOSE, answer, 60.0, self.tier.generation)
            return False

        await until(lies_there, 10, "the answer to be written")


def key_of(number: int) -> bytes:
    """A key like those of answers."""
    return number.to_bytes(16, "big")


def run(test: Callable[..., Coroutine[Any, Any, None]], *hosts: Callable[[], Host]) -> None:
    """Run a test over some hosts, each of which reaches Redis first."""

    async def all_of_it() -> None:
        made = [make() for make in hosts]
        for host in made:
            await host.ready()
        try:
            await test(*made)
        finally:
            for host in made:
                host.tier.close()
            await until(lambda: not redis_link._closing, 10, "the connections to be closed")

    asyncio.run(all_of_it())


def test_one_host_finds_what_another_kept(server: RedisServer) -> None:
    """With the time it has left; whoever looks at the same time looks once."""

    async def test(a: Host, b: Host) -> None:
        assert await b.find(key_of(1)) is None
        await a.keep(server, key_of(1), b"said")
        found = await asyncio.gather(*(b.find(key_of(1)) for _ in range(50)))
        assert {answer[0] for answer in found if answer} == {b"said"}
        assert all(answer and 0 < answer[1] <= 60 for answer in found)
        assert b.counts == {TierResult.HIT: 50, TierResult.MISS: 1}
        assert int(server.ask("INFO", "commandstats")["cmdstat_getrange"]["calls"]) <= 10

    server.ask("CONFIG", "RESETSTAT")
    run(test, lambda: Host(server), lambda: Host(server))


def test_a_crowd_is_told_in_several_turns_of_one_answer_that_is_read_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has other things to do, and an answer may be long."""
    read: list[bytes] = []

    def unseal(value: bytes, key: bytes, whose: bytes, generation: bytes) -> bytes | None:
        read.append(whose)
        return answer_tier_unseal(value, key, whose, generation)

    answer_tier_unseal = answer_tier.unseal
    monkeypatch.setattr(answer_tier, "unseal", unseal)

    async def test(a: Host, b: Host) -> None:
        await a.keep(server, key_of(1), b"said")
        told: list[tuple[int, Found]] = []
        turn = [0]

        async def tick() -> None:
            while True:
                turn[0] += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        crowd = 4 * answer_tier.AT_ONCE
        for n in range(crowd):
            whose = WHOSE if n % 2 else b"tenant b"
            b.tier.find(key_of(1), whose, lambda found: told.append((turn[0], found)))
        await until(lambda: len(told) == crowd, 10, "all to be told")
        ticking.cancel()
        assert max(Counter(at for at, _ in told).values()) <= answer_tier.AT_ONCE
        assert sum(found is not None and found[0] == b"said" for _, found in told) == crowd // 2
        assert sorted(read) == [WHOSE, b"tenant b"]
        assert b.counts == {TierResult.HIT: crowd // 2, TierResult.BAD: crowd // 2}

    run(test, lambda: Host(server), lambda: Host(server))


def test_what_is_not_ours_is_no_answer(server: RedisServer) -> None:
    """Of another tenant, under another key, damaged, cut, too long, or of another kind."""

    async def test(host: Host) -> None:
        await host.keep(server, key_of(1), b"said by us")
        one, two = (ANSWER + key_of(n).hex().encode() for n in (1, 2))
        assert await host.find(key_of(1), b"tenant b") is None
        whole: bytes = server.ask("GET", one)
        for lie in (whole, whole[:-1], whole[:20], b"", b"x" * 200_000):
            server.ask("SET", two, lie, "PX", "60000")
            assert await host.find(key_of(2)) is None
        server.ask("SET", one, whole.replace(b"by us", b"by me"), "PX", "60000")
        assert await host.find(key_of(1)) is None
        server.ask("SET", one, whole)
        assert await host.find(key_of(1)) is None  # would never grow old
        server.ask("DEL", two)
        server.ask("LPUSH", two, "x")
        assert await host.find(key_of(2)) is None
        await host.ready()
        server.ask("PEXPIRE", one, "60000")
        assert (await host.find(key_of(1)) or (b"",))[0] == b"said by us"

    run(test, lambda: Host(server))


def test_a_flush_is_everybodys_and_what_redis_forgets_is_a_miss(server: RedisServer) -> None:
    """What was asked before it is not kept; a lost generation never brings old answers back."""

    async def test(a: Host, b: Host) -> None:
        await a.keep(server, key_of(1), b"old")
        before = b.tier.generation
        await a.tier.flush()
        assert await b.find(key_of(1)) is None
        assert b.tier.generation == a.tier.generation != before
        b.tier.keep(key_of(2), WHOSE, b"asked before", 60.0, before)
        await b.keep(server, key_of(3), b"new")
        assert not server.ask("EXISTS", ANSWER + key_of(2).hex().encode())
        server.ask("DEL", GENERATION)
        assert await a.find(key_of(3)) is None
        await a.ready()
        assert await a.find(key_of(3)) is None
        server.ask("FLUSHALL")
        assert await b.find(key_of(3)) is None
        await b.ready()
        await b.keep(server, key_of(3), b"newer")
        assert (await a.find(key_of(3)) or (b"",))[0] == b"newer"

    run(test, lambda: Host(server), lambda: Host(server))


@pytest.mark.parametrize("ill", ["stopped", "killed"])
def test_nobody_waits_for_a_redis_that_is_away(server: RedisServer, ill: str) -> None:
    """A few wait as long as they may, then nobody asks; it is found again when it is back."""

    async def test(host: Host) -> None:
        await host.keep(server, key_of(1), b"said")
        server.stop() if ill == "stopped" else server.kill()
        for n in range(40):
            assert await host.find(key_of(n)) is None
        assert not host.tier.up
        assert host.counts[TierResult.FAILED] <= 10, host.counts
        assert host.counts[TierResult.SKIPPED] >= 30, host.counts
        with pytest.raises(Shed, match="could not be forgotten"):
            await host.tier.flush()
        assert 1 <= len(host.said) <= 3, host.said
        server.go_on() if ill == "stopped" else server.start()
        await host.ready()
        found = await host.find(key_of(1))
        assert (found[0] if found else None) == (b"said" if ill == "stopped" else None)

    run(test, lambda: Host(server, wait_s=0.1))


def test_a_redis_that_is_paused_or_slow_is_left_alone_till_it_answers_in_time(
    server: RedisServer,
) -> None:
    """Whoever waits is let go; what is answered too late is nobody's."""

    async def test(host: Host) -> None:
        await host.keep(server, key_of(1), b"said")
        server.ask("CLIENT", "PAUSE", "4000", "ALL")
        for n in range(2, 30):
            assert await host.find(key_of(n)) is None
        assert not host.tier.up
        assert host.counts[TierResult.FAILED] <= 10, host.counts
        assert host.counts[TierResult.SKIPPED] >= 18, host.counts
        await host.ready()
        assert (await host.find(key_of(1)) or (b"",))[0] == b"said"
        assert host.counts[TierResult.BAD] == 0

    run(test, lambda: Host(server, wait_s=0.2))


def test_who_waits_is_let_go_before_the_link_has_given_up(server: RedisServer) -> None:
    """Not by way of closing the connection, which takes turns of the loop; that follows."""

    async def test(host: Host) -> None:
        server.stop()
        failures: list[float] = []
        for n in range(3):
            told = asyncio.Event()

            def tell(found: Found, told: asyncio.Event = told) -> None:
                failures.append(host.tier._link._failures)
                assert found is None
                told.set()

            host.tier.find(key_of(n), WHOSE, tell)
            host.tier.find(key_of(n), WHOSE, tell)
            await told.wait()
            await until(
                lambda n=n: host.tier._link._failures == n + 1,  # type: ignore[misc]
                5, "the link to have given up, too",
            )  # fmt: skip
        assert failures == [0, 0, 1, 1, 2, 2]
        assert host.counts == {TierResult.FAILED: 6}
        server.go_on()
        await host.ready()

    run(test, lambda: Host(server, wait_s=0.1))


@pytest.mark.parametrize("refusal", ["NOAUTH", "WRONGPASS"])
def test_a_redis_that_wants_another_password_is_away(server: RedisServer, refusal: str) -> None:
    """The log says why; once it wants none any more it is asked again."""

    async def test() -> None:
        url = server.url if refusal == "NOAUTH" else f"unix://:wrong@{server.socket}"
        server.ask("CONFIG", "SET", "requirepass", "secret")
        host = Host(server, url=url)
        try:
            await until(lambda: host.said, 10, "a word why")
            for n in range(10):
                assert await host.find(key_of(n)) is None
            assert host.counts == {TierResult.SKIPPED: 10}
            assert not host.tier.up
            assert any("assword" in line or "uthentic" in line for line in host.said), host.said
            assert not any("wrong@" in line for line in host.said)
        finally:
            locked = redis.Redis(unix_socket_path=str(server.socket), password="secret")
            locked.config_set("requirepass", "")
            locked.close()
        if refusal == "NOAUTH":  # the other one still brings a password that nobody set
            await host.ready()
            assert await host.find(key_of(1)) is None
            assert host.counts[TierResult.MISS] == 1
        host.tier.close()
        await redis_link.let_go()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (b"LOADING Redis is loading the dataset in memory", "oading"),
        (b"MOVED 3999 127.0.0.1:6381", "3999"),
        (b"READONLY You can't write against a read only replica.", "read only"),
    ],
    ids=["loading", "moved", "readonly"],
)
def test_a_redis_that_refuses_on_a_connection_that_stood_is_left_alone(
    server: RedisServer, short_tmp: Path, refusal: bytes, why: str
) -> None:
    """As one does that loads its data: each refusal is a failure, then nobody asks for a while."""
    path = short_tmp / f"{why[:4]}.sock"
    loading = False
    served_now: set[asyncio.StreamWriter] = set()
    generation = b"$16\r\n" + b"g" * 16 + b"\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served_now.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                words = int((await reader.readuntil(b"\r\n"))[1:])
                asked = []
                for _ in range(words):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    asked.append((await reader.readexactly(size + 2))[:-2])
                reply = {b"GET": generation, b"PTTL": b":-2\r\n", b"GETRANGE": b"$0\r\n\r\n"}
                said = reply.get(asked[0].upper(), b"+OK\r\n")
                writer.write(b"-%b\r\n" % refusal if loading else said)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served_now.discard(writer)

    async def test() -> None:
        nonlocal loading
        served = await asyncio.start_unix_server(serve, path)
        host = Host(server, url=f"unix://{path}")
        await host.ready()
        assert await host.find(key_of(1)) is None
        loading = True
        for n in range(20):
            assert await host.find(key_of(n)) is None
        assert not host.tier.up
        assert host.counts[TierResult.FAILED] <= 10, host.counts
        assert any(why in line for line in host.said), host.said
        loading = False
        await host.ready()
        assert await host.find(key_of(1)) is None
        assert host.counts[TierResult.MISS] == 2, host.counts
        host.tier.close()
        await redis_link.let_go()
        await until(lambda: not served_now, 10, "the connections to end")
        served.close()
        await served.wait_closed()

    asyncio.run(test())


@pytest.mark.parametrize("size", [9, 200_000])
def test_what_waits_to_be_written_is_bounded(server: RedisServer, size: int) -> None:
    """In answers and in bytes; what is over is given up at once, and the rest is written."""

    async def test(a: Host) -> None:
        tier = a.tier
        for number in range(2 * answer_tier.MOST_WAITING):
            tier.keep(key_of(number), WHOSE, b"x" * size, 60.0, tier.generation)
        waiting, waiting_bytes = len(tier._to_write), tier._to_write_bytes
        fit = min(answer_tier.MOST_WAITING, answer_tier.MOST_WAITING_BYTES // (size + 100))
        assert fit <= waiting <= answer_tier.MOST_WAITING
        assert waiting * size < waiting_bytes <= answer_tier.MOST_WAITING_BYTES
        await until(lambda: not tier._writing, 20, "the queue to be empty")
        assert tier._to_write_bytes == 0
        await a.keep(server, key_of(10_000), b"said")

    run(test, lambda: Host(server))


def test_a_full_redis_is_still_read(server: RedisServer) -> None:
    """It refuses what is to be kept, and is not asked to for a while."""

    async def test(host: Host) -> None:
        await host.keep(server, key_of(1), b"said")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            for n in range(2, 20):
                host.tier.keep(key_of(n), WHOSE, b"more", 60.0, host.tier.generation)
            await until(lambda: host.tier._rests_until > 0, 10, "a refusal")
            for _ in range(10):
                assert (await host.find(key_of(1)) or (b"",))[0] == b"said"
            assert host.tier.up
        finally:
            server.ask("CONFIG", "SET", "maxmemory", "64mb")
        assert server.ask("DBSIZE") == 2

    run(test, lambda: Host(server))


def test_late_replies_reach_nobody_else(server: RedisServer) -> None:
    """Ten thousand lookups, many of which end too early: each gets its own answer or none."""
    rng = random.Random(7)

    async def test(host: Host) -> None:
        for n in range(100):
            await host.keep(server, key_of(n), b"answer %d" % n)
        right = wrong = none = 0
        for _ in range(100):
            numbers = [rng.randrange(100) for _ in range(100)]
            host.tier._wait_s = rng.choice((0.0002, 0.001, 0.002, 0.01, 1.0))
            tasks = [asyncio.ensure_future(host.find(key_of(n))) for n in numbers]
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            # As when the process lets go of work: some of what runs is cancelled where it stands.
            for task in host.tier._link._tasks - {host.tier._link._tending}:
                if rng.random() < 0.1:
                    task.cancel()
            for n, found in zip(numbers, await asyncio.gather(*tasks), strict=True):
                if found is None:
                    none += 1
                elif found[0] == b"answer %d" % n:
                    right += 1
                else:
                    wrong += 1
            await host.ready()
        assert wrong == 0
        # All of them lie there: another's reply would be none to this call.
        assert host.counts[TierResult.BAD] == host.counts[TierResult.MISS] == 0, host.counts
        assert right > 100, (right, none)
        assert none > 100, (right, none)

    run(test, lambda: Host(server))


def test_redis_is_found_again_when_every_connection_was_still_waiting(server: RedisServer) -> None:
    """At the time of the next attempt: nobody else would ever make one."""

    async def test(host: Host) -> None:
        link = host.tier._link
        held = [await link._take() for _ in range(redis_link.LINKS)]
        link._falls("it is late")
        link._wanted.set()
        await until(lambda: not link._wanted.is_set(), 10, "the next attempt")
        for one in held:
            link._give(one)
        await until(lambda: link.up, 10, "Redis to be found again")

    run(test, lambda: Host(server))
