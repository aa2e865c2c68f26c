"""Calls whose answer is fetched later: accepted once, findable from everywhere, never forgotten."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.support.raw import RawClient, RawReply
from tests.support.shards import Shards, render
from tests.support.wait import wait_for

INFER = "/api/v1/infer"


@pytest.fixture(autouse=True)
def well_behaved(shards: Shards) -> Iterator[None]:
    """Every test has an upstream that answers, and leaves no call open there."""
    shards.upstream.play()
    yield
    wait_for(lambda: shards.upstream.counters.open == 0, 10, "no call left upstream")


def infer(client: RawClient, text: str, session: str = "", **more: Any) -> str:
    """Ask for later; answer the id."""
    body = {"prompt": text, "model": "up"} | ({"session_id": session} if session else {}) | more
    reply = client.post_json(INFER, body)
    assert reply.status in (200, 202), reply
    record = reply.json()
    assert record["status"] in ("processing", "completed"), record
    assert record["request_id"] == reply.headers["x-tpo-call-id"]
    call_id: str = record["request_id"]
    return call_id


def result(client: RawClient, call_id: str, wait_s: float | None = None) -> RawReply:
    """Ask for the record."""
    wait = "" if wait_s is None else f"?wait={wait_s}"
    return client.request("GET", f"/api/v1/result/{call_id}{wait}")


def test_any_shard_finds_a_call_that_any_shard_took_and_any_shard_serves(shards: Shards) -> None:
    """All eight combinations: 202 while it runs, then 200 with the same record everywhere."""
    said = threading.Event()
    shards.upstream.play(until=said)
    calls = [
        (taker, session, infer(taker, f"from {t} to {session}", session))
        for t, taker in enumerate(shards.clients)
        for session in shards.sessions
    ]
    for _, _, call_id in calls:
        for client in shards.clients:
            reply = result(client, call_id)
            assert reply.status == 202, reply
            assert reply.json()["status"] == "processing"
    said.set()
    for _, session, call_id in calls:
        replies = [result(client, call_id, 10) for client in shards.clients]
        assert [reply.status for reply in replies] == [200, 200]
        assert replies[0].json() == replies[1].json()
        record = replies[0].json()
        assert record["status"] == "completed"
        assert record["result"].startswith("answer to from")
        assert record["session_id"] == session
        assert record["usage"]["total_tokens"] == 12


def test_wait_ends_when_the_answer_is_there_or_the_time_is_up(shards: Shards) -> None:
    """From the taking shard and from the other: not earlier, and before the answer is there."""
    for client in shards.clients:
        said = threading.Event()
        shards.upstream.play(until=said)
        call_id = infer(shards.clients[0], "slow")
        began = time.monotonic()
        assert result(client, call_id, 0.2).status == 202
        assert time.monotonic() - began >= 0.19
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(result, client, call_id, 60)
            said.set()
            assert waiting.result(30).status == 200


def test_many_may_wait_for_one_call(shards: Shards) -> None:
    """Twelve waiters on both shards are all told at once."""
    shards.upstream.play(first_s=0.5)
    call_id = infer(shards.clients[0], "crowd")
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(shards.gateway.ask, f"/api/v1/result/{call_id}?wait=10") for _ in range(12)
        ]
        replies = [one.result() for one in asked]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert shards.upstream.seen[-1].json()["messages"][-1]["content"] == "crowd"


def test_client_that_leaves_after_asking_does_not_stop_the_call(shards: Shards) -> None:
    """Nor one that leaves before the id was read, nor a waiter that gives up."""
    shards.upstream.play(first_s=0.4)
    completed, requests = shards.upstream.counters.completed, shards.upstream.counters.requests
    with RawClient(shards.gateway.url) as client:
        body = {"prompt": "nobody waits", "model": "up"}
        client.send(render(client.host, body, {}, "fast", INFER))
        shards.started(requests)
    wait_for(lambda: shards.upstream.counters.completed == completed + 1, 5, "its end")
    call_id = infer(shards.clients[0], "waiter")
    with RawClient(shards.gateway.url) as client:
        client.send(f"GET /api/v1/result/{call_id}?wait=30 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert result(shards.clients[1], call_id, 10).status == 200


def test_full_lane_takes_calls_for_later_too(shards: Shards) -> None:
    """A chunked request is accepted as any other."""
    with RawClient(shards.gateway.url) as client:
        client.send(render(client.host, {"prompt": "chunked", "model": "up"}, {}, "full", INFER))
        call_id = client.read_reply("POST").json()["request_id"]
    record = result(shards.clients[0], call_id, 10).json()
    assert record["result"] == "answer to chunked"


@pytest.mark.parametrize("wait", ["", "?wait=0.2"])
def test_ids_nobody_gave_are_404(shards: Shards, wait: str) -> None:
    """Nonsense, another version, this host's seats and epochs with another number."""
    own = infer(shards.clients[0], "own")
    near = f"{own[:-4]}{'0000' if own[-4:] != '0000' else '1111'}"
    for call_id in ("nonsense", str(uuid.uuid4()), str(uuid.UUID(int=0)), near, own.upper() + "0"):
        for client in shards.clients:
            assert client.request("GET", f"/api/v1/result/{call_id}{wait}").status == 404, call_id


@pytest.mark.parametrize("wait", ["-1", "soon", "301", "nan", "1&wait=2"])
def test_waits_that_cannot_be_are_400(shards: Shards, wait: str) -> None:
    """A number from 0 to 300, once."""
    call_id = infer(shards.clients[0], "wait")
    reply = shards.gateway.ask(f"/api/v1/result/{call_id}?wait={wait}")
    assert reply.status == 400, reply


def test_failure_is_a_result_and_a_dead_letter(shards: Shards) -> None:
    """On both ways: a failed record with its reason, and one letter with the payload."""
    shards.upstream.play("short")
    for session in shards.sessions:
        call_id = infer(shards.clients[0], "doomed", session)
        for client in shards.clients:
            reply = result(client, call_id, 10)
            assert reply.status == 200
            record = reply.json()
            assert record["status"] == "failed"
            assert record["error"]["code"] == "cut_off"
            assert record["result"] is None
        letter = wait_for(partial(letter_of, shards, call_id), 5, "its dead letter")
        assert letter["reason"] == "cut_off"
        assert "doomed" in str(letter)
    listed = shards.gateway.ask("/api/v1/dlq").json()
    assert listed["count"] >= 2
    assert call_id in [entry["request_id"] for entry in listed["entries"]]


def letter_of(shards: Shards, call_id: str) -> dict[str, Any] | None:
    """One dead letter, by either shard."""
    replies = [client.request("GET", f"/api/v1/dlq/{call_id}") for client in shards.clients]
    if {reply.status for reply in replies} != {200}:
        return None
    found: dict[str, Any] = replies[0].json()
    assert found == replies[1].json()
    return found


def test_dead_letters_are_listed_newest_first_page_by_page(shards: Shards) -> None:
    """Following ``next`` meets each letter once."""
    shards.upstream.play("status", status=500)
    ids = [infer(shards.clients[n % 2], f"letter {n}") for n in range(7)]
    for call_id in ids:
        wait_for(partial(letter_of, shards, call_id), 5, "its dead letter")
    found: list[str] = []
    after = ""
    for _ in range(100):
        page = shards.gateway.ask(f"/api/v1/dlq?limit=3{after}").json()
        assert len(page["entries"]) <= 3
        found += [entry["request_id"] for entry in page["entries"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert len(found) == len(set(found))
    assert set(ids) <= set(found)
    times = [entry["dropped_at"] for entry in shards.gateway.ask("/api/v1/dlq").json()["entries"]]
    # Newest is the last one written: what two shards sent in one moment may have changed places.
    assert all(newer > older - 0.5 for newer, older in pairwise(times))


def test_deadline_of_a_call_for_later_ends_it(shards: Shards) -> None:
    """The record says that the deadline passed; the upstream was cancelled."""
    shards.upstream.play("hang")
    counters = shards.upstream.counters
    aborted, requests = counters.aborted, counters.requests
    for session in shards.sessions:
        call_id = infer(shards.clients[0], "late", session, deadline_secs=1)
        record = result(shards.clients[1], call_id, 10).json()
        assert record["status"] == "failed"
        assert record["error"]["code"] == "deadline_exceeded"
    # The upstream is not asked at all for what stood still until its deadline.
    wait_for(
        lambda: counters.aborted - aborted == counters.requests - requests, 5, "both cancelled"
    )


@pytest.mark.parametrize("size", [700_000, 9_000_000])
def test_large_results_are_found_from_everywhere(shards: Shards, size: int) -> None:
    """Longer than any ring record: the asking shard reads it from the store."""
    shards.upstream.play(pad_bytes=size)
    call_id = infer(shards.clients[0], f"much {size}")
    for client in shards.clients:
        reply = wait_for(partial(found, client, call_id), 30, "the result")
        assert reply.json()["result"] == f"answer to much {size}" + "x" * size


def found(client: RawClient, call_id: str) -> RawReply | None:
    """The finished record, if it is there."""
    reply = result(client, call_id, 2)
    if reply.status == 503 and reply.json()["error"]["code"] == "store_unavailable":
        return None  # a crowded machine's store is asked again, as the reply says
    assert reply.status in (200, 202), reply
    return reply if reply.status == 200 else None


@pytest.mark.parametrize("path", ["/v1/prompt", INFER])
def test_every_wrong_field_of_a_body_is_named(shards: Shards, path: str) -> None:
    """422 with the field, on both lanes, and nothing is run."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "model": ""}, "model"),
        ({"prompt": "a", "model": "m" * 257}, "model"),
        ({"prompt": "a", "session_id": ""}, "session_id"),
        ({"prompt": "a", "session_id": 1.5}, "session_id"),
        ({"prompt": "a", "metadata": {"k": 1}}, "metadata"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "deadline_secs": 0}, "deadline_secs"),
        ({"prompt": "a", "timeout_seconds": 3601}, "timeout_seconds"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "api_base": "http://x"}, "api_base"),
    ]
    for body, field in wrong:
        for lane in ("fast", "full"):
            with RawClient(shards.gateway.url) as client:
                client.send(render(client.host, body, {}, lane, path))  # type: ignore[arg-type]
                reply = client.read_reply("POST")
            assert reply.status == 422, (body, lane, reply)
            error = reply.json()["error"]
            assert error["param"].partition("[")[0] == field, (body, error)
            assert error["details"]["fields"][0]["field"] == error["param"]
    asked = [seen.json()["messages"][-1]["content"] for seen in list(shards.upstream.seen)]
    assert not {"a", "yes"} & set(asked)


def test_bodies_that_are_no_json_are_400(shards: Shards) -> None:
    """Cut, not UTF-8, or another type altogether."""
    for raw in (b"", b"{", b'{"prompt": "\xff"}', b"[1]", b'"text"', b'{"prompt": "a"} x'):
        with RawClient(shards.gateway.url) as client:
            reply = client.request("POST", INFER, {"Content-Type": "application/json"}, raw)
        assert reply.status in (400, 422), (raw, reply)
