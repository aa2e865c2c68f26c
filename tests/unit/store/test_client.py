"""The worker's store client: deadlines, pieces, and nobody waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tests.support.wait import until
from tpo_mp.store import client
from tpo_mp.store.client import StoreClient


@dataclass
class Answer:
    """An answer as it comes off a ring."""

    token: int
    ok: bool
    value: bytes | None
    more: bool = False


@dataclass
class Control:
    """The other side: keeps what was sent."""

    room: int = 1 << 30
    sent: list[tuple[Any, ...]] = field(default_factory=list)

    def send(self, record: bytes) -> bool:
        """Take a record while there is room."""
        if self.room <= 0:
            return False
        self.room -= 1
        self.sent.append(tuple(record.split(b"|")))
        return True

    def client(self, **options: Any) -> StoreClient:
        """A client of this control."""
        loop = asyncio.get_running_loop()
        return StoreClient(self.send, loop.time, get_record, put_record, **options)

    def token(self) -> int:
        """Token of the last question."""
        return int(self.sent[-1][1])


def get_record(token: int, table: str, key: str) -> bytes:
    """A readable question."""
    return f"get|{token}|{table}|{key}".encode()


def put_record(
    token: int, table: str, key: str, value: bytes, ttl_s: float, more: bool, at: int
) -> bytes:
    """A readable value."""
    return b"|".join((b"put", str(token).encode(), value, b"more" if more else b"end"))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on a loop of its own."""
    asyncio.run(test())


async def asked(control: Control, n: int = 1) -> None:
    """Let the client send."""
    await until(lambda: len(control.sent) >= n, what=f"{n} records", every_s=0)


def test_an_answer_reaches_its_question() -> None:
    """Value, absence and refusal are told apart by ``lookup``."""

    async def test() -> None:
        control = Control()
        store = control.client()
        for n, (ok, value, want) in enumerate(
            [(True, b"v", (b"v",)), (True, None, (None,)), (False, None, None)], 1
        ):
            task = asyncio.create_task(store.lookup("t", "k"))
            await asked(control, n)
            store.on_answer(Answer(control.token(), ok, value))
            assert await task == want
        assert store.open_questions == 0

    run(test)


def test_silence_is_unavailable() -> None:
    """Without an answer ``get`` is None and ``put`` False once the deadline has passed."""

    async def test() -> None:
        store = Control().client()
        started = asyncio.get_running_loop().time()
        assert await asyncio.gather(store.get("t", "k"), store.put("t", "k", b"v", 1.0)) == [
            None,
            False,
        ]
        assert asyncio.get_running_loop().time() - started >= client.DEADLINE_S * 0.9
        assert store.open_questions == 0

    run(test)


def test_a_full_ring_is_unavailable() -> None:
    """A ring without room costs no more than the deadline."""

    async def test() -> None:
        assert await Control(room=0).client().get("t", "k") is None

    run(test)


def test_a_late_answer_finds_nobody() -> None:
    """After the deadline an answer is dropped."""

    async def test() -> None:
        control = Control()
        store = control.client()
        assert await store.get("t", "k") is None
        store.on_answer(Answer(control.token(), True, b"late"))
        assert store.open_questions == 0

    run(test)


def test_a_cancelled_question_is_forgotten() -> None:
    """The client left: nothing stays behind."""

    async def test() -> None:
        control = Control()
        store = control.client()
        task = asyncio.create_task(store.get("t", "k"))
        await asked(control)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert store.open_questions == 0
        store.on_answer(Answer(control.token(), True, b"late"))

    run(test)


def test_pieces_are_joined() -> None:
    """A long answer arrives whole; a failed piece fails it."""

    async def test() -> None:
        control = Control()
        store = control.client()
        task = asyncio.create_task(store.get("t", "k"))
        await asked(control)
        for n, piece in enumerate((b"ab", b"cd", b"")):
            store.on_answer(Answer(control.token(), True, piece, more=n < 2))
        assert await task == b"abcd"
        task = asyncio.create_task(store.get("t", "k"))
        await asked(control, 2)
        store.on_answer(Answer(control.token(), True, b"ab", more=True))
        store.on_answer(Answer(control.token(), False, None))
        assert await task is None

    run(test)


def test_a_long_value_is_sent_in_pieces() -> None:
    """Pieces carry one token; the last says so."""

    async def test() -> None:
        control = Control()
        store = control.client(piece_bytes=4)
        task = asyncio.create_task(store.put("t", "k", b"0123456789", 1.0))
        await asked(control, 3)
        assert [(sent[2], sent[3]) for sent in control.sent] == [
            (b"0123", b"more"),
            (b"4567", b"more"),
            (b"89", b"end"),
        ]
        assert len({sent[1] for sent in control.sent}) == 1
        store.on_answer(Answer(control.token(), True, None))
        assert await task is True

    run(test)


def test_a_ring_that_gets_room_in_time_is_used() -> None:
    """A full ring is tried again within the deadline."""

    async def test() -> None:
        control = Control(room=1)
        store = control.client(piece_bytes=4)
        task = asyncio.create_task(store.put("t", "k", b"01234567", 1.0))
        await asked(control, 1)
        control.room = 1
        await asked(control, 2)
        store.on_answer(Answer(control.token(), True, None))
        assert await task is True

    run(test)


def test_open_questions_are_bounded() -> None:
    """Beyond the cap a question is unavailable at once."""

    async def test() -> None:
        control = Control()
        store = control.client()
        tasks = [asyncio.create_task(store.get("t", str(n))) for n in range(client.MAX_OPEN + 10)]
        await asked(control, client.MAX_OPEN)
        assert store.open_questions == client.MAX_OPEN
        assert all(task.done() for task in tasks[client.MAX_OPEN :])
        await asyncio.gather(*tasks)

    run(test)
