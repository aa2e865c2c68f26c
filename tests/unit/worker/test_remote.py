"""A forwarded call on its owner's side, frame by frame."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import Collected
from tpo_mp.errors import BackendFailure, WorkerLost
from tpo_mp.shm import frames
from tpo_mp.shm.frames import Kind
from tpo_mp.types import Aside
from tpo_mp.worker.remote import GRANT_BYTES, Remote


class FakeMesh:
    """A mesh that notes what it is told."""

    credit_bytes = 65_536

    def __init__(self) -> None:
        self.links = self
        self.full = False
        self.granted: list[int] = []
        self.told: list[Kind] = []
        self.forgotten = 0
        self.life = (1, 1)

    def push(self, seat: int, head: bytes, body: bytes, *, control: bool = False) -> bool:
        """Take a credit frame, unless full."""
        assert control
        if not self.full:
            self.granted.append(frames.decoder(frames.CreditFrame).decode(body).n)  # type: ignore[attr-defined]
        return not self.full

    def tell(self, seat: int, kind: Kind, number: int) -> None:
        """Note a control frame."""
        self.told.append(kind)

    def forget(self, remote: Remote) -> None:
        """Count."""
        self.forgotten += 1

    def life_of(self, seat: int) -> tuple[int, int]:
        """As the test says."""
        return self.life


def remote(mesh: FakeMesh) -> Remote:
    """A call on its way."""
    return Remote(mesh, make_call(b"{}", stream=True), 1, 7, (1, 1))  # type: ignore[arg-type]


def head(**more: Any) -> frames.ReplyFrame:
    """A reply's head."""
    fields: dict[str, Any] = {
        "status": 200, "content_type": b"t", "headers": b"", "backend": "up", "stream": True,
        "body": None, "prompt_tokens": -1, "completion_tokens": -1, "attempts": 2,
        "first_byte_s": 0.5,
    }  # fmt: skip
    return frames.ReplyFrame(**(fields | more))


def end(error: Any = None) -> frames.EndFrame:
    """The last frame."""
    return frames.EndFrame(error, 1, 2, "stop")


def test_credit_is_granted_in_portions() -> None:
    """Not per chunk, and never for bytes nobody took."""
    mesh = FakeMesh()
    it = remote(mesh)
    it.replied(head())
    it.data(b"x" * GRANT_BYTES)
    assert mesh.granted == []
    assert it.promise.value is not None
    it.attach(Collected())
    assert mesh.granted == [GRANT_BYTES]
    it.data(b"x" * 10)
    it.data(b"x" * GRANT_BYTES)
    assert mesh.granted == [GRANT_BYTES, GRANT_BYTES + 10]


def test_paused_client_grants_nothing_until_it_reads() -> None:
    """Then everything at once."""
    mesh = FakeMesh()
    it = remote(mesh)
    it.replied(head())
    it.attach(Collected())
    it.pause()
    it.data(b"x" * 50_000)
    it.tick()
    assert mesh.granted == []
    it.resume()
    assert mesh.granted == [50_000]
    it.resume()
    assert mesh.granted == [50_000]


def test_refused_credit_stays_owed() -> None:
    """It goes with the next beat, in full."""
    mesh = FakeMesh()
    it = remote(mesh)
    it.replied(head())
    it.attach(Collected())
    mesh.full = True
    it.data(b"x" * 60_000)
    it.tick()
    assert mesh.granted == []
    mesh.full = False
    it.tick()
    it.tick()
    assert mesh.granted == [60_000]


def test_whole_answer_in_pieces_grants_as_it_grows() -> None:
    """Nobody has to attach for the rest to come."""
    mesh = FakeMesh()
    it = remote(mesh)
    it.replied(head(stream=False))
    for _ in range(10):
        it.data(b"x" * 10_000)
    it.ended(end())
    assert sum(mesh.granted) >= 80_000
    assert it.promise.value is not None
    assert it.promise.value.body == b"x" * 100_000
    assert it.promise.value.finish_reason == "stop"


def test_times_are_this_shards() -> None:
    """How long the upstream took crosses; when, does not."""
    it = remote(FakeMesh())
    it.replied(head())
    assert it.call.first_byte_at - it.call.upstream_at == pytest.approx(0.5)
    assert (it.call.backend, it.call.attempts) == ("up", 2)


@pytest.mark.parametrize("by_end", [False, True])
def test_what_is_unclear_over_there_is_unclear_here(by_end: bool) -> None:
    """Said with the reply or with the end; what was unclear before stays so."""
    it = remote(FakeMesh())
    it.replied(head(unclear=not by_end))
    it.ended(frames.EndFrame(None, 1, 2, "stop", unclear=by_end))
    assert it.call.unclear
    it = remote(FakeMesh())
    it.replied(head())
    it.ended(end())
    assert not it.call.unclear


@pytest.mark.parametrize("by_end", [False, True])
def test_what_was_asked_besides_comes_along(by_end: bool) -> None:
    """With the head of an answer, or with its end."""
    mesh = FakeMesh()
    it = remote(mesh)
    spent = (7, 0.25)
    it.replied(head(aside=None if by_end else spent))
    it.ended(frames.EndFrame(None, 1, 2, "stop", aside=spent if by_end else None))
    assert it.call.aside == Aside(*spent)


def test_end_without_a_reply_is_a_loss() -> None:
    """It can only be a defect over there."""
    it = remote(FakeMesh())
    it.ended(end())
    assert isinstance(it.promise.error, WorkerLost)


def test_error_in_mid_body_rejects_a_whole_answer() -> None:
    """Half of it is worth nothing."""
    it = remote(FakeMesh())
    it.replied(head(stream=False))
    it.data(b"half")
    it.ended(end(BackendFailure("cut").to_wire()))
    assert isinstance(it.promise.error, BackendFailure)


@pytest.mark.parametrize("alive", [True, False])
def test_lost_call_tells_a_living_server(alive: bool) -> None:
    """A dead one needs no telling."""
    mesh = FakeMesh()
    it = remote(mesh)
    it.replied(head())
    sink = Collected()
    it.attach(sink)
    mesh.life = (1, 1) if alive else (2, 9)
    it.lost("why")
    assert mesh.told == ([Kind.CANCEL] if alive else [])
    assert isinstance(sink.ends[0], WorkerLost)
    it.data(b"late")
    it.cancel()
    assert sink.chunks == []
    assert mesh.forgotten == 1
