"""Native requests over one WebSocket, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_gateway import FakeGateway, fake_feeds
from tests.support.fake_net import HeldStream
from tpo_mp.dialects import openai_chat as chat
from tpo_mp.errors import BackendFailure
from tpo_mp.http.head import Head
from tpo_mp.pipeline.conversation import Conversation
from tpo_mp.types import Reply, Terminal


class Wire:
    """Stands for a socket."""

    def __init__(self) -> None:
        self.head = Head()
        self.peer = "127.0.0.1"
        self.heartbeat_s = 15.0
        self.callbacks: Any = None
        self.sent: list[dict[str, Any]] = []
        self.closed: int | None = None

    def send(self, text: bytes) -> None:
        """Record a message."""
        assert self.closed is None
        self.sent.append(json.loads(text))

    def close(self, code: int, why: str = "") -> None:
        """Record the close."""
        self.closed = self.closed or code

    @property
    def closing(self) -> bool:
        """Whether it was closed."""
        return self.closed is not None


class Scene:
    """A conversation on a gateway whose upstreams the test feeds."""

    def __init__(self, *, most: int = 4, settings: dict[str, Any] | None = None) -> None:
        self.gateway = FakeGateway(feeds=fake_feeds(**(settings or {})))
        made = self.gateway.new_call
        n = iter(range(1, 1000))

        def new_call(*args: Any, **options: Any) -> Any:
            call = made(*args, **options)
            call.id = f"call-{next(n)}"
            return call

        self.gateway.new_call = new_call  # type: ignore[method-assign]
        self.wire = Wire()
        self.talk = Conversation(self.gateway, self.wire, {"max_tokens": 7}, most=most)  # type: ignore[arg-type]

    def say(self, **message: Any) -> None:
        """The client says something."""
        self.talk.message(json.dumps(message))

    def begin(self, at: int = -1) -> HeldStream:
        """A request's first byte arrives."""
        stream = HeldStream()
        self.gateway.submitted[at].done(Reply(200, None, stream=stream), None)
        return stream

    @property
    def kinds(self) -> list[str]:
        """The types of what was sent."""
        return [message["type"] for message in self.wire.sent]


def piece(text: str) -> bytes:
    """One chunk of a chat stream."""
    return chat.event(chat.chunk("c", 1, "m", {"content": text}))


def test_requests_are_answered_side_by_side() -> None:
    """Each under its id and the client's own name for it."""
    scene = Scene()
    scene.say(prompt="a", client_request_id="A")
    scene.say(prompt="b", session_id="s")
    one, two = scene.begin(0), scene.begin(1)
    two.data(piece("2"))
    one.data(piece("1"))
    two.end()
    one.end()
    assert scene.kinds == ["ack", "ack", "start", "start", "token", "token", "done", "done"]
    ids = [m["request_id"] for m in scene.wire.sent]
    assert ids == [f"call-{n}" for n in (1, 2, 1, 2, 2, 1, 2, 1)]
    names = [m.get("client_request_id") for m in scene.wire.sent]
    assert names == ["A", None, "A", None, None, "A", None, "A"]
    assert [m["result"] for m in scene.wire.sent[-2:]] == ["2", "1"]
    assert scene.gateway.submitted[0].call.client_request_id == "A"


def test_failure_is_an_error_of_its_request() -> None:
    """With code, what to wait for, and the words that older clients look for."""
    scene = Scene()
    scene.say(prompt="a")
    scene.gateway.submitted[0].done(None, BackendFailure("broke", retry_after_s=2))
    error = scene.wire.sent[-1]
    assert (error["type"], error["request_id"], error["message"]) == ("error", "call-1", "broke")
    assert error["error"] == error["code"]
    assert (error["status"], error["result"], error["retry_after_ms"]) == ("failed", None, 2000)
    scene.say(prompt="b")
    assert scene.kinds[-1] == "ack"


def test_requests_at_once_are_bounded() -> None:
    """One more is refused until one has ended."""
    scene = Scene(most=2)
    for _ in range(3):
        scene.say(prompt="a")
    assert scene.kinds == ["ack", "ack", "error"]
    scene.begin(0).end()
    scene.say(prompt="a")
    assert scene.kinds[-1] == "ack"


def test_client_that_leaves_cancels_all() -> None:
    """And nothing is sent any more."""
    scene = Scene()
    scene.say(prompt="a")
    scene.say(prompt="b")
    stream = scene.begin(0)
    n = len(scene.wire.sent)
    scene.talk.left()
    assert stream.told == ["cancel"]
    assert scene.gateway.ends == [Terminal.CANCELLED] * 2
    assert len(scene.wire.sent) == n


def test_cancelled_request_is_told() -> None:
    """By the connection that asked for it only."""
    scene, other = Scene(), Scene()
    scene.say(prompt="a")
    other.say(type="cancel", request_id="call-1")
    assert other.wire.sent[-1]["code"] == "request_not_found"
    scene.say(type="cancel", request_id="call-1")
    assert (scene.kinds, scene.wire.sent[-1]["code"]) == (["ack", "error"], "cancelled")
    assert scene.gateway.ends == [Terminal.CANCELLED]


@pytest.mark.parametrize("per_min", [1, 3])
def test_rate_closes(per_min: int) -> None:
    """With the time to wait; 0 is no rate."""
    scene = Scene(most=64, settings={"messages_per_min": per_min})
    for _ in range(per_min + 2):
        scene.say(prompt="a")
    assert scene.kinds == ["ack"] * per_min + ["error"]
    assert scene.wire.sent[-1]["code"] == "RATE_LIMITED"
    assert 0 < scene.wire.sent[-1]["retry_after_ms"] <= 60_000 / per_min
    assert scene.wire.closed == 4029
    free = Scene(most=64, settings={"messages_per_min": 0})
    for _ in range(64):
        free.say(prompt="a")
    assert set(free.kinds) == {"ack"}


def test_slow_client_pauses_its_upstreams() -> None:
    """And they go on with it, from where they were."""
    scene = Scene()
    scene.say(prompt="a")
    stream = scene.begin()
    scene.talk.block()
    assert stream.told == ["pause"]
    stream.data(piece("late"))
    assert scene.kinds == ["ack", "start"]
    scene.talk.unblock()
    assert stream.told == ["pause", "resume"]
    assert scene.kinds == ["ack", "start", "token"]


def test_drain_waits_for_what_runs() -> None:
    """New requests are refused; the last end closes."""
    scene, idle = Scene(), Scene()
    idle.talk.drain()
    assert idle.wire.closed == 1001
    scene.say(prompt="a")
    scene.talk.drain()
    scene.say(prompt="b")
    assert (scene.kinds[-1], scene.wire.sent[-1]["code"]) == ("error", "draining")
    assert scene.wire.closed is None
    scene.begin().end()
    assert scene.kinds[-1] == "done"
    assert scene.wire.closed == 1001
