"""Native records: one per call, answered or kept, final once the call is settled."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeExchange, FakeGateway
from tests.support.fake_net import HeldStream
from tpo_mp.errors import (
    BackendFailure,
    Cancelled,
    ConnectionCut,
    DeadlineExceeded,
    RateLimited,
    TpoError,
)
from tpo_mp.http.head import Head
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.types import Reply, Terminal, Usage

COMPLETION = json.dumps(
    {"model": "m-1", "choices": [{"message": {"content": "said"}, "finish_reason": "length"}]}
).encode()


class Scene:
    """A native delivery, and what it left behind."""

    def __init__(self, *, detached: bool = False) -> None:
        self.gateway = FakeGateway()
        self.exchange = FakeExchange(Head(), b"body")
        self.call = make_call(b"{}", model="asked", started_at=monotonic())
        self.delivery = NativeDelivery(
            self.gateway,
            self.exchange,
            self.call,
            "s-1",
            detached=detached,  # type: ignore[arg-type]
        )
        self.records: list[dict[str, Any]] = []
        self.delivery.on_record = self.records.append

    def answer(self, body: bytes = COMPLETION) -> None:
        """The chain answers."""
        reply = Reply(200, body)
        reply.usage = Usage(3, 4)
        self.delivery.done(reply, None)


@pytest.mark.parametrize("detached", [False, True])
def test_completed_record(detached: bool) -> None:
    """The same whether it is answered or kept."""
    scene = Scene(detached=detached)
    scene.answer()
    (record,) = scene.records
    assert record["status"] == "completed"
    assert (record["request_id"], record["session_id"]) == ("call-1", "s-1")
    assert (record["result"], record["model"]) == ("said", "m-1")
    assert record["finish_reason"] == "length"
    assert record["usage"]["total_tokens"] == 7
    assert record["latency_ms"] >= 0
    assert record["error"] is None
    assert scene.gateway.ends == [Terminal.DONE]
    if detached:
        assert scene.exchange.status == 0
    else:
        assert scene.exchange.json() == record


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize(
    ("error", "terminal"),
    [
        (BackendFailure("it broke", retry_after_s=1.5), Terminal.FAILED),
        (RateLimited("slow down"), Terminal.FAILED),
        (DeadlineExceeded("late"), Terminal.EXPIRED),
        (Cancelled("given up inside"), Terminal.FAILED),
        (KeyError("secret"), Terminal.FAILED),
    ],
)
def test_failed_record(detached: bool, error: Exception, terminal: Terminal) -> None:
    """No call is left "processing", whatever ended it."""
    scene = Scene(detached=detached)
    scene.delivery.done(None, error)
    (record,) = scene.records
    assert record["status"] == "failed"
    assert record["error"]["request_id"] == "call-1"
    assert "secret" not in json.dumps(record)
    assert scene.gateway.ends == [terminal]
    assert scene.delivery.record == record
    if isinstance(error, TpoError) and error.retry_after_s:
        assert record["error"]["retry_after_ms"] == 1500
    if detached:
        assert scene.exchange.status == 0
    else:
        assert scene.exchange.json() == {"error": record["error"]}


@pytest.mark.parametrize("body", [b"[1]", b"<html>", b'{"choices": 5}', b"\xff"])
def test_reply_without_a_completion_is_a_bad_upstream(body: bytes) -> None:
    """Its text is what a native client came for."""
    scene = Scene()
    scene.answer(body)
    assert scene.exchange.status == 502
    assert scene.records[0]["error"]["code"] == "bad_upstream_body"
    assert scene.gateway.ends == [Terminal.FAILED]


def test_client_of_a_kept_call_may_leave() -> None:
    """Nobody cancels what is fetched later."""
    assert Scene(detached=True).exchange.on_disconnect is None
    assert Scene().exchange.on_disconnect is not None


@pytest.mark.parametrize("detached", [False, True])
def test_stream_nobody_asked_for_fails_the_record(detached: bool) -> None:
    """A native call is one body; the exchange of a kept call is long gone."""
    scene, held = Scene(detached=detached), HeldStream()
    scene.delivery.done(Reply(200, None, stream=held), None)
    assert held.told == ["cancel"]
    assert scene.records[0]["status"] == "failed"
    assert scene.exchange.status == (0 if detached else 502)


def test_stopped_call_leaves_a_failed_record() -> None:
    """A deadline, or the host's end."""
    scene = Scene(detached=True)
    scene.delivery.expire()
    scene.answer()
    assert [r["status"] for r in scene.records] == ["failed"]
    assert scene.gateway.ends == [Terminal.EXPIRED]


def test_detached_record_keeps_its_own_request() -> None:
    """The connection's next request is another's."""
    scene = Scene(detached=True)
    assert scene.delivery.exchange is not scene.exchange
    scene.exchange.head.method = "DELETE"
    assert scene.delivery.exchange.head.method != "DELETE"


def test_cut_fails_a_kept_record_and_leaves_its_client_alone() -> None:
    """Who was answered already has a connection that is none of the call's business."""
    scene = Scene(detached=True)
    scene.delivery.done(None, ConnectionCut("gone"))
    (record,) = scene.records
    assert record["status"] == "failed"
    assert scene.gateway.ends == [Terminal.FAILED]
    assert not scene.exchange.aborted
