"""What is left of an answer that its engine breaks off."""

from __future__ import annotations

import orjson
import pytest
from msgspec.structs import replace

from tests.support.dialects import body
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
from tpo_mp.simulator.breaking_off import broken_off, said_of
from tpo_mp.simulator.events import events_of
from tpo_mp.simulator.rendering import CachedTokens, RenderedFrames
from tpo_mp.simulator.source import SimulatedStream
from tpo_mp.simulator.timing import Pace
from tpo_mp.types import Dialect

THOUGHT = ThinkingBlock("let me see", "signed")
CALL = ToolUseBlock("call_1", "look", '{"where": "here"}')


def reply(*blocks: Block, choices: int = 1) -> ModelReply:
    """A whole one of so many choices."""
    return ModelReply(
        id="chatcmpl-1", model="m", source="openai_chat",
        choices=(ReplyChoice(blocks, "stop_sequence", "x"),) * choices,
        usage=TokenUsage(7, 30, 0, 0, 3),
    )  # fmt: skip


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
    events = events_of(reply(THOUGHT, TextBlock("one")), {}, ping=False)
    rest = [event for event, _ in broken_off(events, left, left)]
    assert any(isinstance(event, SignatureDelta) for event in rest) == (left == 99)
    assert rest[-3:-1] == [ReplyStop("abort"), ReplyUsage(TokenUsage(7, left, 0, 0, min(left, 3)))]


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
