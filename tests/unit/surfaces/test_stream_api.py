"""The streaming routes: what starts a stream, what attaches to one, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_gateway import FakeExchange, Surface
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.native_stream import NativeStream
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.surfaces.stream_api import FEATURE
from tpo_mp.types import Reply, Terminal

ROUTES = ("/v1/stream/sse", "/api/v1/stream/sse")
CALL_ID = "00010000-0001-8000-8000-0123456789ab"
OTHER_ID = "00010000-0001-8000-8001-0123456789ab"


def names(exchange: FakeExchange) -> list[str]:
    """The names of the events in a body."""
    return [line[7:] for line in exchange.answer.decode().split("\n") if line[:7] == "event: "]


def start(surface: Surface, session: str | None = None) -> tuple[FakeExchange, HeldStream]:
    """Start a stream under an id of ours."""
    made = surface.gateway.new_call

    def new_call(*args: Any, **options: Any) -> Any:
        call = made(*args, **options)
        call.id = CALL_ID
        return call

    surface.gateway.new_call = new_call  # type: ignore[method-assign]
    exchange = surface.ask("POST", "/api/v1/stream", {"prompt": "x", "session_id": session or "s"})
    stream = HeldStream()
    surface.gateway.submitted[-1].done(Reply(200, None, stream=stream), None)
    return exchange, stream


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("query", ["prompt=hi+you", "input=hi%20you&model=m&max_tokens=9"])
def test_query_is_a_request(route: str, query: str) -> None:
    """By the names of the body's fields."""
    surface = Surface(FEATURE)
    surface.ask("GET", f"{route}?{query}")
    (delivery,) = surface.gateway.submitted
    assert isinstance(delivery, NativeStream)
    body = json.loads(delivery.call.body)
    assert body["messages"] == [{"role": "user", "content": "hi you"}]
    assert body["stream"] is True
    assert body["max_tokens"] == (9 if "max" in query else 256)


@pytest.mark.parametrize(
    ("query", "headers", "status", "param"),
    [
        ("", {}, 400, "prompt"),
        ("prompt=", {}, 422, "prompt"),
        ("prompt=a&temperature=9", {}, 422, "temperature"),
        ("prompt=a&max_tokens=x", {}, 422, "max_tokens"),
        ("prompt=a&prompt=b", {}, 400, None),
        ("prompt=a&stream=true", {}, 400, "stream"),
        ("promt=a", {}, 400, "promt"),
        (f"prompt=a&request_id={CALL_ID}", {}, 400, "request_id"),
        ("request_id=nonsense", {}, 404, None),
        ("request_id=%0d%0ax:%20y", {}, 404, None),
        (f"request_id={CALL_ID}", {}, 404, None),
        ("", {"Last-Event-ID": "-1"}, 400, "last-event-id"),
        ("", {"Last-Event-ID": "x" * 5000}, 400, "last-event-id"),
        ("", {"Last-Event-ID": f"{CALL_ID}:-1"}, 400, "last-event-id"),
        ("", {"Last-Event-ID": f"{CALL_ID}:1"}, 404, None),
        ("prompt=a", {"Last-Event-ID": f"{CALL_ID}:1"}, 404, None),
        (f"request_id={OTHER_ID}", {"Last-Event-ID": f"{CALL_ID}:1"}, 400,
         "last-event-id"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused(
    query: str, headers: dict[str, str], status: int, param: str | None
) -> None:
    """Naming what is wrong with it, and nothing is started."""
    surface = Surface(FEATURE)
    with pytest.raises(Exception) as refused:
        surface.ask("GET", f"/v1/stream/sse?{query}", headers=headers)
    assert refused.value.status == status, refused.value  # type: ignore[attr-defined]
    assert refused.value.param == param  # type: ignore[attr-defined]
    assert surface.gateway.submitted == []


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (f"request_id={CALL_ID}", {}),
        ("", {"Last-Event-ID": f"{CALL_ID}:0"}),
        ("prompt=again", {"Last-Event-ID": f"{CALL_ID}:0"}),
        (f"request_id={CALL_ID}", {"Last-Event-ID": f"{CALL_ID}:0"}),
    ],
)
def test_running_stream_is_attached_to(query: str, headers: dict[str, str]) -> None:
    """By its id or by the last event that was seen; then the first client may leave."""
    surface = Surface(FEATURE)
    first, stream = start(surface)
    second = surface.ask("GET", f"/v1/stream/sse?{query}", headers=headers)
    assert names(second) == ([] if headers else ["start"])
    assert b"x-tpo-call-id: " + CALL_ID.encode() in second.extra
    assert first.on_disconnect is not None
    first.on_disconnect()
    assert surface.gateway.ends == []
    stream.end()
    assert names(second)[-1] == "done"
    assert second.ended
    assert surface.gateway.ends == [Terminal.DONE]


def test_last_client_to_leave_cancels() -> None:
    """Whoever came first."""
    surface = Surface(FEATURE)
    first, stream = start(surface)
    second = surface.ask("GET", f"/v1/stream/sse?request_id={CALL_ID}")
    for exchange in (first, second):
        assert stream.told == []
        assert exchange.on_disconnect is not None
        exchange.on_disconnect()
    assert stream.told == ["cancel"]
    assert surface.gateway.ends == [Terminal.CANCELLED]


def test_other_tenants_stream_does_not_exist() -> None:
    """Neither by id nor by event."""
    surface = Surface(FEATURE, tenants={"Bearer other": "other"})
    start(surface)
    for headers in ({}, {"Last-Event-ID": f"{CALL_ID}:0"}):
        with pytest.raises(Exception) as refused:
            surface.ask(
                "GET", f"/v1/stream/sse?request_id={CALL_ID}",
                headers=headers | {"Authorization": "Bearer other"},
            )  # fmt: skip
        assert refused.value.status == 404  # type: ignore[attr-defined]


@pytest.mark.parametrize("named", ["header", "query"])
def test_session_is_followed(named: str) -> None:
    """Without a prompt: the requests of the session, until the client leaves."""
    surface = Surface(FEATURE)
    if named == "header":
        exchange = surface.ask("GET", "/v1/stream/sse", headers={"X-Session-Id": "s"})
    else:
        exchange = surface.ask("GET", "/v1/stream/sse?session_id=s")
    assert exchange.status == 200
    _, stream = start(surface, "s")
    stream.end()
    assert names(exchange) == ["start", "done"]
    assert not exchange.ended
    assert exchange.on_disconnect is not None
    exchange.on_disconnect()
    assert surface.gateway.feeds.followers == {}


def test_kept_record_is_told_as_its_end() -> None:
    """A call without a stream, or whose stream is forgotten."""
    for record, name in (
        ({"status": "completed", "result": "r"}, "done"),
        ({"status": "failed", "error": {"code": "c"}}, "error"),
    ):
        kept = json.dumps({"session_id": None} | record).encode()
        surface = Surface(FEATURE, results={CALL_ID: kept})
        exchange = surface.ask("GET", f"/v1/stream/sse?request_id={CALL_ID}")
        assert names(exchange) == ["start", name]
        assert exchange.ended


def test_failure_before_the_first_event_is_a_plain_error() -> None:
    """Also for a query."""
    surface = Surface(FEATURE)
    exchange = surface.ask("GET", "/v1/stream/sse?prompt=x")
    surface.gateway.submitted[0].done(None, BackendFailure("broke"))
    assert (exchange.status, exchange.json()["error"]["message"]) == (502, "broke")


@pytest.mark.parametrize("path", ["/api/v1/stream", "/v1/stream", "/api/v1/ws"])
def test_sockets_need_an_upgrade(path: str) -> None:
    """A plain GET is told so."""
    assert Surface(FEATURE).refusal("GET", path).status == 426


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """The metrics of a host."""
    made = MetricsArena.create(3)
    yield made
    made.close()


def test_counts_are_the_hosts(arena: MetricsArena) -> None:
    """Of every shard, whichever is asked."""
    for seat in (0, 1):
        block = arena.block(seat, 1)
        block.gauge("tpo_streams_active", "").set(2)
        block.counter("tpo_streams_completed_total", "").inc(3)
        block.counter("tpo_stream_tokens_total", "").inc(7)
    surface = Surface(FEATURE, metrics_arena=arena)
    assert surface.ask("GET", "/api/v1/stream/stats").json() == {
        "active_streams": 4, "completed_streams": 6, "total_tokens": 14,
    }  # fmt: skip
