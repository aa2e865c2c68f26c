"""Calls over rings, both ends in one process: what comes, who waits, who learns of a death."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hardware.mlx_engine.rings import RingEnds, RingOut
from tests.support.wait import until
from tpo_mp.errors import BackendFailure, BackendTimeout, TpoError
from tpo_mp.http.engine_links import EngineLine, EngineLinks, EngineOrigin
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.http.upstream import Deadlines, UpstreamExchange
from tpo_mp.http.wheel import Wheel
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.engine_rings import CREDIT_BYTES, EngineRings
from tpo_mp.supervisor.engine_docks import EngineDocks

MOST_BODY = 200_000
Answer = Callable[[str, bytes | None, RingOut], Awaitable[None]]


class Heard(UpstreamExchange):
    """One request and what came of it."""

    def __init__(self, body: bytes = b"{}") -> None:
        head = b"POST /v1/x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"
        super().__init__(head % len(body) + body)
        self.head: ResponseHead | None = None
        self.body = b""
        self.end: str | TpoError = ""

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """All of it."""
        self.head, self.body = head, body
        self.ended()

    def started(self, head: ResponseHead) -> None:
        """Its head."""
        self.head = head

    def data(self, chunk: bytes) -> None:
        """A piece."""
        self.body += chunk

    def ended(self) -> None:
        """Its end."""
        assert not self.end
        self.end = "ended"

    def failed(self, error: TpoError) -> None:
        """Another end."""
        assert not self.end
        self.end = error


class Count:
    """A counter."""

    n = 0

    def inc(self, n: int = 1) -> None:
        """Count."""
        self.n += n


class Host:
    """Two workers and an engine."""

    def __init__(self, answer: Answer) -> None:
        self.loop = asyncio.get_running_loop()
        self.rings = EngineRings.create(2, 1)
        self.bells = [Doorbell.create() for _ in range(2)]
        self.engine_bells = [Doorbell.create()]
        self.docks = EngineDocks(self.rings, self.engine_bells, self.bells)
        self.answer = answer
        for seat in (0, 1):
            self.rings.occupy_seat(seat, 1)
        self.wheel = Wheel()
        self.links = [self.worker(seat, 1) for seat in (0, 1)]
        self.start()

    def start(self) -> None:
        """Begin an engine's life."""
        self.ticket = self.docks.take("e")
        self.engine = RingEnds(self.ticket, self.answer, MOST_BODY, self.loop)
        self.engine.open()

    def worker(self, seat: int, life: int) -> EngineLinks:
        """A worker's ends."""
        links = EngineLinks(
            rings=self.rings, seat=seat, life=life, loop=self.loop,
            bells=[bell.fds for bell in self.engine_bells], on_crash=_raise,
        )  # fmt: skip
        self.origin = EngineOrigin(
            EngineLine(links, "e"), Count(), Count(), host="127.0.0.1", port=1, tls=None,
            deadlines=Deadlines(), loop=self.loop, wheel=self.wheel,
        )  # fmt: skip
        return links

    def ask(self, seat: int = 0, body: bytes = b"{}") -> Heard:
        """Send a request."""
        heard = Heard(body)
        assert self.links[seat].start(0, heard, self.origin)
        self.origin.count += 1
        return heard

    async def until(self, done: Callable[[], object], *seats: int) -> None:
        """Turn the workers (both, or these) until it is so."""

        def turn() -> object:
            for seat in seats or (0, 1):
                self.links[seat].tick()
            return done()

        await until(turn)

    async def close(self) -> None:
        """End."""
        await self.engine.close(0)
        self.rings.close()
        for bell in (*self.bells, *self.engine_bells):
            bell.close()


def _raise(error: BaseException) -> None:
    raise error


def with_host(answer: Answer, test: Callable[[Host], Awaitable[None]]) -> None:
    """Run a test on a host whose engine answers so."""

    async def run() -> None:
        host = Host(answer)
        try:
            await test(host)
        finally:
            await host.close()

    asyncio.run(run())


async def echo(target: str, body: bytes | None, out: RingOut) -> None:
    """Say what was asked."""
    assert target == "POST /v1/x"
    if body is None:
        await out.whole(413, b"{}", 7.0)
    elif body.startswith(b"stream"):
        await out.begin()
        for at in range(0, len(body), 1000):
            await out.write(body[at : at + 1000])
        await out.end()
    else:
        await out.whole(200, body, None)


async def forever(_target: str, _body: bytes | None, out: RingOut) -> None:
    """Begin, and never end."""
    await out.begin()
    await asyncio.Event().wait()


@pytest.mark.parametrize("size", [0, 2, 16_000, 16_384, 70_000, MOST_BODY])
@pytest.mark.parametrize("kind", [b"", b"stream"])
def test_bodies_of_any_length_come_whole(size: int, kind: bytes) -> None:
    """In both directions, through rings of less."""

    async def test(host: Host) -> None:
        body = (kind + bytes(range(256)) * 1000)[: max(size, len(kind))]
        one, other = host.ask(0, body), host.ask(1, body)
        await host.until(lambda: one.end and other.end)
        for heard in (one, other):
            assert heard.end == "ended"
            assert heard.body == body
            assert heard.head is not None
            assert heard.head.status == 200
            assert heard.connection is None
            assert heard.over
        assert not any(links.busy for links in host.links)
        assert host.origin.count == 0

    with_host(echo, test)


def test_too_long_a_body_is_refused_with_its_status() -> None:
    """And when to come again."""

    async def test(host: Host) -> None:
        heard = host.ask(0, b"x" * (MOST_BODY + 1))
        await host.until(lambda: heard.end)
        assert heard.head is not None
        assert (heard.head.status, heard.head.retry_after) == (413, 7.0)
        assert heard.head.passed == b"retry-after: 7\r\n"

    with_host(echo, test)


def test_a_reader_that_is_behind_holds_its_own_answer_only() -> None:
    """No more is under way than it was granted; when it goes on all of it comes."""

    async def test(host: Host) -> None:
        body = b"stream" + b"x" * 190_000
        slow = host.ask(0, body)
        await host.until(lambda: slow.head)
        slow.pause()
        had = len(slow.body)
        await host.until(lambda: host.engine.behind() == 1)
        assert had < len(slow.body) <= had + 2 * CREDIT_BYTES
        quick = [host.ask(seat, body) for seat in (0, 1)]
        await host.until(lambda: all(heard.end for heard in quick))
        assert host.engine.behind() == 1
        assert not slow.end
        slow.resume()
        await host.until(lambda: slow.end)
        assert slow.body == body

    with_host(echo, test)


def test_a_worker_that_stands_still_holds_up_no_other() -> None:
    """Its ring is full; the other's answers come, and its own when it goes on."""

    said = b"x" * 60_000

    async def answer(target: str, _body: bytes | None, out: RingOut) -> None:
        await echo(target, b"stream" + said, out)

    async def test(host: Host) -> None:
        host.links[0]._recheck = lambda: None  # type: ignore[method-assign]
        still = [host.ask(0) for _ in range(3)]
        other = host.ask(1)
        await host.until(lambda: other.end, 1)
        assert not any(heard.end for heard in still)
        await host.until(lambda: all(heard.end for heard in still))
        assert [heard.body for heard in still] == [b"stream" + said] * 3

    with_host(answer, test)


def test_what_a_full_ring_refuses_goes_another_way() -> None:
    """A call is refused at once; the rest of a body that is under way goes later."""

    async def test(host: Host) -> None:
        long = host.ask(0, b"x" * 150_000)
        assert not host.links[0].start(0, Heard(), host.origin)
        other = host.ask(1)
        await host.until(lambda: long.end and other.end)
        assert long.body == b"x" * 150_000

    with_host(echo, test)


def test_cancelled_call_ends_in_the_engine() -> None:
    """And nothing more of it is told."""
    ended = []

    async def answer(target: str, body: bytes | None, out: RingOut) -> None:
        try:
            await forever(target, body, out)
        except asyncio.CancelledError:
            ended.append(body)
            raise

    async def test(host: Host) -> None:
        heard, other = host.ask(0, b"a"), host.ask(0, b"b")
        await host.until(lambda: heard.head and other.head)
        heard.cancel()
        await host.until(lambda: ended)
        await host.until(lambda: host.links[0].busy)
        assert ended == [b"a"]
        assert not heard.end
        assert not other.end

    with_host(answer, test)


def test_death_of_a_worker_ends_its_calls_in_the_engine() -> None:
    """The other's go on, and its successor is served."""
    ended = []

    async def answer(target: str, body: bytes | None, out: RingOut) -> None:
        if body == b"now":
            await echo(target, body, out)
            return
        try:
            await forever(target, body, out)
        finally:
            ended.append(body)

    async def test(host: Host) -> None:
        heard = [host.ask(seat, b"%d" % seat) for seat in (0, 1)]
        await host.until(lambda: all(h.head for h in heard))
        host.rings.vacate_seat(0, 2)
        host.engine_bells[0].ring()
        await host.until(lambda: ended, 1)
        assert ended == [b"0"]
        host.rings.occupy_seat(0, 3)
        host.links[0] = host.worker(0, 3)
        new = host.ask(0, b"now")
        await host.until(lambda: new.end)
        assert new.body == b"now"
        assert not heard[1].end

    with_host(answer, test)


def test_death_of_the_engine_is_an_upstream_that_closed() -> None:
    """Told apart by whether an answer had begun; the next engine gets nothing of it."""
    asked = []

    async def answer(target: str, body: bytes | None, out: RingOut) -> None:
        asked.append(body)
        if body == b"begun":
            await out.begin()
        if body != b"now":
            await asyncio.Event().wait()
        await echo(target, body, out)

    async def test(host: Host) -> None:
        begun, waits = host.ask(0, b"begun"), host.ask(1, b"waits")
        await host.until(lambda: begun.head and len(asked) == 2)
        await host.engine.close(0)  # what it says of its end is too late
        for reader in (0, 1):
            host.rings.from_engine(reader, 0).drain()
        unread = host.ask(0, b"unread")
        host.docks.leave(host.ticket)
        await host.until(lambda: begun.end and waits.end and unread.end)
        reasons = [h.end.reason for h in (begun, waits, unread) if isinstance(h.end, TpoError)]
        assert reasons == ["cut_off", "no_reply", "no_reply"]
        line = EngineLine(host.links[0], "e")
        assert not line.open
        host.start()
        assert line.open
        new = host.ask(0, b"now")
        await host.until(lambda: new.end)
        assert (new.body, asked[2:]) == (b"now", [b"now"])

    with_host(answer, test)


def test_call_meant_for_the_engine_before_is_not_taken() -> None:
    """It was pushed between a death and its discovery."""
    asked: list[Any] = []

    async def answer(_target: str, body: bytes | None, out: RingOut) -> None:
        asked.append(body)
        await out.whole(200, b"{}", None)

    async def test(host: Host) -> None:
        await host.engine.close(0)
        old = Heard(b"old")
        host.docks.leave(host.ticket)
        assert host.links[0].start(0, old, host.origin)
        host.start()
        new = host.ask(0, b"new")
        await host.until(lambda: new.end and old.end)
        assert asked == [b"new"]
        assert isinstance(old.end, BackendFailure)

    with_host(answer, test)


def test_defect_in_the_engine_cuts_its_answer_off() -> None:
    """The reader does not wait for the rest."""

    async def answer(_target: str, _body: bytes | None, out: RingOut) -> None:
        await out.begin()
        raise ValueError("a defect")

    async def test(host: Host) -> None:
        host.loop.set_exception_handler(lambda _loop, _context: None)
        heard = host.ask()
        await host.until(lambda: heard.end)
        assert isinstance(heard.end, BackendFailure)
        assert heard.end.reason == "cut_off"

    with_host(answer, test)


def test_silent_engine_meets_the_deadline() -> None:
    """As any upstream does."""

    async def test(host: Host) -> None:
        host.origin.deadlines = Deadlines(idle_s=0.0)
        heard = host.ask()

        def turned() -> object:
            host.wheel.tick(host.loop.time())
            return heard.end

        await host.until(turned)
        assert isinstance(heard.end, BackendTimeout)
        assert heard.end.reason == "idle_timeout"

    with_host(forever, test)


def test_once_a_bell_was_lost_nobody_waits_for_the_next() -> None:
    """A tick that finds something makes the worker look by itself; without, it hears bells only."""
    go = asyncio.Event()

    async def twice(_target: str, _body: bytes | None, out: RingOut) -> None:
        await out.begin()
        await go.wait()
        await out.write(b"words")
        await out.end()

    async def test(host: Host) -> None:
        links = host.links[0]
        heard = host.ask()  # nobody listens to the worker's bell here
        await until(links.poll)
        go.set()
        await until(lambda: any(reader.pending() for reader in links._readers))
        assert not heard.end
        assert not links._rechecks, "it will not look by itself"
        await host.until(lambda: heard.end)
        go.clear()
        again = host.ask()
        await host.until(lambda: again.head)
        go.set()
        await until(lambda: again.end)
        assert (again.end, again.body) == ("ended", b"words")

    with_host(twice, test)
