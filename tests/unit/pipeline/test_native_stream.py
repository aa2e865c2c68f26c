"""Native streams: start, token…, then done or error, whatever the backend does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeExchange, FakeGateway
from tests.support.fake_net import HeldStream
from tpo_mp.dialects import openai_chat as chat
from tpo_mp.errors import BackendFailure, BackendTimeout
from tpo_mp.http.head import Head
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.types import Reply, Terminal, Usage

TEXT = ["one ", "zwei ", "trois\n\ndata: [DONE]"]


def events(answer: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The named events of a body."""
    found = []
    for block in answer.decode().split("\n\n")[:-1]:
        name, _, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def upstream(text: list[str]) -> bytes:
    """A chat stream that says ``text``."""
    parts = [chat.event(chat.chunk("c", 1, "m", {"content": piece})) for piece in text]
    return b"".join([*parts, chat.event(chat.chunk("c", 1, "m", {}, "stop")), chat.DONE])


class Scene:
    """A native stream on a backend the test feeds by hand."""

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.exchange = FakeExchange(Head(), b"body")
        call = make_call(b"{}", model="asked")
        call.stream = True
        self.delivery = NativeStream(
            self.gateway,  # type: ignore[arg-type]
            self.exchange,
            call,
            "s-1",
        )
        self.delivery.run()
        self.stream = HeldStream()
        self.reply = Reply(200, None, stream=self.stream)

    def begin(self) -> None:
        """The first event arrived."""
        self.delivery.done(self.reply, None)


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_stream_is_start_tokens_done(step: int) -> None:
    """However the backend's bytes were cut."""
    scene = Scene()
    scene.begin()
    body = upstream(TEXT)
    for at in range(0, len(body), step):
        scene.stream.data(body[at : at + step])
    scene.reply.usage, scene.reply.finish_reason = Usage(3, 4), "stop"
    scene.stream.end()
    found = events(scene.exchange.answer)
    assert [name for name, _ in found] == ["start", "token", "token", "token", "done"]
    assert found[0][1] == {"request_id": "call-1", "session_id": "s-1"}
    assert [(e["index"], e["text"]) for _, e in found[1:4]] == list(enumerate(TEXT))
    done = found[4][1]
    assert done["text"] == done["result"] == "".join(TEXT)
    assert (done["status"], done["finish_reason"]) == ("completed", "stop")
    assert done["usage"]["total_tokens"] == 7
    assert scene.exchange.ended
    assert scene.gateway.ends == [Terminal.DONE]


def test_failure_in_mid_stream_is_an_error_event() -> None:
    """Never a done, and the body ends properly."""
    scene = Scene()
    scene.begin()
    scene.stream.data(chat.event(chat.chunk("c", 1, "m", {"content": "half"})))
    scene.stream.end(BackendTimeout("fell silent", reason="idle_timeout", retry_after_s=2))
    found = events(scene.exchange.answer)
    assert [name for name, _ in found] == ["start", "token", "error"]
    assert found[2][1]["code"] == "idle_timeout"
    assert found[2][1]["retry_after_ms"] == 2000
    assert scene.exchange.ended
    assert scene.gateway.ends == [Terminal.FAILED]


def test_nonsense_from_the_backend_is_an_error_event() -> None:
    """The backend is let go of."""
    scene = Scene()
    scene.begin()
    scene.stream.data(b"data: {nonsense}\n\n")
    assert [name for name, _ in events(scene.exchange.answer)] == ["start", "error"]
    assert scene.stream.told == ["cancel"]
    assert scene.gateway.ends == [Terminal.FAILED]


def test_failure_before_the_first_byte_is_a_plain_error() -> None:
    """No stream begins for nothing."""
    scene = Scene()
    scene.delivery.done(None, BackendFailure("refused"))
    assert scene.exchange.status == 502
    assert scene.exchange.json()["error"]["request_id"] == "call-1"


def test_stream_says_how_much_its_client_was_sent() -> None:
    """Nothing before the head; then every byte of its events."""
    scene = Scene()
    assert scene.delivery.sent() == 0
    scene.begin()
    scene.stream.data(upstream(["one"]))
    assert scene.delivery.sent() == len(scene.exchange.answer) > 0
