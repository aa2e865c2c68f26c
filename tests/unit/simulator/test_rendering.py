"""Frames of a stream: made as they are taken, and with nothing held that only the first needs."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

import orjson
import pytest

from tests.support.dialects import body
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.canonical import ModelReply, ModelRequest, ReplyChoice, TextBlock, TokenUsage
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator.rendering import CachedTokens, RenderedFrames, told
from tpo_mp.types import Dialect

REPLY = ModelReply(
    id="chatcmpl-1",
    model="m",
    choices=(ReplyChoice((TextBlock("one two three"),), "end"),),
    usage=TokenUsage(7, 3),
)


def request(*, usage_wanted: bool) -> ModelRequest:
    """A chat that is streamed."""
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    if usage_wanted:
        asked["stream_options"] = {"include_usage": True}
    return openai_chat.request_to_canonical(body(asked))


def frames(*, usage_wanted: bool, cached: CachedTokens | None = None) -> RenderedFrames:
    """The frames of the reply in chat."""
    spoken, dialect = codec(Dialect.OPENAI_CHAT), Dialect.OPENAI_CHAT
    asked = request(usage_wanted=usage_wanted)
    return RenderedFrames(spoken, dialect, asked, REPLY, None, cached or CachedTokens())


@pytest.mark.parametrize("wanted", [False, True])
def test_usage_comes_when_it_was_wanted(wanted: bool) -> None:
    """In a chunk of its own before the end; otherwise nobody hears of it."""
    said = b"".join(data for data, _ in frames(usage_wanted=wanted)).split(b"\n\n")[:-1]
    assert said[-1] == b"data: [DONE]"
    events = [orjson.loads(event.removeprefix(b"data: ")) for event in said[:-1]]
    told_usage = [event["usage"]["total_tokens"] for event in events if event.get("usage")]
    assert told_usage == ([10] if wanted else [])
    words = [c["delta"].get("content", "") for e in events for c in e["choices"]]
    assert "".join(words) == "one two three"


def test_cached_tokens_may_be_told_until_the_first_frame() -> None:
    """Whoever runs the model knows them only when it begins."""
    cached = CachedTokens()
    waiting = frames(usage_wanted=True, cached=cached)
    cached.tokens = 5
    said = b"".join(data for data, _ in waiting)
    assert b'"cached_tokens":5' in said
    assert told(REPLY, CachedTokens()) is REPLY


def test_a_stream_lets_go_of_its_request() -> None:
    """After the first frame nothing holds the request: thousands of streams are open at a time."""
    held = request(usage_wanted=False)
    spoken = codec(Dialect.OPENAI_CHAT)
    stream = RenderedFrames(spoken, Dialect.OPENAI_CHAT, held, REPLY, None, CachedTokens())
    assert any(held is found for found in _reachable(stream))
    next(stream)
    assert not any(held is found for found in _reachable(stream))


def _reachable(start: object) -> list[object]:
    """What an object holds, directly or not, but for modules and types."""
    found, queue = dict[int, object](), [start]
    while queue:
        thing = queue.pop()
        if id(thing) in found or isinstance(thing, type | ModuleType | FunctionType):
            continue
        found[id(thing)] = thing
        queue += gc.get_referents(thing)
    return list(found.values())
