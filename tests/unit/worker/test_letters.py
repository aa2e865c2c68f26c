"""Dead letters a shard writes: which ends leave one, whole, in order, bounded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_env import SilentMetrics, SilentSeries, make_call
from tests.support.fake_gateway import FakeExchange, FakeGateway
from tpo_mp.errors import BackendFailure, InvalidRequest, Shed
from tpo_mp.http.head import Head
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.shm.frames import HEAD, DeadLetterFrame, Kind
from tpo_mp.types import Terminal
from tpo_mp.worker.letters import MAX_BODY_BYTES, MAX_WAITING, MAX_WAITING_BYTES, Letters

_decode = msgspec.msgpack.Decoder(DeadLetterFrame).decode


class Metrics(SilentMetrics):
    """Remembers its counters."""

    def __init__(self) -> None:
        self.counters: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.counters.setdefault(name, SilentSeries())


class Post:
    """Letters, and a ring with as much room as the test says."""

    def __init__(self, max_record: int = 10_000) -> None:
        self.room = 1 << 30
        self.records: list[bytes] = []
        self.metrics = Metrics()
        self.letters = Letters(self._push, max_record, self.metrics)

    def _push(self, record: bytes) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.records.append(record)
        return True

    def write(self, terminal: Terminal, status: int = 0, error: Any = None, body: bytes = b"{}",
              sent: int = -1, **fields: Any) -> None:  # fmt: skip
        """A call ends; ``sent`` bytes of its stream had been sent."""
        call = make_call(body, **fields)
        delivery = Delivery(FakeGateway(), FakeExchange(Head(), body), call)  # type: ignore[arg-type]
        delivery.template = "/v1/x"
        delivery.terminal, delivery.status, delivery.error = terminal, status, error
        delivery.started, delivery.bytes_out = sent >= 0, abs(sent)
        self.letters.add(delivery)

    def read(self) -> list[DeadLetterFrame]:
        """Everything pushed."""
        assert {HEAD.unpack_from(r)[0] for r in self.records} <= {Kind.DEAD_LETTER}
        return [_decode(r[HEAD.size :]) for r in self.records]


@pytest.mark.parametrize(
    ("terminal", "status", "written"),
    [
        (Terminal.DONE, 200, False),
        (Terminal.CANCELLED, 0, False),
        (Terminal.FAILED, 400, False),
        (Terminal.FAILED, 429, False),
        (Terminal.FAILED, 500, True),
        (Terminal.FAILED, 502, True),
        (Terminal.SHED, 503, True),
        (Terminal.EXPIRED, 504, True),
        (Terminal.CRASHED, 0, True),
    ],
)
def test_only_what_the_client_could_not_help_leaves_a_letter(
    terminal: Terminal, status: int, written: bool
) -> None:
    """Its own mistakes and its leaving do not."""
    post = Post()
    post.write(terminal, status, BackendFailure("x") if status >= 400 else None)
    assert post.letters.flush()
    assert len(post.read()) == written


def test_letter_says_what_was_asked_and_why_it_failed() -> None:
    """Enough to try again by hand."""
    post = Post()
    post.write(
        Terminal.SHED, 503, Shed("x", reason="ring_full"), b'{"a":1}', session="s", tenant="t",
        client_request_id="r", model="m",
    )  # fmt: skip
    post.letters.flush()
    (letter,) = post.read()
    assert (letter.call_id, letter.client_request_id, letter.session) == ("call-1", "r", "s")
    assert (letter.reason, letter.model, letter.tenant) == ("ring_full", "m", "t")
    assert (letter.path, letter.body, letter.more) == ("/v1/x", b'{"a":1}', False)
    assert letter.dropped_at > 1e9


@pytest.mark.parametrize(("sent", "said"), [(-50, 0), (0, 0), (1234, 1234)])
def test_letter_says_how_much_of_a_stream_was_sent(sent: int, said: int) -> None:
    """An error body, sent where no stream began, is not counted."""
    post = Post()
    post.write(Terminal.FAILED, 502, BackendFailure("x"), sent=sent)
    post.letters.flush()
    assert [letter.bytes_sent for letter in post.read()] == [said]


@pytest.mark.parametrize("size", [0, 1, 8463, 8464, 8465, 100_000])
def test_long_bodies_travel_in_pieces(size: int) -> None:
    """In order, each within a record."""
    post = Post()
    body = bytes(i * 7 & 0xFF for i in range(size))
    post.write(Terminal.SHED, 503, InvalidRequest("x"), body)
    assert post.letters.flush()
    pieces = post.read()
    assert b"".join(p.body for p in pieces) == body
    assert [p.more for p in pieces] == [True] * (len(pieces) - 1) + [False]
    assert [p.at for p in pieces] == [
        sum(len(p.body) for p in pieces[:n]) for n in range(len(pieces))
    ]
    assert all(len(r) <= 10_000 for r in post.records)


def test_letters_wait_for_room_in_order() -> None:
    """Nothing is skipped, nothing is sent twice."""
    post = Post()
    for i in range(10):
        post.write(Terminal.SHED, body=b"%d" % i)
    post.room = 4
    assert not post.letters.flush()
    assert not post.letters.flush()
    post.room = 100
    assert post.letters.flush()
    assert [p.body for p in post.read()] == [b"%d" % i for i in range(10)]


def test_letters_nobody_takes_are_bounded() -> None:
    """The oldest go, and are counted."""
    post = Post()
    post.room = 0
    for i in range(MAX_WAITING + 5):
        post.write(Terminal.SHED, body=b"%d" % i)
    assert not post.letters.flush()
    assert post.metrics.counters["tpo_dead_letters_dropped_total"].value == 5
    post.room = 1 << 30
    assert post.letters.flush()
    assert post.read()[0].body == b"5"


def test_a_letter_of_very_many_pieces_waits_whole() -> None:
    """More pieces than letters may wait: none of its own pieces makes room for another."""
    post = Post(max_record=2000)
    post.room = 0
    body = bytes(i * 7 & 0xFF for i in range((2000 - 1536) * (MAX_WAITING + 10)))
    post.write(Terminal.SHED, body=body)
    assert not post.letters.flush()
    post.room = 1 << 30
    assert post.letters.flush()
    assert b"".join(piece.body for piece in post.read()) == body
    assert "tpo_dead_letters_dropped_total" in post.metrics.counters
    assert post.metrics.counters["tpo_dead_letters_dropped_total"].value == 0


def test_what_is_dropped_is_whole_letters() -> None:
    """One that was begun loses its end, too, so that control never takes a part for the whole."""
    post = Post()
    size = MAX_WAITING_BYTES // 3
    post.room = 2
    for first in (b"a", b"b"):
        post.write(Terminal.SHED, body=first * size)
    assert not post.letters.flush()
    for first in (b"c", b"d"):
        post.write(Terminal.SHED, body=first * size)
    assert post.metrics.counters["tpo_dead_letters_dropped_total"].value == 1
    post.room = 1 << 30
    assert post.letters.flush()
    begun, rest = post.read()[:2], post.read()[2:]
    assert {piece.body[:1] for piece in begun} == {b"a"}
    assert all(piece.more for piece in begun)
    assert b"".join(piece.body for piece in rest) == b"b" * size + b"c" * size + b"d" * size
    assert sum(not piece.more for piece in rest) == 3


def test_a_body_control_would_not_join_is_cut_and_says_so() -> None:
    """Every piece of it."""
    post = Post(max_record=1 << 20)
    post.write(Terminal.SHED, body=b"x" * (MAX_BODY_BYTES + 1))
    assert post.letters.flush()
    pieces = post.read()
    assert sum(len(piece.body) for piece in pieces) == MAX_BODY_BYTES
    assert all(piece.truncated for piece in pieces)
