"""Taps: what a stage may see of a reply, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.dialects import REPLIES
from tests.support.fake_env import make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.dialects import openai_chat
from tpo_mp.errors import BackendFailure, Cancelled
from tpo_mp.pipeline.delivery import UnexpectedError
from tpo_mp.pipeline.taps import LIMIT_BYTES, TAIL_BYTES, Tapped, tap
from tpo_mp.types import Call, Dialect, Reply, Tap

KINDS = list(Tap)
WORDS = ["one ", "two ", "зeд"]
EVENTS = [
    openai_chat.event(openai_chat.chunk("c", 1, "m", {"content": word})) for word in WORDS
] + [openai_chat.event(openai_chat.chunk("c", 1, "m", {}, "stop")), openai_chat.DONE]
WHOLE = b"".join(EVENTS)


class Story:
    """A streamed reply with taps, its source and its reader."""

    def __init__(self, *kinds: Tap, dialect: Dialect = Dialect.OPENAI_CHAT, **options: Any) -> None:
        self.held, self.sink = HeldStream(), Collected()
        self.call: Call = make_call(b"{}", stream=True, dialect=dialect)
        self.reply = Reply(200, None, stream=self.held)
        self.seen: list[Tapped] = []
        for kind in kinds:
            tap(self.call, self.reply, kind, self.seen.append, **options)

    def play(self, *chunks: bytes, error: Any = None) -> Tapped:
        """Let the chunks pass and the stream end; what the last tap saw."""
        assert self.reply.stream is not None
        self.reply.stream.attach(self.sink)
        for chunk in chunks:
            self.held.data(chunk)
        self.held.end(error)
        return self.seen[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_stream_passes_untouched(kind: Tap, step: int) -> None:
    """Every chunk as it came, one end; the tap is told once."""
    story = Story(kind)
    chunks = [WHOLE[at : at + step] for at in range(0, len(WHOLE), step)]
    seen = story.play(*chunks)
    assert story.sink.chunks == chunks
    assert story.sink.ends == [None]
    assert story.seen == [seen]
    assert seen.error is None
    assert not seen.cut


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_each_tap_sees_its_part(step: int) -> None:
    """Raw bytes, frames, words: in one pass."""
    story = Story(*KINDS)
    story.play(*(WHOLE[at : at + step] for at in range(0, len(WHOLE), step)))
    raw, frames, text = story.seen
    assert raw.body == WHOLE
    assert frames.frames == len(EVENTS)
    assert b"one " in frames.first
    assert frames.last == b"[DONE]"
    assert frames.tail == WHOLE[-TAIL_BYTES:]
    assert text.text == "".join(WORDS)
    assert (raw.text, raw.frames, text.body, text.frames) == ("", 0, None, 0)


def test_end_of_a_long_stream_is_kept_and_no_more() -> None:
    """A missing terminator is seen in it."""
    seen = Story(Tap.FRAMES).play(*EVENTS[:3] * 2000)
    assert seen.frames == 6000
    assert len(seen.tail) == TAIL_BYTES
    assert seen.last != b"[DONE]"


def test_copies_are_bounded() -> None:
    """Over the limit there is no body, and the text is what came before; the stream goes on."""
    story = Story(Tap.BYTES, Tap.TEXT, limit_bytes=9)
    story.play(*EVENTS)
    raw, text = story.seen
    assert story.sink.text == WHOLE
    assert (raw.body, raw.cut) == (None, True)
    assert (text.text, text.cut) == ("one two ", True)  # the next letter has two bytes
    exact = Story(Tap.BYTES, limit_bytes=len(WHOLE)).play(*EVENTS)
    assert (exact.body, exact.cut) == (WHOLE, False)


def test_a_text_that_is_full_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the limit costs no decoding."""
    fed: list[bytes] = []

    class Counting(openai_chat.StreamDecoder):
        def feed(self, chunk: bytes) -> list[Any]:
            fed.append(chunk)
            return list(super().feed(chunk))

    monkeypatch.setattr(openai_chat, "StreamDecoder", Counting)
    seen = Story(Tap.TEXT, limit_bytes=5).play(*EVENTS[:3], *EVENTS[2:3] * 500)
    assert (seen.cut, seen.text) == (True, "one t")
    assert len(fed) < 10


@pytest.mark.parametrize("kind", KINDS)
def test_failure_and_leaving_are_told_from_the_end(kind: Tap) -> None:
    """With the error; a cancelled stream is told once, however often it is cancelled."""
    error = BackendFailure("cut")
    failed = Story(kind)
    assert failed.play(EVENTS[0], error=error).error is error
    assert failed.sink.ends == [error]
    left = Story(kind)
    assert left.reply.stream is not None
    left.reply.stream.attach(left.sink)
    left.held.data(EVENTS[0])
    left.reply.stream.cancel()
    left.reply.stream.cancel()
    assert len(left.seen) == 1
    assert isinstance(left.seen[0].error, Cancelled)
    assert left.held.told == ["cancel", "cancel"]
    assert left.sink.ends == []


def test_pace_reaches_the_source() -> None:
    """Through any number of taps."""
    story = Story(*KINDS)
    assert story.reply.stream is not None
    story.reply.stream.attach(story.sink)
    story.reply.stream.pause()
    story.reply.stream.resume()
    assert story.held.told == ["pause", "resume"]


def test_whole_reply_is_seen_at_once() -> None:
    """One frame; its words; its bytes, if there are not too many."""
    body = openai_chat.completion("c", 1, "m", "all of it", openai_chat.Usage(1, 1))
    call = make_call(b"{}")
    seen: list[Tapped] = []
    for kind in KINDS:
        reply = Reply(200, body)
        tap(call, reply, kind, seen.append)
        assert reply.body is body
        assert reply.stream is None
    raw, frames, text = seen
    assert raw.body == body
    assert (frames.frames, frames.first, frames.tail) == (1, body, body[-TAIL_BYTES:])
    assert text.text == "all of it"
    tap(call, Reply(200, b"x" * (LIMIT_BYTES + 1)), Tap.BYTES, seen.append)
    assert (seen[-1].body, seen[-1].cut) == (None, True)


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_words_are_read_in_the_calls_own_dialect(name: str) -> None:
    """Whatever the client speaks."""
    seen: list[Tapped] = []
    tap(
        make_call(b"{}", dialect=Dialect(name)),
        Reply(200, json.dumps(REPLIES[name]).encode()),
        Tap.TEXT,
        seen.append,
    )
    assert seen[0].text == "Hi there"
    assert not seen[0].cut


def test_what_is_no_text_has_none() -> None:
    """Embeddings, and bodies that are not what they say: no words, no error."""
    seen: list[Tapped] = []
    vectors = make_call(b"{}", dialect=Dialect.OPENAI_EMBEDDINGS)
    tap(vectors, Reply(200, b'{"data":[]}'), Tap.TEXT, seen.append)
    tap(make_call(b"{}"), Reply(200, b"[1"), Tap.TEXT, seen.append)
    assert [s.text for s in seen] == ["", ""]
    assert [s.cut for s in seen] == [False, True]


def test_tap_that_cannot_follow_lets_the_stream_pass() -> None:
    """It keeps what it had; the others go on."""
    broken = b"data: {nonsense\n\n"
    story = Story(Tap.TEXT, Tap.FRAMES)
    story.play(EVENTS[0], broken, EVENTS[1])
    text, frames = story.seen
    assert story.sink.text == EVENTS[0] + broken + EVENTS[1]
    assert (text.text, text.cut) == (WORDS[0], True)
    assert frames.frames == 3


def test_defect_in_a_tap_fails_its_call_and_spares_the_other_taps() -> None:
    """As one in ``after`` does; the cause is for the log."""
    story = Story(Tap.BYTES)
    cause = KeyError("here")

    def broken(_seen: Tapped) -> None:
        raise cause

    tap(story.call, story.reply, Tap.FRAMES, broken)
    tap(story.call, story.reply, Tap.TEXT, story.seen.append)
    story.play(*EVENTS)
    (error,) = story.sink.ends
    assert isinstance(error, UnexpectedError)
    assert error.__cause__ is cause
    assert len(story.seen) == 2


def test_defect_in_a_tap_of_a_stream_nobody_wants_is_told_to_the_loop() -> None:
    """Nobody else is left to hear of it."""
    told: list[Any] = []

    def broken(_seen: Tapped) -> None:
        raise KeyError("here")

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, about: told.append(about))
        story = Story()
        tap(story.call, story.reply, Tap.BYTES, broken)
        assert story.reply.stream is not None
        story.reply.stream.cancel()

    asyncio.run(leave())
    assert isinstance(told[0]["exception"], KeyError)
