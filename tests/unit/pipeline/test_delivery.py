"""Delivery: one terminal state on every path, and never a client left waiting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeExchange, FakeGateway
from tests.support.fake_net import HeldStream
from tpo_mp.errors import (
    BackendFailure,
    Cancelled,
    CircuitOpen,
    ConnectionCut,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    OverBudget,
    RateLimited,
    Shed,
    TpoError,
    WorkerLost,
)
from tpo_mp.http.head import Head
from tpo_mp.pipeline.delivery import Delivery, as_tpo, retry_lines
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Reply, Terminal


class Scene:
    """A delivery, its exchange, its stream, and what became of them."""

    def __init__(self, *, stream: bool = False, **more: Any) -> None:
        self.gateway = FakeGateway()
        self.exchange = FakeExchange(Head(), b"body")
        self.call = make_call(b"{}", stream=stream, **more)
        self.delivery = Delivery(self.gateway, self.exchange, self.call)  # type: ignore[arg-type]
        self.held = HeldStream()

    def flow(self) -> None:
        """Begin a streamed reply."""
        self.delivery.done(Reply(200, None, stream=self.held), None)

    @property
    def ends(self) -> list[Terminal]:
        """Terminal states the gateway was told."""
        return self.gateway.ends

    @property
    def in_band(self) -> dict[str, Any]:
        """The error event at the end of a stream."""
        event = self.exchange.answer.rpartition(b"data: ")[2]
        error: dict[str, Any] = json.loads(event)["error"]
        return error


def test_whole_reply() -> None:
    """Sent, counted, settled."""
    scene = Scene()
    scene.delivery.done(Reply(200, b"hello", headers=b"x-up: 1\r\n"), None)
    assert (scene.exchange.status, scene.exchange.answer) == (200, b"hello")
    assert b"x-up: 1\r\n" in scene.exchange.extra
    assert scene.ends == [Terminal.DONE]
    assert (scene.delivery.bytes_in, scene.delivery.bytes_out) == (4, 5)
    assert scene.delivery.status == 200
    assert scene.delivery.finished_at > 0
    assert scene.delivery.deadline == float("inf")


def test_stream() -> None:
    """Head, bytes, end."""
    scene = Scene(stream=True)
    scene.flow()
    assert scene.exchange.status == 200
    scene.held.data(b"one")
    scene.held.data(b"two")
    assert scene.ends == []
    scene.held.end()
    assert scene.exchange.answer == b"onetwo"
    assert scene.exchange.ended
    assert scene.ends == [Terminal.DONE]
    assert scene.delivery.bytes_out == 6


ERRORS = [
    (RateLimited("a"), 429, Terminal.FAILED),
    (InvalidRequest("a"), 400, Terminal.FAILED),
    (Shed("a"), 503, Terminal.SHED),
    (Draining("a"), 503, Terminal.FAILED),
    (BackendFailure("a"), 502, Terminal.FAILED),
    (WorkerLost("a"), 502, Terminal.FAILED),
    (DeadlineExceeded("a"), 504, Terminal.EXPIRED),
    (Cancelled("inside"), 500, Terminal.FAILED),
]


@pytest.mark.parametrize(("error", "status", "terminal"), ERRORS)
def test_error_before_the_first_byte(error: TpoError, status: int, terminal: Terminal) -> None:
    """A whole error response, whoever gave up: the client is there and must hear of it."""
    scene = Scene()
    scene.delivery.done(None, error)
    assert scene.exchange.status == status
    assert scene.exchange.json()["error"]["message"]
    assert scene.ends == [terminal]
    assert scene.delivery.status == status


@pytest.mark.parametrize(("error", "status", "terminal"), ERRORS)
def test_error_in_mid_stream(error: TpoError, status: int, terminal: Terminal) -> None:
    """An event that makes SDKs raise, then a proper end of the body."""
    scene = Scene(stream=True)
    scene.flow()
    scene.held.data(b"data: 1\n\n")
    scene.held.end(error)
    assert scene.exchange.answer.startswith(b"data: 1\n\ndata: {")
    assert scene.in_band["message"]
    assert scene.exchange.ended
    assert scene.ends == [terminal]


@pytest.mark.parametrize("error", [KeyError("secret"), None, asyncio.CancelledError()])
def test_defect_inside_is_an_error_without_detail(error: BaseException | None) -> None:
    """And its cause is kept for the log."""
    scene = Scene()
    scene.delivery.done(None, error)
    assert scene.exchange.status == 500
    assert b"secret" not in scene.exchange.answer
    assert scene.ends == [Terminal.FAILED]
    if isinstance(error, KeyError):
        assert scene.delivery.error is not None
        assert scene.delivery.error.__cause__ is error


@pytest.mark.parametrize("reply", [Reply(200, None), "not a reply", object()])
def test_malformed_reply_is_an_error(reply: Any) -> None:
    """A feature that answers nonsense fails its call; nobody waits for ever."""
    scene = Scene()
    scene.delivery.done(reply, None)
    assert scene.exchange.status == 500
    assert scene.ends == [Terminal.FAILED]


def test_stream_nobody_asked_for_is_refused() -> None:
    """A client that wants one body cannot be sent events."""
    scene = Scene(stream=False)
    scene.flow()
    assert scene.exchange.status == 502
    assert scene.held.told == ["cancel"]
    assert scene.ends == [Terminal.FAILED]


def leave(scene: Scene) -> None:
    """The client goes."""
    assert scene.exchange.on_disconnect is not None
    scene.exchange.on_disconnect()


def expire(scene: Scene) -> None:
    """The deadline passes."""
    scene.delivery.expire()


def stop(scene: Scene) -> None:
    """The host stops."""
    scene.delivery.stop(Draining("leaving"))


STOPS: list[tuple[Callable[[Scene], None], int, Terminal]] = [
    (leave, 0, Terminal.CANCELLED),
    (expire, 504, Terminal.EXPIRED),
    (stop, 503, Terminal.FAILED),
]


@pytest.mark.parametrize(("act", "status", "terminal"), STOPS)
def test_call_is_ended_while_it_waits(
    act: Callable[[Scene], None], status: int, terminal: Terminal
) -> None:
    """What works on it is told; its late outcome is nobody's."""
    scene = Scene()
    told: list[bool] = []
    promise: Promise[Reply] = Promise(lambda: told.append(True))
    scene.delivery.promise = promise
    promise.then(scene.delivery.done)
    act(scene)
    assert told == [True]
    assert scene.exchange.status == status
    assert scene.ends == [terminal]
    scene.delivery.done(Reply(200, None, stream=scene.held), None)
    assert scene.held.told == ["cancel"]
    assert scene.ends == [terminal]
    assert scene.exchange.status == status


@pytest.mark.parametrize(("act", "_status", "terminal"), STOPS)
def test_call_is_ended_in_mid_stream(
    act: Callable[[Scene], None], _status: int, terminal: Terminal
) -> None:
    """The upstream is let go; a client that is there gets an error event and an end."""
    scene = Scene(stream=True)
    scene.flow()
    scene.held.data(b"data: 1\n\n")
    act(scene)
    assert scene.held.told == ["cancel"]
    assert scene.ends == [terminal]
    assert scene.exchange.ended is (act is not leave)
    if act is leave:
        assert scene.exchange.answer == b"data: 1\n\n"
    else:
        assert scene.in_band["message"]


@pytest.mark.parametrize(("first", "_s", "terminal"), STOPS)
@pytest.mark.parametrize(("second", "_s2", "_t2"), STOPS)
def test_nothing_ends_twice(
    first: Callable[[Scene], None], second: Callable[[Scene], None], terminal: Terminal,
    _s: int, _s2: int, _t2: Terminal,
) -> None:  # fmt: skip
    """The first reason stands; the second changes nothing."""
    for stream in (False, True):
        scene = Scene(stream=stream)
        if stream:
            scene.flow()
        first(scene)
        answer, told = scene.exchange.answer, list(scene.held.told)
        second(scene)
        scene.delivery.end(None)
        scene.delivery.end(BackendFailure("late"))
        scene.delivery.done(None, BackendFailure("late"))
        assert scene.ends == [terminal]
        assert scene.exchange.answer == answer
        assert scene.held.told == told


def test_stops_after_the_end_are_nothing() -> None:
    """A call that is done is done."""
    scene = Scene()
    scene.delivery.done(Reply(200, b"x"), None)
    for act in (leave, expire, stop):
        act(scene)
    assert scene.ends == [Terminal.DONE]
    assert scene.exchange.answer == b"x"


def test_error_while_settling_is_not_hidden() -> None:
    """The books are the gateway's affair: their defect is not answered a second time."""
    scene = Scene()

    def broken(delivery: Delivery) -> None:
        raise RuntimeError("books")

    scene.gateway.settled = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="books"):
        scene.delivery.done(Reply(200, b"x"), None)
    assert scene.exchange.status == 200


def test_header_lines_identify_the_call() -> None:
    """The client's own id, ours, where it ran, how long each side took."""
    scene = Scene(client_request_id="r-1", shard=3, upstream_at=1000.5, first_byte_at=1001.0)
    scene.call.backend = "up"
    scene.delivery.done(Reply(200, b"x"), None)
    lines = scene.exchange.extra.split(b"\r\n")
    assert b"x-request-id: r-1" in lines
    assert b"x-tpo-call-id: call-1" in lines
    assert b"x-tpo-shard: 3" in lines
    assert b"x-tpo-backend: up" in lines
    assert b"upstream;dur=500.00" in scene.exchange.extra


def test_error_of_a_call_that_reached_no_backend_names_none() -> None:
    """No header rather than an empty one; the rest of the lines stay."""
    scene = Scene(client_request_id="r-1", shard=3)
    scene.delivery.done(None, RateLimited("x"))
    names = [line.partition(b":")[0] for line in scene.exchange.extra.split(b"\r\n")]
    assert b"x-tpo-backend" not in names
    assert names[:4] == [b"x-request-id", b"x-tpo-call-id", b"x-tpo-shard", b"server-timing"]


def test_error_of_a_backend_names_it() -> None:
    """Whose fault it was is what the reader wants to know."""
    scene = Scene()
    scene.call.backend = "up"
    scene.delivery.done(None, BackendFailure("x"))
    assert b"\r\nx-tpo-backend: up\r\n" in scene.exchange.extra


_PAUSE = b"retry-after: %d\r\nretry-after-ms: %d\r\n"
_AGAIN = b"x-should-retry: true\r\n"


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (RateLimited("x", retry_after_s=2), _PAUSE % (2, 2000) + _AGAIN),
        (RateLimited("x", retry_after_s=0.05), _PAUSE % (1, 50) + _AGAIN),
        (RateLimited("x", retry_after_s=1.2), _PAUSE % (2, 1200) + _AGAIN),
        (RateLimited("x", retry_after_s=2.0004), _PAUSE % (3, 2001) + _AGAIN),
        (RateLimited("x"), _PAUSE % (1, 1000) + _AGAIN),
        (RateLimited("x", retry_after_s=60), _PAUSE % (60, 60_000) + _AGAIN),
        (
            RateLimited("x", retry_after_s=1200),
            _PAUSE % (1200, 1_200_000) + b"x-should-retry: false\r\n",
        ),
        (Shed("x"), _PAUSE % (1, 1000) + _AGAIN),
        (CircuitOpen("x"), _PAUSE % (1, 1000) + _AGAIN),
        (RateLimited("x", reason="upstream_rate_limited"), _PAUSE % (1, 1000)),
        (BackendFailure("x", retry_after_s=3), _PAUSE % (3, 3000)),
        (
            RateLimited(
                "x",
                reason="upstream_rate_limited",
                lines=b"retry-after: Fri, 27 Nov 2026 12:00:00 GMT\r\n",
            ),
            b"",
        ),
        (OverBudget("x"), b"x-should-retry: false\r\n"),
        (InvalidRequest("x"), b""),
        (BackendFailure("x"), b""),
    ],
)
def test_clients_are_told_when_to_come_back(error: TpoError, lines: bytes) -> None:
    """In both spellings SDKs read, unless they were told; not to, when waiting does not help."""
    assert retry_lines(error) == lines


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "cut", [ConnectionCut("gone"), ConnectionCut("", reason="connection_reset")]
)
def test_cut_connection_is_broken_without_a_word(begun: bool, cut: ConnectionCut) -> None:
    """After what was written has left; the call failed, and the client is told nothing."""

    async def story() -> None:
        scene = Scene(stream=begun)
        if begun:
            scene.flow()
            scene.delivery.data(b"data: 1\n\n")
            scene.delivery.end(cut)
        else:
            scene.delivery.done(None, cut)
        assert scene.ends == [Terminal.FAILED]
        assert not scene.exchange.aborted
        await asyncio.sleep(0)
        assert scene.exchange.aborted
        assert scene.exchange.hard is (cut.reason == ConnectionCut.RESET)
        assert scene.exchange.answer == (b"data: 1\n\n" if begun else b"")

    asyncio.run(story())


def test_every_outcome_has_a_clients_word() -> None:
    """A defect is internal, a cancellation is one, our errors are themselves."""
    ours = RateLimited("x")
    assert as_tpo(ours) is ours
    assert isinstance(as_tpo(asyncio.CancelledError()), Cancelled)
    assert as_tpo(ValueError("x")).reason == "internal_error"


def test_our_limits_are_told_in_place_of_an_upstreams() -> None:
    """One set of them, whole; its other lines stay."""
    scene = Scene()
    scene.call.limit_lines = b"x-ratelimit-limit-requests: 5\r\n"
    passed = (
        b"x-ratelimit-limit-tokens: 9\r\nopenai-version: 1\r\n"
        b"anthropic-ratelimit-requests-limit: 2\r\n"
    )
    scene.delivery.done(Reply(200, b"{}", headers=passed), None)
    assert scene.exchange.extra.startswith(
        b"openai-version: 1\r\nx-ratelimit-limit-requests: 5\r\nx-request-id"
    )
    other = Scene()
    other.delivery.done(Reply(200, b"{}", headers=passed), None)
    assert other.exchange.extra.startswith(passed)
