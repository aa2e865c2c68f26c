"""Calls by their id, from any worker: listed, waited for, ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import Shards, render
from tests.support.wait import quickest, wait_for

PROMPT, INFER, CHAT = "/v1/prompt", "/api/v1/infer", "/v1/chat/completions"


@pytest.fixture(autouse=True)
def hanging(shards: Shards) -> Iterator[None]:
    """Every test has an upstream that takes calls and answers none, and leaves none open there."""
    shards.upstream.play("hang")
    yield
    wait_for(lambda: shards.upstream.counters.open == 0, 10, "no call left upstream")


def delete(client: RawClient, call_id: str, root: str = "/api/v1") -> RawReply:
    """Cancel."""
    return client.request("DELETE", f"{root}/requests/{call_id}")


@pytest.mark.parametrize("taker", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("asked", [0, 1])
def test_any_shard_ends_a_call_of_any_shard(
    shards: Shards, taker: int, home: int, asked: int
) -> None:
    """Taken here, served there, cancelled anywhere; the upstream is let go and all agree."""
    counters = shards.upstream.counters
    requests, aborted = counters.requests, counters.aborted
    body = {"prompt": "never", "model": "up", "session_id": shards.sessions[home]}
    call_id = shards.clients[taker].post_json(INFER, body).json()["request_id"]
    shards.started(requests)
    reply = delete(shards.clients[asked], call_id)
    assert reply.status == 200, reply
    record = reply.json()
    assert (record["request_id"], record["status"]) == (call_id, "cancelled")
    shards.ended(aborted)
    for client in shards.clients:
        again = delete(client, call_id, "/v1")
        assert (again.status, again.json()) == (200, record)
        assert client.request("GET", f"/api/v1/result/{call_id}?wait=5").json() == record


@pytest.mark.parametrize("path", ["/api/v1/stream", CHAT, "/v1/messages"])
def test_cancelled_stream_ends_with_an_error_event(shards: Shards, path: str) -> None:
    """Its client reads the tokens so far and then why there are no more; the record stays."""
    shards.upstream.play("hang_body", cut_after=2)
    aborted = shards.upstream.counters.aborted
    body = {"prompt": "x"} if path == "/api/v1/stream" else chat("x") | {"max_tokens": 9}
    with RawClient(shards.gateway.url) as client:
        client.send(render(client.host, body | {"model": "up", "stream": True}, {}, "fast", path))
        status, headers, _ = client.read_head()
        assert status == 200
        call_id = headers["x-tpo-call-id"]
        assert delete(shards.clients[0], call_id).json()["status"] == "cancelled"
        events = b"".join(client.chunks())
    assert b"cancelled on request" in events
    for end in (b"event: done", b"[DONE]", b"message_stop"):
        assert end not in events
    shards.ended(aborted)
    for client in shards.clients:
        record = client.request("GET", f"/v1/status/{call_id}").json()
        assert (record["request_id"], record["status"]) == (call_id, "cancelled")


def test_finished_calls_are_409_and_unknown_ones_404(shards: Shards) -> None:
    """Both say which."""
    shards.upstream.play()
    reply = shards.clients[0].post_json(INFER + "?wait=10", {"prompt": "done", "model": "up"})
    assert reply.json()["status"] == "completed"
    for client in shards.clients:
        refused = delete(client, reply.json()["request_id"])
        assert refused.status == 409
        assert refused.json()["error"]["code"] == "request_finished"
        for unknown in ("nonsense", str(uuid.uuid4())):
            assert delete(client, unknown).status == 404


def test_cancel_reaches_the_upstream_in_time(shards: Shards) -> None:
    """Within 50 ms on an idle machine; the best of several shows what the code takes."""
    counters, numbers = shards.upstream.counters, count()

    def cancelled_s() -> float:
        n = next(numbers)
        requests, aborted = counters.requests, counters.aborted
        body = {"prompt": f"t{n}", "model": "up", "session_id": shards.sessions[1]}
        call_id = shards.clients[0].post_json(INFER, body).json()["request_id"]
        shards.started(requests)
        began = time.monotonic()
        delete(shards.clients[n % 2], call_id)
        shards.ended(aborted)
        return time.monotonic() - began

    times = quickest(cancelled_s, 6, 0.05)
    print(f"cancelled after {[round(t * 1e3, 1) for t in times]} ms")


def test_results_are_listed_alike_by_every_worker(shards: Shards) -> None:
    """By session and by state, latest first."""
    session = f"list-{uuid.uuid4()}"

    def infer(**body: Any) -> str:
        reply = shards.clients[0].post_json(INFER, {"model": "up", "session_id": session} | body)
        call_id: str = reply.json()["request_id"]
        return call_id

    requests = shards.upstream.counters.requests
    pending = infer(prompt="pending")
    shards.started(requests)
    shards.upstream.queue("status", status=400)
    failed = infer(prompt="failed")
    shards.clients[0].request("GET", f"/api/v1/result/{failed}?wait=10")
    shards.upstream.queue("answer")
    done = infer(prompt="done")
    shards.clients[0].request("GET", f"/api/v1/result/{done}?wait=10")

    def listed(client: RawClient, query: str = "") -> list[str]:
        reply = client.request("GET", f"/api/v1/results?session_id={session}{query}")
        assert reply.status == 200, reply
        return [record["request_id"] for record in reply.json()["results"]]

    for client in shards.clients:
        wait_for(lambda c=client: listed(c) == [done, failed, pending], 5, "all three")  # type: ignore[misc]
        assert listed(client, "&filter=completed") == [done]
        assert listed(client, "&filter=error") == [failed]
        assert listed(client, "&filter=pending") == [pending]
        page = client.request("GET", f"/api/v1/results?session_id={session}&limit=2").json()
        rest = f"&after={page['next']}"
        assert listed(client, rest) == [pending]
    assert delete(shards.clients[1], pending).status == 200
    wait_for(
        lambda: listed(shards.clients[0], "&filter=cancelled") == [pending], 5, "the cancelled one"
    )


@pytest.mark.parametrize("path", [PROMPT, INFER])
def test_wait_bounds_how_long_an_answer_is_held_back(shards: Shards, path: str) -> None:
    """Finished in time it is 200 and final; else the record as it stands."""
    body = {"prompt": "slow", "model": "up"}
    for client in shards.clients:
        shards.upstream.play(first_s=0.2)
        reply = client.post_json(path + "?wait=20", body)
        assert (reply.status, reply.json()["status"]) == (200, "completed")
        reply = client.post_json(path, body, {"Prefer": "respond-async, wait=20"})
        assert (reply.status, reply.json()["status"]) == (200, "completed")
        shards.upstream.play("hang")
        began = time.monotonic()
        reply = client.post_json(path + "?wait=0.2", body)
        assert time.monotonic() - began >= 0.19
        assert reply.status == (202 if path == PROMPT else 200)
        assert reply.json()["status"] == "processing"
        assert reply.headers["location"].endswith(reply.json()["request_id"])
        assert delete(client, reply.json()["request_id"]).status == 200


def test_failure_under_wait_is_a_failed_record(shards: Shards) -> None:
    """200, as every finished result."""
    shards.upstream.play("status", status=400)
    reply = shards.clients[0].post_json(INFER + "?wait=10", {"prompt": "x", "model": "up"})
    assert (reply.status, reply.json()["status"]) == (200, "failed")


def test_waiting_for_a_stream_is_refused(shards: Shards) -> None:
    """A stream answers as it goes."""
    body = {"prompt": "x", "model": "up", "stream": True}
    reply = shards.clients[0].post_json(INFER + "?wait=1", body)
    assert (reply.status, reply.json()["error"]["param"]) == (400, "wait")


@pytest.mark.parametrize(
    "metadata",
    [{str(n): "v" for n in range(51)}, {"k" * 129: "v"}, {"é" * 65: "v"}, {"": "v"},
     {"k": "v" * 1025}, {"k": "é" * 513}, {"k": 1}],
)  # fmt: skip
@pytest.mark.parametrize("path", [PROMPT, INFER, "/api/v1/stream"])
def test_metadata_over_its_limits_is_422(
    shards: Shards, path: str, metadata: dict[str, Any]
) -> None:
    """50 keys of 128 bytes with 1024 bytes each; the field is named."""
    reply = shards.clients[0].post_json(path, {"prompt": "x", "metadata": metadata})
    assert reply.status == 422, reply
    error = reply.json()["error"]
    assert error["code"] == "VALIDATION_ERROR"
    assert error["param"].startswith("metadata")
    assert error["details"]["fields"][0]["field"] == error["param"]


@pytest.mark.parametrize("path", [PROMPT, INFER])
def test_metadata_at_its_limits_is_taken(shards: Shards, path: str) -> None:
    """The longest that is allowed."""
    shards.upstream.play()
    metadata = {f"{n:02}" + "é" * 63: "é" * 512 for n in range(50)}
    body = {"prompt": "x", "model": "up", "metadata": metadata}
    reply = shards.clients[0].post_json(path + "?wait=10", body)
    assert reply.status == 200, reply


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("deadline_secs", 0.5), ("deadline_secs", 604_801), ("timeout_seconds", 0.9),
     ("timeout_seconds", 3601)],
)  # fmt: skip
def test_spans_out_of_range_are_422(shards: Shards, field: str, wrong: float) -> None:
    """One second to a week, one second to an hour."""
    reply = shards.clients[0].post_json(INFER, {"prompt": "x", field: wrong})
    assert (reply.status, reply.json()["error"]["param"]) == (422, field)
