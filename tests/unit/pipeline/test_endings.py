"""Endings: who asked is told once, whatever ends the call or the reply."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.errors import BackendFailure, Cancelled, TpoError
from tpo_mp.pipeline.endings import GOES_ON, at_end, ending, tell_ended, when_over
from tpo_mp.types import Ending, Reply, Terminal, Usage


def test_all_who_asked_are_told_once() -> None:
    """In the order they asked; a second end is nobody's."""
    call, told = make_call(b"{}"), list[tuple[str, Ending]]()
    at_end(call, lambda end: told.append(("a", end)))
    at_end(call, lambda end: told.append(("b", end)))
    ended = ending(Terminal.DONE, Usage(3, 4), None, 1)
    tell_ended(call, ended)
    tell_ended(call, ended)
    assert told == [("a", ended), ("b", ended)]
    assert ended == (Terminal.DONE, 3, 4, None, 1, None)


def test_defect_of_one_does_not_hide_the_end_from_others() -> None:
    """The defect comes out afterwards."""
    call, told = make_call(b"{}"), list[Ending]()

    def broken(_ended: Ending) -> None:
        raise ValueError("broken")

    at_end(call, broken)
    at_end(call, told.append)
    with pytest.raises(ValueError, match="broken"):
        tell_ended(call, ending(Terminal.FAILED, None, None, 0))
    assert [end.prompt for end in told] == [-1]


def test_what_goes_on_without_its_client_is_accounted_for_at_its_own_end() -> None:
    """Those before the one that takes over hear of the client, those after it of the work."""
    call, told = make_call(b"{}"), list[tuple[str, Terminal]]()

    def hear(who: str, ended: Ending) -> None:
        told.append((who, ended.terminal))

    def take_over(ended: Ending) -> object:
        return GOES_ON if ended.terminal is Terminal.CANCELLED else None

    at_end(call, partial(hear, "outer"))
    at_end(call, take_over)
    at_end(call, partial(hear, "inner"))
    tell_ended(call, ending(Terminal.CANCELLED, None, None, 1))
    assert told == [("outer", Terminal.CANCELLED)]
    for _ in range(2):
        tell_ended(call, ending(Terminal.DONE, Usage(1, 2), None, 1))
        assert told == [("outer", Terminal.CANCELLED), ("inner", Terminal.DONE)]


def test_whole_body_is_over_at_once() -> None:
    """Nothing more can happen to it."""
    told: list[TpoError | None] = []
    when_over(Reply(200, b"x"), told.append)
    assert told == [None]


@pytest.mark.parametrize("error", [None, BackendFailure("cut")])
def test_stream_tells_all_at_its_end(error: TpoError | None) -> None:
    """Bytes and end reach the sink as they came; those who asked hear of it before."""
    held, sink, told = HeldStream(), Collected(), list[Any]()
    reply = Reply(200, None, stream=held)
    when_over(reply, lambda end: told.append(("a", end, list(sink.ends))))
    when_over(reply, lambda end: told.append(("b", end, list(sink.ends))))
    assert reply.stream is not None
    reply.stream.attach(sink)
    held.data(b"one")
    held.data(b"two")
    assert told == []
    held.end(error)
    assert (sink.chunks, sink.ends) == ([b"one", b"two"], [error])
    assert told == [("a", error, []), ("b", error, [])]
    reply.stream.cancel()
    assert len(told) == 2


def test_stream_given_up_is_over() -> None:
    """Also before anybody read it; what still comes reaches nobody."""
    held, sink, told = HeldStream(), Collected(), list[Any]()
    reply = Reply(200, None, stream=held)
    when_over(reply, told.append)
    assert reply.stream is not None
    reply.stream.attach(sink)
    reply.stream.cancel()
    reply.stream.cancel()
    assert [type(end) for end in told] == [Cancelled]
    assert sink.ends == []


def test_defect_at_the_end_of_a_stream_does_not_reach_its_client() -> None:
    """It reaches the log of the loop; the others are told, and the sink has its end."""
    held, sink, told, defects = HeldStream(), Collected(), list[Any](), list[Any]()

    def broken(_error: TpoError | None) -> None:
        raise ValueError("broken")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: defects.append(context["exception"]))
        reply = Reply(200, None, stream=held)
        when_over(reply, broken)
        when_over(reply, told.append)
        assert reply.stream is not None
        reply.stream.attach(sink)
        held.end(None)

    asyncio.run(main())
    assert (told, sink.ends) == ([None], [None])
    assert [str(defect) for defect in defects] == ["broken"]
