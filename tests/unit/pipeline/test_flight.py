"""A shared stream: everybody gets every byte once, at their own pace, and one of them pays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, HeldStream
from tests.support.wait import until
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline import flight as flight_module
from tpo_mp.pipeline.flights import Flights
from tpo_mp.pipeline.promise import Promise
from tpo_mp.types import Call, Reply, Usage


class Shared:
    """One upstream stream, and those aboard."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.flights = Flights(self.world.env, 10, linger_s=2.0)
        self.held = HeldStream()
        self.reply = Reply(200, None, stream=self.held)
        self.calls: list[Call] = []
        self.replies: list[Reply] = []
        self.asked = 0

    def _infer(self, call: Call) -> Awaitable[Reply]:
        self.asked += 1
        call.attempts += 1
        out: Promise[Reply] = Promise()
        out.resolve(self.reply)
        return out

    def board(self, sink: Collected | None = None, **more: Any) -> Collected:
        """One more joins, and reads."""
        call = make_call(b"{}", stream=True, **more)
        out = self.flights.join(b"key", call, self._infer)
        assert isinstance(out, Promise)
        assert out.value is not None
        assert out.value.stream is not None
        self.calls.append(call)
        self.replies.append(out.value)
        sink = sink or Collected()
        out.value.stream.attach(sink)
        return sink

    def stream(self, at: int) -> object:
        """What a rider holds."""
        return self.replies[at].stream


def test_late_riders_get_the_prefix_and_all_get_the_end() -> None:
    """With usage and finish reason, which the stream's end brings."""
    shared = Shared()
    early = shared.board()
    shared.held.data(b"one ")
    late = shared.board()
    shared.held.data(b"two")
    shared.reply.usage, shared.reply.finish_reason = Usage(1, 2), "stop"
    shared.held.end()
    assert early.text == late.text == b"one two"
    assert early.ends == late.ends == [None]
    assert [call.attempts for call in shared.calls] == [1, 0]
    assert [call.cache for call in shared.calls] == ["", "coalesced"]
    assert {reply.finish_reason for reply in shared.replies} == {"stop"}
    assert shared.flights.kept == len(shared.flights) == 0
    shared.board()
    assert shared.asked == 2, "a stream that is over was joined"


def test_the_upstream_waits_only_when_everybody_does() -> None:
    """Each takes at its own pace."""
    shared = Shared()
    fast, slow = shared.board(), shared.board()
    shared.replies[1].stream.pause()  # type: ignore[union-attr]
    shared.held.data(b"a")
    shared.held.data(b"b")
    assert (fast.text, slow.text, shared.held.told) == (b"ab", b"", [])
    shared.replies[0].stream.pause()  # type: ignore[union-attr]
    assert shared.held.told == ["pause"]
    shared.replies[1].stream.resume()  # type: ignore[union-attr]
    assert shared.held.told == ["pause", "resume"]
    assert slow.text == b"ab"
    shared.held.end(BackendFailure("broke"))
    assert (len(slow.ends), fast.ends) == (1, [])
    shared.replies[0].stream.resume()  # type: ignore[union-attr]
    assert len(fast.ends) == 1
    assert shared.flights.kept == 0


def test_who_lags_is_cut_off_and_a_long_stream_is_closed_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded; who is alone may be as slow as it likes."""
    monkeypatch.setattr(flight_module, "PREFIX_BYTES", 100)
    monkeypatch.setattr(flight_module, "LAG_BYTES", 100)
    shared = Shared()
    slow, fast = shared.board(), shared.board()
    shared.replies[0].stream.pause()  # type: ignore[union-attr]
    for _ in range(10):
        shared.held.data(b"x" * 30)
    assert [error and error.reason for error in slow.ends] == ["too_slow"]
    assert len(fast.text) == 300
    assert [call.attempts for call in shared.calls] == [0, 1], "who goes on pays"
    assert shared.flights.kept == 0
    shared.board()
    assert shared.asked == 2, "it joined without the prefix"
    alone = Shared()
    only = alone.board()
    alone.replies[0].stream.pause()  # type: ignore[union-attr]
    for _ in range(10):
        alone.held.data(b"x" * 30)
    assert only.ends == []


def test_leavers_leave_alone_the_last_cancels_and_the_next_pays() -> None:
    """In whatever order."""
    shared = Shared()
    sinks = [shared.board() for _ in range(3)]
    shared.held.data(b"a")
    for at in (0, 2):
        shared.replies[at].stream.cancel()  # type: ignore[union-attr]
    shared.held.data(b"b")
    assert [sink.text for sink in sinks] == [b"a", b"ab", b"a"]
    assert [call.attempts for call in shared.calls] == [0, 1, 0]
    assert shared.held.told == []
    shared.replies[1].stream.cancel()  # type: ignore[union-attr]
    assert shared.held.told == ["cancel"]
    assert shared.flights.kept == len(shared.flights) == 0


@pytest.mark.parametrize("comes", ["before the end", "after the end", "too late"])
def test_an_sdk_that_waits_no_longer_finds_its_stream_when_it_asks_again(comes: str) -> None:
    """It pays then; who does not come costs the upstream no more than the time to come back."""
    shared = Shared()
    shared.board(patience_s=5.0)
    shared.held.data(b"one ")
    shared.world.advance(5)
    shared.replies[0].stream.cancel()  # type: ignore[union-attr]
    assert shared.held.told == []
    if comes == "too late":
        shared.world.advance(2.1)
        assert shared.held.told == ["cancel"]
        assert shared.flights.kept == len(shared.flights) == 0
        return
    shared.held.data(b"two")
    if comes == "after the end":
        shared.held.end()
    again = shared.board()
    if comes == "before the end":
        shared.held.end()
    assert (again.text, again.ends, shared.asked) == (b"one two", [None], 1)
    assert [call.attempts for call in shared.calls] == [0, 1]
    shared.world.advance(2.1)
    assert shared.flights.kept == len(shared.flights) == 0


def test_who_leaves_before_its_patience_ends_does_not_come_back() -> None:
    """A user who pressed stop wants no more."""
    shared = Shared()
    shared.board(patience_s=5.0)
    shared.world.advance(2)
    shared.replies[0].stream.cancel()  # type: ignore[union-attr]
    assert shared.held.told == ["cancel"]


def test_a_crowd_is_served_in_several_turns_of_the_loop() -> None:
    """Each gets all of it in order, pieces and end; who left meanwhile gets no more."""

    async def tell() -> None:
        shared = Shared()
        sinks = [shared.board() for _ in range(3 * flight_module.AT_ONCE + 5)]
        shared.held.data(b"one ")
        had = [sink.text for sink in sinks]
        assert had.count(b"one ") == flight_module.AT_ONCE
        shared.held.data(b"two")
        shared.stream(100).cancel()  # type: ignore[attr-defined]
        shared.held.end()
        await until(lambda: shared.flights.kept == 0 and sinks[-1].ends, what="the last")
        left = sinks.pop(100)
        assert (left.text, left.ends) == (b"", [])
        assert {sink.text for sink in sinks} == {b"one two"}
        assert all(sink.ends == [None] for sink in sinks)

    asyncio.run(tell())


def test_a_whole_answer_goes_to_a_crowd_in_several_turns_of_the_loop() -> None:
    """The first pays, and who left meanwhile is told nothing."""

    async def tell() -> None:
        flights, asked = Flights(FakeWorld().env, 10), Promise[Reply]()
        calls = [make_call(b"{}") for _ in range(2 * flight_module.AT_ONCE)]
        outs = [flights.join(b"key", call, lambda _call: asked) for call in calls]
        asked.resolve(Reply(200, b"{}"))
        done = [out.done for out in outs if isinstance(out, Promise)]
        assert done.count(True) == flight_module.AT_ONCE
        left = outs.pop()
        assert isinstance(left, Promise)
        left.cancel()
        for out in outs:
            assert (await out).body == b"{}"
        assert isinstance(left.error, asyncio.CancelledError)

    asyncio.run(tell())


def test_a_failure_goes_to_a_crowd_in_several_turns_of_the_loop() -> None:
    """To each once, and the first pays."""

    async def tell() -> None:
        flights, asked = Flights(FakeWorld().env, 10), Promise[Reply]()
        calls = [make_call(b"{}") for _ in range(2 * flight_module.AT_ONCE)]

        def ask(call: Call) -> Promise[Reply]:
            call.attempts = 2
            return asked

        outs = [flights.join(b"key", call, ask) for call in calls]
        asked.reject(BackendFailure("gone"))
        done = [out.done for out in outs if isinstance(out, Promise)]
        assert done.count(True) == flight_module.AT_ONCE
        for out in outs:
            with pytest.raises(BackendFailure):
                await out
        assert [call.attempts for call in calls] == [2] + [0] * (len(calls) - 1)

    asyncio.run(tell())


def test_what_one_writes_on_a_whole_answer_no_other_reads() -> None:
    """Who is told first may write on it before the next is told."""
    flights, asked = Flights(FakeWorld().env, 10), Promise[Reply]()
    seen: list[tuple[bytes | None, bytes]] = []

    def told(reply: Reply | None, _error: BaseException | None) -> None:
        assert reply is not None
        seen.append((reply.body, reply.headers))
        reply.headers += b"x-mine: 1\r\n"
        reply.body = b"mine"

    for _ in range(3):
        out = flights.join(b"key", make_call(b"{}"), lambda _call: asked)
        assert isinstance(out, Promise)
        out.then(told)
    asked.resolve(Reply(200, b"all", headers=b"x-all: 1\r\n"))
    assert seen == [(b"all", b"x-all: 1\r\n")] * 3


def test_a_copy_is_the_call_but_for_its_own_course() -> None:
    """Every slot: who adds one to ``Call`` must say what a shared call has there."""
    call = make_call(b"{}")
    for n, name in enumerate(Call.__slots__):
        setattr(call, name, n + 1000)
    made = flight_module.copy_of(call)
    own = {n for n in Call.__slots__ if getattr(made, n) != getattr(call, n)}
    assert own == {
        "aside", "endings", "tried", "slot", "attempts", "upstream_at", "first_byte_at",
    }  # fmt: skip
    assert (made.aside, made.endings, made.tried, made.slot, made.attempts) == (
        None, None, None, -1, 0,
    )  # fmt: skip
