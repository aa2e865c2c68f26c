"""The native family: prompts answered now or later, strict bodies, dead letters."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.raw import RawReply, ask
from tests.support.upstream import Upstream
from tests.support.wait import wait_for


def finished(gateway: Gateway, call_id: str) -> dict[str, Any]:
    """Ask for a result on new connections, hence any shard, until it is there."""

    def done() -> RawReply | None:
        reply = gateway.ask(f"/api/v1/result/{call_id}")
        assert reply.status in (200, 202), reply
        return reply if reply.status == 200 else None

    record: dict[str, Any] = wait_for(done, 10, f"result of {call_id}").json()
    return record


def test_prompt_is_answered_in_the_response(echo_gateway: Gateway) -> None:
    """One record: completed, with text, usage, model and time."""
    reply = echo_gateway.ask("/v1/prompt", {"prompt": "say this back", "session_id": "n-1"})
    assert reply.status == 200
    record = reply.json()
    assert record["status"] == "completed"
    assert record["result"] == "say this back"
    assert record["session_id"] == "n-1"
    assert record["model"] == "echo"
    assert record["finish_reason"] == "stop"
    assert record["usage"]["total_tokens"] == 6
    assert record["latency_ms"] >= 0
    assert record["request_id"] == reply.headers["x-tpo-call-id"]


def test_inferred_prompt_is_fetched_from_any_shard(echo_gateway: Gateway) -> None:
    """The id finds its record whichever worker is asked, and stays findable."""
    asked = echo_gateway.ask("/api/v1/infer", {"input": "later please"})
    assert asked.status in (200, 202)
    call_id = asked.json()["request_id"]
    records = [finished(echo_gateway, call_id) for _ in range(8)]
    assert all(record == records[0] for record in records)
    assert records[0]["result"] == "later please"


def test_prompt_preferring_async_is_accepted(echo_gateway: Gateway) -> None:
    """``Prefer: respond-async`` turns a prompt into a 202 with a location."""
    reply = echo_gateway.ask("/v1/prompt", {"prompt": "x y"}, {"Prefer": "respond-async"})
    assert reply.status == 202
    assert reply.headers["location"] == f"/api/v1/result/{reply.json()['request_id']}"
    assert finished(echo_gateway, reply.json()["request_id"])["result"] == "x y"


def test_waiting_for_a_result_answers_when_it_is_there(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """``?wait=`` holds the answer back until the call is done."""
    gateway = start_gateway("--backend", "openai", "--base-url", upstream.base_url, "--model", "m")
    asked = threading.Event()
    upstream.play(until=asked)
    call_id = gateway.ask("/api/v1/infer", {"prompt": "slow"}).json()["request_id"]
    assert gateway.ask(f"/api/v1/result/{call_id}").status == 202
    threading.Timer(0.3, asked.set).start()
    reply = gateway.ask(f"/api/v1/result/{call_id}?wait=20")
    assert reply.status == 200
    assert reply.json()["result"] == "answer to slow"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a", "input": "b"}, "input"),
        ({"prompt": "a", "promt": "b"}, "promt"),
        ({"prompt": "a", "temperature": 3}, "temperature"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "deadline_secs": -1}, "deadline_secs"),
    ],
)
def test_strict_bodies_are_refused_with_the_field(
    echo_gateway: Gateway, body: dict[str, Any], field: str
) -> None:
    """Unknown and wrong fields are 422 with their name."""
    reply = echo_gateway.ask("/v1/prompt", body)
    assert reply.status == 422, reply
    error = reply.json()["error"]
    assert error["param"] == field
    assert "request_id" in error


@pytest.mark.parametrize("path", ["result", "dlq"])
@pytest.mark.parametrize("call_id", ["nonsense", str(uuid.UUID(int=1)), "..%2f..%2fetc", "a" * 500])
def test_unknown_ids_are_404(echo_gateway: Gateway, path: str, call_id: str) -> None:
    """Whatever is not an id of ours is not found."""
    assert echo_gateway.ask(f"/api/v1/{path}/{call_id}").status == 404


def test_dead_letters_are_empty_on_a_healthy_host(echo_gateway: Gateway) -> None:
    """The list has its shape, under both its names."""
    for path in ("/api/v1/dlq", "/v1/dlq", "/api/v1/dlq?limit=5"):
        reply = echo_gateway.ask(path)
        assert reply.status == 200, reply
        assert set(reply.json()) >= {"entries", "count", "next"}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=-1", "limit=99999999", "limit=1&limit=2"]
)
def test_bad_pages_are_400(echo_gateway: Gateway, query: str) -> None:
    """A page that cannot be is the client's error."""
    assert echo_gateway.ask(f"/api/v1/dlq?{query}").status in (400, 422)


def test_accepted_call_that_fails_is_recorded_as_failed(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """A fetched result may be a failure, with its reason."""
    gateway = start_gateway("--backend", "openai", "--base-url", upstream.base_url, "--model", "m")
    upstream.play("status", status=400)
    call_id = gateway.ask("/api/v1/infer", {"prompt": "no"}).json()["request_id"]
    record = finished(gateway, call_id)
    assert record["status"] == "failed"
    assert record["error"]["code"]
    assert record["result"] is None
    assert ask(upstream.url, "/control").json()["requests"] >= 1


@pytest.mark.parametrize("path", ["/api/v1/stream", "/v1/prompt", "/api/v1/infer"])
def test_stream_is_told_in_native_events(echo_gateway: Gateway, path: str) -> None:
    """start, one token per word, done; on the stream route and wherever ``stream`` is asked for."""
    body = {"prompt": "three small words", "session_id": "n-9"}
    reply = echo_gateway.ask(path, body if path.endswith("stream") else body | {"stream": True})
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    names = [line[7:] for line in reply.body.decode().splitlines() if line.startswith("event: ")]
    assert names == ["start", "token", "token", "token", "done"]


def test_status_of_an_accepted_call_is_always_200(echo_gateway: Gateway) -> None:
    """Both spellings answer the same record."""
    call_id = echo_gateway.ask("/api/v1/infer", {"prompt": "x"}).json()["request_id"]
    record = finished(echo_gateway, call_id)
    for path in ("/api/v1/status", "/v1/status"):
        reply = echo_gateway.ask(f"{path}/{call_id}")
        assert (reply.status, reply.json()) == (200, record)
    assert echo_gateway.ask("/api/v1/status/unknown").status == 404
