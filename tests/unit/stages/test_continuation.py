"""Streams that break are gone on with: at any event, in each dialect, by whom, and how often."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, HeldStream
from tests.support.raw import chat
from tpo_mp.dialects.canonical import (
    BlockStart,
    BlockStop,
    ReplyEnd,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    StreamEvent,
    TextBlock,
    TextDelta,
    TokenUsage,
)
from tpo_mp.dialects.continued import continued
from tpo_mp.dialects.translate import aggregate
from tpo_mp.errors import BackendFailure, ConnectionCut, DeadlineExceeded, InvalidRequest, TpoError
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.promise import Promise
from tpo_mp.stages.continuation import FEATURE, Config
from tpo_mp.types import Call, Dialect, Reply, Usage

WORDS = ["one ", "two", " three", "\n", "four ", "five"]
CUT = ConnectionCut("cut", reason="cut_off")


@dataclass
class Target:
    """A backend that answers with a stream the test feeds."""

    name: str
    shut: bool = False
    fails: TpoError | None = None
    asked: list[Call] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    streams: list[HeldStream] = field(default_factory=list)

    def blocked(self, call: Call) -> bool:
        """Whether another is better."""
        return self.shut

    def infer(self, call: Call) -> Awaitable[Reply]:
        """One try."""
        call.attempts += 1
        call.backend = self.name
        self.asked.append(call)
        said: Promise[Reply] = Promise()
        if self.fails is not None:
            said.reject(self.fails)
        else:
            self.streams.append(HeldStream())
            self.replies.append(Reply(200, None, stream=self.streams[-1]))
            said.resolve(self.replies[-1])
        return said

    @property
    def stream(self) -> HeldStream:
        """Of its last reply."""
        return self.streams[-1]


class Scene:
    """One streamed call over backends a, b and c, which a route would ask in this order."""

    def __init__(self, dialect: Dialect = Dialect.OPENAI_CHAT, **options: Any) -> None:
        self.world = FakeWorld()
        self.targets = {name: Target(name) for name in "abc"}
        known = {"backends": dict.fromkeys("abc", "prefill"), "budget_floor": 100}
        self.stage = FEATURE.build(msgspec.convert(known | options, Config), self.world.env)
        self.stage.meet_targets(self.targets)
        body: dict[str, Any] = chat("hi", "m", stream=True)
        if dialect is Dialect.OPENAI_COMPLETIONS:
            body = {"model": "m", "prompt": "hi", "stream": True}
        if dialect is not Dialect.ANTHROPIC_MESSAGES:
            body["stream_options"] = {"include_usage": True}
        self.call = make_call(
            json.dumps(body).encode(), model="m", stream=True, dialect=dialect,
            choices=tuple("abc"), usage_wanted=True,
        )  # fmt: skip
        self.codec = codec(dialect)
        self.sink = Collected()

    def begin(self) -> Scene:
        """Let the first backend answer."""
        answered = self.stage(self.call, self.targets["a"].infer)
        assert isinstance(answered, Promise)
        assert answered.value is not None
        self.reply = answered.value
        assert self.reply.stream is not None
        self.reply.stream.attach(self.sink)
        return self

    def events(self, words: list[str], reply_id: str = "x", usage: int = 0) -> list[bytes]:
        """A stream of these words, an event a piece."""
        encoder = self.codec.StreamEncoder(self.codec.request_to_canonical(self.call.body))
        told: list[StreamEvent] = [ReplyStart(reply_id, "m", 5), BlockStart(0, TextBlock(""))]
        told += [TextDelta(0, word) for word in words]
        told += [BlockStop(0), ReplyStop("end")]
        if usage:
            told.append(ReplyUsage(TokenUsage(prompt=usage, completion=len(words))))
        told.append(ReplyEnd())
        return [chunk for event in told if (chunk := encoder.encode(event))]

    def whole(self) -> Any:
        """What the client read, put together by its dialect."""
        decoder = self.codec.StreamDecoder()
        return aggregate([*decoder.feed(self.sink.text), *decoder.close()])

    def asked(self) -> dict[str, int]:
        """How often each was asked."""
        return {name: len(target.asked) for name, target in self.targets.items()}


@pytest.mark.parametrize("told", [False, True], ids=["cut", "told"])
@pytest.mark.parametrize("cut", range(1, len(WORDS)))
@pytest.mark.parametrize(
    "dialect", [Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.ANTHROPIC_MESSAGES]
)
def test_cut_anywhere_it_is_one_reply(dialect: Dialect, cut: int, told: bool) -> None:
    """No word twice, none lost, in one message with one end; the counts add up."""
    scene = Scene(dialect).begin()
    before = 0
    for chunk in scene.events(WORDS):
        before += sum(json.dumps(word).encode() in chunk for word in WORDS)
        if before > cut:
            break
        scene.targets["a"].stream.data(chunk)
    error: TpoError = CUT
    if told:
        error = BackendFailure("no more", reason="upstream_error_event", body=b"")
        scene.targets["a"].stream.data(scene.codec.error_event(BackendFailure("no more")))
    scene.targets["a"].stream.end(error)
    (asked,) = scene.targets["b"].asked
    begun = "".join(WORDS[:cut])
    value = json.loads(asked.body)
    said = value["prompt"] if "prompt" in value else value["messages"][-1]["content"]
    assert said.removeprefix("hi") == begun.rstrip()
    seam = begun[len(begun.rstrip()) :]
    for chunk in scene.events([seam + WORDS[cut], *WORDS[cut + 1 :]], "y", usage=30):
        scene.targets["b"].stream.data(chunk)
    scene.targets["b"].replies[-1].usage = Usage(30, len(WORDS) - cut)
    scene.targets["b"].stream.end()
    reply = scene.whole()
    assert [block.text for block in reply.choices[0].blocks] == ["".join(WORDS)]
    assert reply.id.endswith("x")
    assert (reply.usage.prompt, reply.usage.completion) == (30 - cut, len(WORDS))
    assert scene.reply.usage is not None
    assert (scene.reply.usage.prompt, scene.reply.usage.completion) == (30 - cut, len(WORDS))
    assert scene.call.aside is not None
    assert scene.call.aside.tokens == 30
    assert (scene.call.backend, scene.call.attempts) == ("b", 2)
    assert scene.sink.ends == [None]


def broken(scene: Scene, error: TpoError = CUT) -> Scene:
    """Two words came, then it broke."""
    scene.begin()
    for chunk in scene.events(WORDS)[:3]:
        scene.targets["a"].stream.data(chunk)
    scene.targets["a"].stream.end(error)
    return scene


def test_others_first_then_whoever_is_open_then_the_same() -> None:
    """And each failure asks the next, up to ``most``."""
    scene = Scene(most=3)
    scene.targets["b"].shut = True
    for target in scene.targets.values():
        target.fails = None
    scene.targets["c"].fails = BackendFailure("down")
    scene.targets["b"].fails = BackendFailure("down")
    broken(scene)
    assert scene.asked() == {"a": 2, "b": 1, "c": 1}
    assert scene.targets["c"].asked[0].attempts == 2  # before b
    assert scene.sink.ends == []
    scene.targets["a"].stream.end(CUT)
    assert scene.sink.ends == [CUT]
    assert scene.asked() == {"a": 2, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, DeadlineExceeded("late")),
        ({}, InvalidRequest("no")),
        ({"backends": {"z": "vllm"}}, CUT),
        ({"budget_floor": 0}, CUT),
    ],
    ids=["deadline", "client", "nobody", "budget"],
)
def test_ends_as_it_would_have(options: dict[str, Any], error: TpoError) -> None:
    """Nobody else is asked."""
    scene = broken(Scene(**options), error)
    assert scene.asked() == {"a": 1, "b": 0, "c": 0}
    assert scene.sink.ends == [error]


def test_after_its_deadline_nobody_is_asked() -> None:
    """The client has no time left."""
    scene = Scene()
    scene.call.deadline = scene.world.now
    broken(scene)
    assert scene.asked()["b"] == 0
    assert scene.sink.ends == [CUT]


def test_pause_and_leaving_reach_whoever_is_asked() -> None:
    """A slow client pauses the rest too; one that leaves ends it."""
    scene = Scene().begin()
    scene.targets["a"].stream.data(scene.events(WORDS)[0])
    scene.targets["a"].stream.data(scene.events(WORDS)[1])
    assert scene.reply.stream is not None
    scene.reply.stream.pause()
    scene.targets["a"].stream.end(CUT)
    assert scene.targets["b"].stream.told == ["pause"]
    scene.reply.stream.resume()
    scene.reply.stream.cancel()
    assert scene.targets["b"].stream.told == ["pause", "resume", "cancel"]
    assert scene.sink.ends == []


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2}, {"best_of": 3}, {"logprobs": True}, {"guided_json": {}}, {"echo": True},
        {"response_format": {"type": "json_schema"}}, {"tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled"}}, {"messages": []}, {"messages": "hi"},
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_request_can_continue(more: dict[str, Any]) -> None:
    """It is said so, not guessed."""
    body = json.dumps(BODY | more).encode()
    assert continued(Dialect.OPENAI_CHAT, body, "said", 1, "vllm") is None


def test_manners() -> None:
    """Each is told in its own words, and of fewer tokens."""
    body = json.dumps(BODY).encode()

    def said(dialect: Dialect, manner: Any, body: bytes = body) -> Any:
        made = continued(dialect, body, "said", 4, manner)
        return None if made is None else json.loads(made)

    chats = Dialect.OPENAI_CHAT
    turn = {"role": "assistant", "content": "said"}
    assert said(chats, "prefill") == BODY | {
        "messages": [*BODY["messages"], turn], "max_tokens": 6,  # type: ignore[misc]
    }  # fmt: skip
    assert said(chats, "prefix")["messages"][-1] == turn | {"prefix": True}
    assert said(chats, "vllm")["add_generation_prompt"] is False
    assert said(Dialect.ANTHROPIC_MESSAGES, "vllm") is None
    assert continued(chats, b"[]", "said", 1, "prefill") is None
    assert continued(chats, b"{", "said", 1, "prefill") is None
    begun = BODY | {"messages": [{"role": "assistant", "content": "I "}]}
    both = said(chats, "prefill", json.dumps(begun).encode())
    assert both["messages"] == [{"role": "assistant", "content": "I said"}]
