"""Our own load client, against connections that answer at once."""

import asyncio
from collections.abc import Callable

import pytest

from benchmarks.client import Client, Connection, choose, learn
from benchmarks.plan import Phase, Plan
from tests.unit.benchmarks.fakes import FakeTransport

OK = b"HTTP/1.1 200 OK\r\nX-TPO-Shard: %b\r\ncontent-length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}"
Answer = Callable[[int, bytes], bytes]


def plan(conns: int = 2) -> Plan:
    return Plan(url="http://127.0.0.1:1", tag="tag", conns=conns, phases=[], timeout_s=5)


def joined(answer: Answer, conns: int = 2) -> Client:
    """A client whose connection number ``i`` gets ``answer(i, request)`` in the next turn."""
    client = Client(plan(conns))
    loop = asyncio.get_running_loop()
    for i in range(conns):
        connection = Connection(client)

        def reply(request: bytes, i: int = i, connection: Connection = connection) -> None:
            loop.call_soon(connection.data_received, answer(i, request))

        connection.connection_made(FakeTransport(reply))
    return client


def shards(i: int, request: bytes) -> bytes:
    """Connection ``i`` is held by shard ``i``; even sessions belong to shard 0, odd ones to 1."""
    head = request.partition(b"\r\n\r\n")[0]
    if b"X-Session-Id" not in head:
        return OK % b"%d" % i
    session = head.split(b"X-Session-Id: bench-")[1][:6]
    return OK % b"%d" % (int(session) % 2)


def test_phase_ends_after_its_count_with_every_reply_in():
    """A counted phase sends exactly that many requests, over all connections."""

    async def scenario() -> None:
        client = joined(lambda _i, _request: OK % b"0")
        seen = await client.run(Phase(secs=30, count=25))
        assert (seen.requests, seen.errors, seen.non2xx) == (25, 0, 0)
        assert client.busy == 0

    asyncio.run(scenario())


def test_fewer_requests_than_connections_use_as_many_connections():
    """One request over two connections is one request."""

    async def scenario() -> None:
        assert (await joined(lambda _i, _r: OK % b"0").run(Phase(secs=30, count=1))).requests == 1

    asyncio.run(scenario())


def test_replies_of_other_classes_are_counted_apart():
    """Connection 1 is refused every time; its replies are requests, and failed ones."""

    async def scenario() -> None:
        client = joined(lambda i, _request: BAD if i else OK % b"0")
        seen = await client.run(Phase(secs=30, count=20))
        assert seen.requests == 20
        assert seen.non2xx == 10
        assert seen.row()["failed"] == 10

    asyncio.run(scenario())


def test_connection_that_breaks_is_an_error_and_the_phase_still_ends():
    """The other connection finishes the count."""

    async def scenario() -> None:
        client = joined(lambda _i, _request: OK % b"0")
        broken = client.live[0]
        broken.transport = FakeTransport(lambda _data: broken.connection_lost(None))
        seen = await client.run(Phase(secs=30, count=10))
        assert (seen.requests, seen.errors) == (9, 1)
        assert client.live == [client.live[0]]

    asyncio.run(scenario())


def test_phase_without_connections_is_refused():
    """No connection is no result, not a result of zero."""

    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="no connection"):
            await Client(plan()).run(Phase(secs=1))

    asyncio.run(scenario())


@pytest.mark.parametrize(("session", "same"), [("own", True), ("foreign", False)])
def test_sessions_belong_to_the_own_or_the_other_shard(session, same):
    """Shards are found by asking, and every request of the phase goes where it should."""

    async def scenario() -> None:
        crossed: list[bool] = []

        def answer(i: int, request: bytes) -> bytes:
            reply = shards(i, request)
            if watching:
                crossed.append(b"Shard: %d" % i in reply)
            return reply

        watching = False
        client = joined(answer)
        sessions = await learn(client)
        assert set(sessions) == {"0", "1"}
        choose(client, session, sessions)
        watching = True
        await client.run(Phase(secs=30, count=12, session=session))
        assert crossed == [same] * 12

    asyncio.run(scenario())


def test_own_and_foreign_requests_have_one_length():
    """The hop is the only difference between the two phases."""

    async def scenario() -> None:
        client = joined(shards)
        sessions = await learn(client)
        lengths = set()
        for session in ("own", "foreign"):
            choose(client, session, sessions)
            lengths |= {len(connection.before) for connection in client.live}
        assert len(lengths) == 1

    asyncio.run(scenario())


def test_host_with_one_shard_has_no_hop_to_measure():
    """The reason names the shards that were seen."""

    async def scenario() -> None:
        with pytest.raises(RuntimeError, match=r"\['0'\]"):
            await learn(joined(lambda _i, _request: OK % b"0"))

    asyncio.run(scenario())
