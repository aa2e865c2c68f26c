"""Forwarding between two shards over real rings: answers, streams, bounces, deaths, damage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import Collected, HeldStream
from tests.support.fake_shards import FakeHost, Scripted
from tests.unit.worker.conftest import MakeHost
from tpo_mp.errors import BackendFailure, RateLimited, Rejected, Shed, TpoError, WorkerLost
from tpo_mp.pipeline.promise import run
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Priority, Reply, Usage
from tpo_mp.worker.remote import Bounced, Remote


class Forwarded:
    """One call sent from shard 0 to shard 1, and what came back."""

    def __init__(
        self, host: FakeHost, body: bytes = b"{}", *, pump: bool = True, epoch: int = 1, **more: Any
    ) -> None:
        self.host = host
        self.here, self.there = host.shards
        call = make_call(body, affinity=host.session_on(1), **more)
        call.slot = self.here.writer.open(bytes(16), b"meta", body, 0)
        self.call = call
        remote = self.here.mesh.forward(call, 1, epoch)
        assert remote is not None
        self.remote: Remote = remote
        self.promise = remote.promise
        self.sink = Collected()
        if pump:
            host.pump()

    @property
    def up(self) -> Scripted:
        """The upstream of the serving shard."""
        return self.there.up

    @property
    def served(self) -> Call:
        """The call as the serving shard has it."""
        return self.up.calls[-1]

    def answer(self, reply: Reply | Exception) -> None:
        """The upstream answers."""
        self.up.answer(reply)
        self.host.pump()

    def flow(self) -> HeldStream:
        """The upstream begins a stream, and the client reads it."""
        held = HeldStream()
        self.answer(Reply(200, None, stream=held, content_type=b"text/event-stream"))
        self.reply.stream.attach(self.sink)  # type: ignore[union-attr]
        return held

    @property
    def reply(self) -> Reply:
        """The reply, which must be there."""
        assert self.promise.error is None
        assert self.promise.value is not None
        return self.promise.value

    @property
    def error(self) -> TpoError:
        """Why it failed, before or after the first byte."""
        error = self.promise.error or self.sink.ends[0]
        assert isinstance(error, TpoError)
        return error

    def at_rest(self) -> None:
        """Nothing of it is left on either side."""
        assert not self.here.mesh.busy
        assert not self.there.mesh.busy
        assert not self.there.mesh.blocked
        assert self.here.crashes == self.there.crashes == []


def test_call_crosses_whole(host: FakeHost) -> None:
    """Everything the other shard needs to serve it, and nothing it could confuse."""
    sent = Forwarded(
        host, b'{"a":1}', stream=True, tenant="t", key_id="k", session="s", forward=b"x: y\r\n",
        priority=Priority.HIGH, client_request_id="r", authorization=b"Bearer b",
        usage_wanted=True, model="gpt",
    )  # fmt: skip
    fields = ("id", "model", "body", "stream", "dialect", "tenant", "key_id", "session", "affinity",
              "priority", "client_request_id", "authorization", "forward",
              "usage_wanted")  # fmt: skip
    for field in fields:
        assert getattr(sent.served, field) == getattr(sent.call, field), field
    assert sent.served.deadline == float("inf")


def test_deadline_crosses_as_what_is_left(host: FakeHost) -> None:
    """Clocks are not compared."""
    call = make_call(b"{}")
    sent = Forwarded(host, deadline=call.started_at + 1e9)
    assert 0 < sent.served.deadline - sent.served.started_at < 1e10


@pytest.mark.parametrize("size", [2, 16_384, 16_385, 200_000])
def test_body_of_any_size_crosses(host: FakeHost, size: int) -> None:
    """Small ones inline, large ones by their place in the owner's arena."""
    body = bytes(i * 7 & 0xFF for i in range(size))
    sent = Forwarded(host, body)
    assert sent.served.body == body


def test_body_that_did_not_fit_the_arena_stays(host: FakeHost) -> None:
    """It cannot travel, so it is served where it is."""
    here = host.shards[0]
    call = make_call(b"x" * 3_000_000)
    call.slot = here.writer.open(bytes(16), b"meta", call.body, 0)
    assert here.mesh.forward(call, 1, 1) is None
    call.slot = -1
    assert here.mesh.forward(call, 1, 1) is None


def test_body_that_is_gone_fails_the_call(host: FakeHost) -> None:
    """The owner gave its pages away before they were read: nobody serves another call's body."""
    sent = Forwarded(host, b"x" * 100_000, pump=False)
    sent.here.writer.close(sent.call.slot)
    other = sent.here.writer.open(bytes(16), b"meta", b"y" * 100_000, 0)
    assert sent.here.writer.body_ref(other)[1] == 100_000
    host.pump()
    assert sent.up.calls == []
    assert sent.error.reason == "body_gone"
    sent.at_rest()


@pytest.mark.parametrize("size", [0, 10, 32_000, 33_000, 64_000, 500_000])
def test_whole_answer_returns(host: FakeHost, size: int) -> None:
    """In one frame or many, with head, usage and who answered."""
    sent = Forwarded(host)
    reply = Reply(201, b"b" * size, content_type=b"text/x", headers=b"x-up: 1\r\n")
    reply.usage, reply.finish_reason = Usage(3, 4, 2), "stop"
    sent.answer(reply)
    got = sent.reply
    assert (got.status, got.body, got.content_type) == (201, b"b" * size, b"text/x")
    assert got.headers == b"x-up: 1\r\n"
    assert got.usage is not None
    assert (got.usage.prompt, got.usage.completion, got.usage.cached) == (3, 4, 2)
    assert (sent.call.backend, sent.call.attempts) == ("up", 1)
    assert sent.call.first_byte_at >= sent.call.upstream_at > 0
    sent.at_rest()


@pytest.mark.parametrize(
    "error",
    [RateLimited("slow", retry_after_s=2.5), BackendFailure("broke", reason="odd", status=503),
     Rejected("bad", body=b'{"error":{"message":"as it came"}}', param="p")],
)  # fmt: skip
def test_error_returns_as_what_it_was(host: FakeHost, error: TpoError) -> None:
    """Class, reason, status, and an upstream's own body."""
    sent = Forwarded(host)
    sent.answer(error)
    got = sent.error
    assert type(got) is type(error)
    assert got.to_wire() == error.to_wire()
    assert got.body == error.body
    sent.at_rest()


@pytest.mark.parametrize("at_once", [True, False])
def test_defect_over_there_is_an_error_here(host: FakeHost, at_once: bool) -> None:
    """Never a silence, never a cancellation, never its text."""
    defect = KeyError("secret")
    if at_once:
        host.shards[1].up.error = defect
        sent = Forwarded(host)
    else:
        sent = Forwarded(host)
        sent.answer(defect)
    assert (sent.error.status, sent.error.reason) == (500, "internal_error")
    assert "secret" not in sent.error.message
    sent.at_rest()


def test_stream_returns_in_order_with_its_end_last(host: FakeHost) -> None:
    """Bytes, then usage and finish reason, then nothing."""
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    for i in range(300):
        held.data(b"data: %d\n\n" % i)
        if i % 7 == 0:
            host.pump()
    stream = sent.up.promises[-1].value
    assert stream is not None
    stream.usage, stream.finish_reason = Usage(5, 2, 4), "length"
    held.end()
    host.pump()
    assert sent.sink.text == b"".join(b"data: %d\n\n" % i for i in range(300))
    assert sent.sink.ends == [None]
    assert sent.reply.usage is not None
    assert (sent.reply.usage.completion, sent.reply.usage.cached) == (2, 4)
    assert sent.reply.finish_reason == "length"
    sent.at_rest()


def test_stream_waits_for_its_reader(host: FakeHost) -> None:
    """What arrives before the client is attached is kept; the end too."""
    sent = Forwarded(host, stream=True)
    held = HeldStream()
    sent.answer(Reply(200, None, stream=held))
    held.data(b"early")
    held.end(BackendFailure("then it broke"))
    host.pump()
    assert sent.reply.stream is not None
    sent.reply.stream.attach(sent.sink)
    assert sent.sink.text == b"early"
    assert isinstance(sent.error, BackendFailure)
    sent.at_rest()


def test_chunk_longer_than_a_record_crosses_in_pieces(host: FakeHost) -> None:
    """However long a read was."""
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    big = bytes(i * 3 & 0xFF for i in range(300_000))
    held.data(big)
    host.pump()
    held.end()
    host.pump()
    assert sent.sink.text == big
    assert sent.sink.ends == [None]
    sent.at_rest()


@pytest.mark.parametrize("credit", [4096, 65_536])
def test_credit_bounds_what_is_under_way(make_host: MakeHost, credit: int) -> None:
    """A client that does not read pauses the upstream; reading on resumes it; nothing is lost."""
    host = make_host(credit_bytes=credit)
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    assert sent.reply.stream is not None
    sent.reply.stream.pause()
    total = 0
    while "pause" not in held.told:
        held.data(b"x" * 1000)
        total += 1000
        host.pump()
        assert total <= credit + 1000
    assert total >= credit
    host.tick()
    assert held.told == ["pause"]
    sent.reply.stream.resume()
    host.pump()
    assert held.told == ["pause", "resume"]
    for _ in range(200):
        held.data(b"y" * 1000)
        host.pump()
    held.end()
    host.pump()
    assert len(sent.sink.text) == total + 200_000
    assert sent.sink.ends == [None]
    sent.at_rest()


def test_full_ring_loses_nothing_of_a_live_stream(host: FakeHost) -> None:
    """Refused frames wait in order, the upstream is paused, the end stays last."""
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    sent.there.fill_ring(0)
    held.data(b"first")
    held.data(b"second")
    assert held.told == ["pause"]
    held.end(None)
    sent.there.mesh.tick()
    assert sent.there.mesh.blocked
    host.pump()
    host.tick()
    assert sent.sink.text == b"firstsecond"
    assert sent.sink.ends == [None]
    sent.at_rest()


def test_full_ring_keeps_a_whole_answer(host: FakeHost) -> None:
    """Small or in pieces, it goes out when there is room."""
    for size in (10, 200_000):
        sent = Forwarded(host)
        sent.there.fill_ring(0)
        sent.up.answer(Reply(200, b"z" * size))
        assert not sent.promise.done
        for _ in range(3):
            host.pump()
            host.tick()
        assert sent.reply.body == b"z" * size
        sent.at_rest()


def test_credit_refused_by_a_full_ring_is_granted_later(host: FakeHost) -> None:
    """At zero credit no frame comes that would carry it: the clock does."""
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    sent.here.fill_ring(1)
    while "pause" not in held.told:
        held.data(b"x" * 4000)
        host.pump(sent.here)
    host.pump()
    host.tick()
    assert held.told[-1] == "resume"


def test_full_ring_refuses_new_calls_only(host: FakeHost) -> None:
    """They are shed at once; what is under way goes on."""
    sent = Forwarded(host, stream=True)
    held = sent.flow()
    sent.here.fill_ring(1)
    with pytest.raises(Shed):
        Forwarded(host, pump=False)
    held.data(b"on")
    held.end()
    host.pump()
    assert sent.sink.text == b"on"
    sent.at_rest()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_cancelling_reaches_the_upstream(host: FakeHost, stream: bool, full: bool) -> None:
    """Before the answer and in mid-stream, also when the ring has no room just then."""
    sent = Forwarded(host, stream=stream)
    held = sent.flow() if stream else HeldStream()
    if full:
        sent.here.fill_ring(1)
    if stream:
        assert sent.reply.stream is not None
        sent.reply.stream.cancel()
        sent.reply.stream.cancel()
    else:
        sent.promise.cancel()
    for _ in range(2):
        host.pump()
        host.tick()
    assert (held.told[-1:] == ["cancel"]) if stream else (sent.up.cancelled == 1)
    assert sent.sink.ends == []
    sent.at_rest()


def test_late_answers_of_a_cancelled_call_find_nobody(host: FakeHost) -> None:
    """They were under way already."""
    sent = Forwarded(host, stream=True)
    held = HeldStream()
    sent.up.answer(Reply(200, None, stream=held))
    held.data(b"late")
    held.end()
    sent.promise.cancel()
    host.pump()
    assert sent.sink.chunks == []
    sent.at_rest()


@pytest.mark.parametrize("moved", [True, False])
def test_call_for_a_moved_key_is_bounced(host: FakeHost, moved: bool) -> None:
    """Only if the map is newer than the sender's and gives the key away."""
    sent = Forwarded(host, pump=False)
    host.plane.publish_map([0 if moved else 1] * 1024)
    host.pump()
    assert isinstance(sent.promise.error, Bounced) is moved
    assert len(sent.up.calls) == (0 if moved else 1)


@pytest.mark.parametrize("stream", [False, True])
def test_server_that_dies_loses_its_calls(host: FakeHost, stream: bool) -> None:
    """Those without a byte may be placed again, those with one end with an error."""
    sent = Forwarded(host, stream=stream)
    if stream:
        sent.flow().data(b"data: 1\n\n")
        host.pump()
    host.die(1)
    sent.here.mesh.tick()
    assert isinstance(sent.error, WorkerLost)
    assert bool(sent.sink.text) is stream
    assert not sent.here.mesh.busy


@pytest.mark.parametrize("stream", [False, True])
def test_owner_that_dies_takes_its_calls_along(host: FakeHost, stream: bool) -> None:
    """The upstream is let go within a beat."""
    sent = Forwarded(host, stream=stream)
    held = sent.flow() if stream else HeldStream()
    host.die(0)
    sent.there.mesh.tick()
    assert (held.told == ["cancel"]) if stream else (sent.up.cancelled == 1)
    assert not sent.there.mesh.busy


def test_living_peers_are_left_alone(host: FakeHost) -> None:
    """A beat changes nothing."""
    sent = Forwarded(host)
    for _ in range(5):
        host.tick()
    sent.answer(Reply(200, b"x"))
    assert sent.reply.body == b"x"


@pytest.mark.parametrize("reader", [0, 1])
def test_damaged_ring_gives_up_every_call_on_it(host: FakeHost, reader: int) -> None:
    """Nobody can say what was lost: both sides let go, and the ring goes on."""
    sent, held = [], []
    for _ in range(3):
        sent.append(Forwarded(host, stream=True))
        held.append(sent[-1].flow())
    host.shards[reader].mesh.damaged(1 - reader)
    host.pump()
    for each, stream in zip(sent, held, strict=True):
        assert isinstance(each.error, WorkerLost)
        assert stream.told[-1] == "cancel"
        each.at_rest()
    fresh = Forwarded(host)
    fresh.answer(Reply(200, b"again"))
    assert fresh.reply.body == b"again"


@pytest.mark.parametrize("kind", [k for k in Kind if k < 9 and k not in (Kind.CALL, Kind.BROKEN)])
def test_frames_of_unknown_calls_are_ignored(host: FakeHost, kind: Kind) -> None:
    """They are what is left of a call that is over."""
    host.shards[0].links.send(1, HEAD.pack(kind, 12345) + b"\x90")
    host.pump()
    assert not host.shards[1].mesh.busy


def test_other_frames_are_not_the_meshs(host: FakeHost) -> None:
    """They belong to the store and the asynchronous calls."""
    mesh = host.shards[0].mesh
    for kind in Kind:
        if kind >= 9:
            assert not mesh.take(1, kind, 0, memoryview(b""))


def test_numbers_wrap_without_harm(host: FakeHost) -> None:
    """After four billion calls."""
    host.shards[0].mesh._next = 0xFFFFFFFF
    sent = Forwarded(host)
    assert sent.remote.number == 0
    sent.answer(Reply(200, b"x"))
    assert sent.reply.body == b"x"


def test_busy_shards_say_so(host: FakeHost) -> None:
    """So that their loops look at the rings more often."""
    sent = Forwarded(host)
    assert sent.here.mesh.busy
    assert sent.there.mesh.busy
    assert sent.here.busy >= 1
    assert sent.there.busy >= 1
    sent.answer(Reply(200, b"x"))
    sent.at_rest()


# -- config epochs -------------------------------------------------------------------------------


def test_call_is_served_by_the_config_that_admitted_it(host: FakeHost) -> None:
    """The serving shard has a newer one already: calls under way go by the old, new ones do not."""
    there = host.shards[1]
    old, new = there.up, Scripted()
    there.adopt(2, new)
    Forwarded(host, epoch=1)
    assert (len(old.calls), len(new.calls)) == (1, 0)
    Forwarded(host, epoch=2)
    assert (len(old.calls), len(new.calls)) == (1, 1)


def test_call_of_a_newer_config_makes_the_server_catch_up(host: FakeHost) -> None:
    """It was told later, not otherwise: it adopts what is published before it serves."""
    there = host.shards[1]
    old, new = there.up, Scripted()
    there.owner.catch_up = lambda: there.adopt(2, new)
    Forwarded(host, epoch=2)
    assert (len(old.calls), len(new.calls)) == (0, 1)


def test_call_of_a_config_that_was_refused_is_served_by_what_there_is(host: FakeHost) -> None:
    """A veto is on its way to everyone; an epoch long gone has no chain any more."""
    there = host.shards[1]
    Forwarded(host, epoch=2)
    assert len(there.up.calls) == 1
    for epoch in (3, 4):
        there.adopt(epoch, there.up)
    Forwarded(host, epoch=1)
    assert len(there.up.calls) == 2


def test_call_keeps_the_config_of_its_admission_when_it_leaves_late(host: FakeHost) -> None:
    """Admitted, then held up while a reload comes: it travels under the epoch it began with."""
    here, there = host.shards
    new = Scripted()
    placed = here.owner._run
    here.adopt(2, Scripted())
    there.adopt(2, new)
    call = make_call(b"{}", affinity=host.session_on(1))
    call.slot = here.writer.open(bytes(16), b"meta", b"{}", 0)
    run(placed(call), lambda _reply, _error: None)
    host.pump()
    assert (len(there.up.calls), len(new.calls)) == (1, 0)
