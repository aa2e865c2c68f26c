"""What is left of an answer that its engine breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from tests.support.dialects import body
from tests.support.fake_codec import finished
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.canonical import (
    Block,
    ModelReply,
    ReplyChoice,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.promise import run
from tpo_mp.simulator.breaking_off import STEP_EVENTS, broken_off, in_turns
from tpo_mp.simulator.breaking_off import said_of as steps_of
from tpo_mp.simulator.events import Paced, Rest, events_of
from tpo_mp.simulator.rendering import CachedTokens, RenderedFrames
from tpo_mp.simulator.source import SimulatedStream
from tpo_mp.simulator.timing import Pace
from tpo_mp.types import Dialect

Said = tuple[Any, BaseException | None]
THOUGHT = ThinkingBlock("let me see", "signed")
CALL = ToolUseBlock("call_1", "look", '{"where": "here"}')


def reply(*blocks: Block, choices: int = 1) -> ModelReply:
    """A whole one of so many choices."""
    return ModelReply(
        id="chatcmpl-1", model="m", source="openai_chat",
        choices=(ReplyChoice(blocks, "stop_sequence", "x"),) * choices,
        usage=TokenUsage(7, 30, 0, 0, 3),
    )  # fmt: skip


def said_of(whole: ModelReply, shown: int, spent: int) -> ModelReply:
    """What is left of a reply, in however many steps."""
    return finished(steps_of(whole, shown, spent))


def words(cut: ModelReply) -> list[str]:
    """The text of each choice."""
    return ["".join(getattr(b, "text", "") for b in c.blocks) for c in cut.choices]


@pytest.mark.parametrize(("shown", "said"), [(0, ""), (1, "one"), (2, "one two"), (9, "one two")])
def test_a_whole_answer_ends_behind_what_was_said(shown: int, said: str) -> None:
    """It says why, names no stop sequence, and counts what was computed."""
    cut = said_of(reply(TextBlock("one two")), shown, 5)
    assert words(cut) == [said]
    assert (cut.choices[0].stop, cut.choices[0].stop_sequence) == ("abort", None)
    assert cut.usage == TokenUsage(7, 5, 0, 0, 3)
    assert (cut.id, cut.source) == ("chatcmpl-1", "openai_chat")
    assert said_of(reply(TextBlock("one two")), 0, 2).usage == TokenUsage(7, 2, 0, 0, 2)


def test_choices_share_what_was_said() -> None:
    """They take turns, as in a stream."""
    assert words(said_of(reply(TextBlock("one two"), choices=2), 3, 3)) == ["one two", "one"]


def test_a_call_that_is_not_whole_is_none() -> None:
    """Arguments that are no JSON would break clients; before it, words stay."""
    blocks = (TextBlock("first"), CALL)
    assert said_of(reply(*blocks), 3, 3).choices[0].blocks == (TextBlock("first"),)
    assert said_of(reply(*blocks), 99, 99).choices[0].blocks == blocks
    assert said_of(reply(CALL), 1, 1).choices[0].blocks == (TextBlock(""),)


@pytest.mark.parametrize("left", [1, 99])
def test_thoughts_are_signed_only_when_they_are_whole(left: int) -> None:
    """And nothing is begun behind the last token."""
    left_over = Rest()
    events = events_of(reply(THOUGHT, TextBlock("one")), {}, ping=False, rest=left_over)
    rest = [event for event, _ in broken_off(events, left_over, left, left)]
    assert any(isinstance(event, SignatureDelta) for event in rest) == (left == 99)
    assert rest[-3:-1] == [ReplyStop("abort"), ReplyUsage(TokenUsage(7, left, 0, 0, min(left, 3)))]


@pytest.mark.parametrize("choices", [1, 2])
def test_a_long_answer_holds_nobody_up(choices: int) -> None:
    """What was said is gone through in steps, what is not said any more not at all."""
    long = reply(*[TextBlock(" ".join(["word"] * 4_000))] * 2, choices=choices)
    shown = 10 * STEP_EVENTS
    assert len(list(steps_of(long, shown, shown))) in (10, 11)
    assert sum(len(text.split()) for text in words(said_of(long, shown, shown))) == shown
    rest = Rest()
    events = events_of(long, {}, ping=False, rest=rest)
    for _ in range(3):
        next(events)
    seen = 0

    def counted() -> Iterator[Paced]:
        nonlocal seen
        for event in events:
            seen += 1
            yield event

    assert len(list(broken_off(counted(), rest, 0, 1))) <= 6
    assert seen <= 6 * choices


def test_others_have_their_turn_between_the_steps() -> None:
    """A short one is made at once; a long one can be given up."""
    short, long = reply(TextBlock("one two")), reply(TextBlock(" ".join(["word"] * 2_000)))

    async def heard(whole: ModelReply, turns: int, *, left: bool) -> list[Said]:
        told: list[Said] = []
        cancel = run(in_turns(steps_of(whole, 1_000, 9)), lambda *said: told.append(said))
        assert bool(told) == (cancel is None)
        if left and cancel is not None:
            cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        return told.copy()

    assert len(asyncio.run(heard(short, 0, left=False))) == 1
    assert asyncio.run(heard(long, 2, left=False)) == []
    ((cut, error),) = asyncio.run(heard(long, 20, left=False))
    assert (len(words(cut)[0].split()), error) == (1_000, None)
    ((cut, error),) = asyncio.run(heard(long, 20, left=True))
    assert (cut, type(error)) == (None, asyncio.CancelledError)


class Ear:
    """A sink, and a pace that is never through."""

    def __init__(self) -> None:
        self.heard = b""
        self.stopped = self.ended = 0

    def begin(self, release: object) -> None:
        """Release nothing."""

    def stop(self) -> None:
        """Count it."""
        self.stopped += 1

    def data(self, chunk: bytes) -> None:
        """Take bytes."""
        self.heard += chunk

    def end(self, error: object) -> None:
        """Count it."""
        assert error is None
        self.ended += 1


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("released", [0, 1, 2])
def test_a_stream_ends_behind_what_was_released(released: int, paused: bool) -> None:
    """Also what its reader did not take yet."""
    asked = openai_chat.request_to_canonical(
        body({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}],
              "stream_options": {"include_usage": True}})
    )  # fmt: skip
    said = replace(reply(TextBlock("one two three")), usage=TokenUsage(7, 3))
    frames = RenderedFrames(
        codec(Dialect.OPENAI_CHAT), Dialect.OPENAI_CHAT, asked, said, None, CachedTokens()
    )
    ear, pace = Ear(), Ear()
    heard_of = list[int]()
    made: Pace = pace
    stream = SimulatedStream(frames, made, None, lambda _s, _t: bytes)
    stream.start(lambda: heard_of.append(1))
    if released:
        stream.release(released)
        stream.attach(ear)
    if paused:
        stream.pause()
    stream.break_off(lambda left: frames.break_off(left, released))
    assert heard_of == [1]
    if not released:
        stream.attach(ear)
    stream.resume()
    events = [orjson.loads(e[6:]) for e in ear.heard.split(b"\n\n")[:-2]]
    text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
    assert text == "".join(["one", " two"][:released])
    assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == "abort"
    assert events[-1]["usage"]["completion_tokens"] == released
    assert ear.heard.endswith(b"data: [DONE]\n\n")
    assert (ear.ended, pace.stopped) == (1, 1)
