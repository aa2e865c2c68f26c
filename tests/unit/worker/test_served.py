"""A call served for another shard, frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure, RateLimited
from tpo_mp.pipeline.promise import Promise
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply
from tpo_mp.worker.served import Served


class FakeMesh:
    """A mesh that keeps frames, as many as it has room for."""

    credit_bytes = 1000

    def __init__(self) -> None:
        self.links = self
        self.max_record = 400
        self.room = 1000
        self.sent: list[tuple[Kind, bytes]] = []
        self.blocked: set[Served] = set()
        self.done = 0
        self.crashes: list[BaseException] = []
        self.on_crash = self.crashes.append

    def push(self, seat: int, head: bytes, body: bytes, *, control: bool = False) -> bool:
        """Take a frame, unless full."""
        assert len(body) <= self.max_record
        if len(self.sent) >= self.room:
            return False
        kind, number = HEAD.unpack(head)
        assert number == 7
        self.sent.append((Kind(kind), body))
        return True

    def finished(self, served: Served) -> None:
        """Count."""
        self.done += 1
        self.blocked.discard(served)

    @property
    def kinds(self) -> list[Kind]:
        """What was sent, by kind."""
        return [kind for kind, _ in self.sent]

    @property
    def end(self) -> frames.EndFrame:
        """The last frame, which must be the end."""
        kind, body = self.sent[-1]
        assert kind is Kind.END
        made = frames.decoder(frames.EndFrame).decode(body)
        assert isinstance(made, frames.EndFrame)
        return made


def start(mesh: FakeMesh, outcome: Reply | Exception | Promise[Reply]) -> Served:
    """Serve one call."""
    served = Served(mesh, 0, 7, (1, 1))  # type: ignore[arg-type]

    def serve(call: Call) -> Awaitable[Reply]:
        if isinstance(outcome, Promise):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
        said: Promise[Reply] = Promise()
        said.resolve(outcome)
        return said

    served.start(make_call(b"{}"), serve)
    return served


def test_small_answer_is_one_frame() -> None:
    """And the call is over."""
    mesh = FakeMesh()
    start(mesh, Reply(200, b"small"))
    assert mesh.kinds == [Kind.REPLY]
    assert mesh.done == 1


def test_large_answer_is_cut_into_records() -> None:
    """Within its credit; the rest waits for the owner to take it."""
    mesh = FakeMesh()
    served = start(mesh, Reply(200, b"x" * 2000))
    assert set(mesh.kinds) == {Kind.REPLY, Kind.DATA}
    assert served in mesh.blocked
    for _ in range(10):
        served.grant(400)
    body = b"".join(body for kind, body in mesh.sent if kind is Kind.DATA)
    assert body == b"x" * 2000
    assert mesh.end.error is None
    assert mesh.done == 1
    assert not mesh.blocked


@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (RateLimited("a"), "rate_limited", "rate_limited"),
        (BackendFailure("a", reason="odd"), "backend_failure", "odd"),
        (KeyError("secret"), "fault", "internal_error"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_failure_is_the_end(outcome: Exception, code: str, reason: str, later: bool) -> None:
    """Whenever it comes and whatever it is."""
    mesh = FakeMesh()
    promise: Promise[Reply] = Promise()
    start(mesh, promise if later else outcome)
    if later:
        promise.reject(outcome)
    error = mesh.end.error
    assert error is not None
    assert error[:2] == (code, reason)
    assert mesh.done == 1
    # A defect is reported where it happened; the owner hears only that there was one.
    assert mesh.crashes == ([outcome] if code == "fault" else [])


def test_upstreams_own_error_body_crosses_if_it_fits() -> None:
    """A long one is worded anew by the owner."""
    for size, crosses in ((100, True), (300, False)):
        mesh = FakeMesh()
        start(mesh, RateLimited("a", body=b"e" * size))
        assert mesh.end.error_body == (b"e" * size if crosses else None)


def test_cancelled_work_is_an_answer_too() -> None:
    """Nobody may wait for ever because something inside gave up."""
    mesh = FakeMesh()
    promise: Promise[Reply] = Promise()
    start(mesh, promise)
    promise.reject(asyncio.CancelledError())
    assert mesh.end.error is not None


def test_credit_pauses_and_resumes_the_source() -> None:
    """Once each way."""
    mesh, held = FakeMesh(), HeldStream()
    served = start(mesh, Reply(200, None, stream=held))
    held.data(b"x" * 300)
    held.data(b"x" * 300)
    held.data(b"x" * 300)
    assert held.told == []
    held.data(b"x" * 300)
    assert held.told == ["pause"]
    held.data(b"more")
    assert mesh.kinds.count(Kind.DATA) == 4
    served.grant(100)
    assert held.told == ["pause"]
    served.grant(500)
    assert held.told == ["pause", "resume"]
    assert mesh.kinds.count(Kind.DATA) == 5


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_full_ring_keeps_the_order(room: int) -> None:
    """Whatever was refused goes first, the end goes last."""
    mesh, held = FakeMesh(), HeldStream()
    mesh.room = room
    served = start(mesh, Reply(200, None, stream=held))
    held.data(b"one")
    held.data(b"two")
    held.end()
    assert served in mesh.blocked
    assert "resume" not in held.told
    mesh.room = 1000
    served.flush()
    assert mesh.kinds == [Kind.REPLY, Kind.DATA, Kind.DATA, Kind.END]
    assert [body for kind, body in mesh.sent if kind is Kind.DATA] == [b"one", b"two"]
    assert mesh.done == 1
    assert not mesh.blocked


@pytest.mark.parametrize("what", ["waiting", "streaming", "late reply", "late stream"])
def test_cancelled_call_is_silent(what: str) -> None:
    """The work is told; whatever still comes is dropped, and let go."""
    mesh, held = FakeMesh(), HeldStream()
    told: list[Any] = []
    promise: Promise[Reply] = Promise(lambda: told.append("cancelled"))
    served = start(mesh, promise)
    if what == "streaming":
        promise.resolve(Reply(200, None, stream=held))
    before = len(mesh.sent)
    if what.startswith("late"):
        served._cancel = None  # it would not listen
    served.cancel()
    if what.startswith("late"):
        promise.resolve(Reply(200, b"x", stream=held if what == "late stream" else None))
    assert len(mesh.sent) == before
    assert mesh.done >= 1
    assert told == (["cancelled"] if what == "waiting" else [])
    assert held.told == (["cancel"] if what in ("streaming", "late stream") else [])


def test_refused_call_is_answered_without_running() -> None:
    """When its body is gone, say."""
    mesh = FakeMesh()
    served = Served(mesh, 0, 7, (1, 1))  # type: ignore[arg-type]
    served.refuse(make_call(b""), BackendFailure("gone"))
    assert mesh.kinds == [Kind.END]
    assert mesh.done == 1
