"""Background responses: accepted at once, made without a client, found and followed everywhere."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.dialects import REPLIES, body, datas, encode
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, build
from tests.support.shards import connect_to, each_shard, session_on
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tpo_mp.dialects import openai_responses
from tpo_mp.dialects.translate import events_of

RESPONSES = "/v1/responses"
UNFINISHED = ("queued", "in_progress")


@dataclass(slots=True)
class Bench:
    """Two shards before an upstream of chat and one of responses; a connection to each shard."""

    gateway: Gateway
    upstream: Upstream
    clients: tuple[RawClient, RawClient]
    sessions: tuple[str, str]


@pytest.fixture(scope="module")
def host(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream, tuple[str, str]]]:
    """Both, and a session on each shard."""
    with Upstream() as upstream:
        config = (
            ECHO
            + backend("up", upstream.base_url)
            + backend("native", upstream.base_url, apis=["responses"])
        )
        with Gateway(short_tmp / "background", config=config, workers=2) as gateway:
            url = gateway.url
            yield gateway, upstream, (session_on(url, 0), session_on(url, 1))


@pytest.fixture
def bench(host: tuple[Gateway, Upstream, tuple[str, str]]) -> Iterator[Bench]:
    """Its connections are one test's: between two they might idle until they are closed."""
    gateway, upstream, sessions = host
    with each_shard(gateway.url) as clients:
        yield Bench(gateway, upstream, clients, sessions)


@pytest.fixture(autouse=True)
def well_behaved(bench: Bench) -> None:
    """Every test starts with an upstream that answers."""
    bench.upstream.play()


def start(client: RawClient, text: str, session: str = "", **more: Any) -> dict[str, Any]:
    """Ask in the background; answer the first state."""
    asked = {"model": "up", "input": text, "background": True} | more
    headers = {"X-Session-Id": session} if session else None
    reply = patient(lambda: client.post_json(RESPONSES, asked, headers))
    assert reply.status == 200, reply
    first: dict[str, Any] = reply.json()
    assert (first["status"], first["background"], first["output"]) == ("queued", True, [])
    return first


def get(client: RawClient, name: str, query: str = "") -> RawReply:
    """Fetch a response."""
    return patient(lambda: client.request("GET", f"{RESPONSES}/{name}{query}"))


def patient(ask: Callable[[], RawReply]) -> RawReply:
    """Ask again while the store of a busy machine is too slow."""

    def answered() -> RawReply | None:
        reply = ask()
        return None if reply.status == 503 and b"store_unavailable" in reply.body else reply

    return wait_for(answered, 20, "an answer of the store")


def finished(client: RawClient, name: str) -> dict[str, Any] | None:
    """Its final state, once there is one."""
    reply = get(client, name)
    assert reply.status == 200, reply
    shown: dict[str, Any] = reply.json()
    assert (shown["id"], shown["background"]) == (name, True)
    return None if shown["status"] in UNFINISHED else shown


def final(client: RawClient, name: str) -> dict[str, Any]:
    """Wait for its final state."""
    return wait_for(partial(finished, client, name), 15, f"the end of {name}")


def words(response: dict[str, Any]) -> str:
    """Its text."""
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def follow(client: RawClient, name: str, after: int | None = None) -> list[dict[str, Any]]:
    """Every event from the one after ``after`` on."""
    asked = "?stream=true" + ("" if after is None else f"&starting_after={after}")
    reply = get(client, name, asked)
    assert reply.status == 200, reply
    assert reply.headers["content-type"].startswith("text/event-stream")
    return datas(reply.body)


def text_of(events: list[dict[str, Any]]) -> str:
    """The words of a stream."""
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def test_any_shard_shows_a_response_that_any_shard_took_and_any_shard_makes(bench: Bench) -> None:
    """Unfinished while the upstream works, then the same whole response everywhere."""
    said = threading.Event()
    bench.upstream.play(until=said)
    made = [
        start(taker, f"{t} for {session}", session)["id"]
        for t, taker in enumerate(bench.clients)
        for session in bench.sessions
    ]
    for name in made:
        for client in bench.clients:
            assert get(client, name).json()["status"] in UNFINISHED
    said.set()
    for name in made:
        shown = [final(client, name) for client in bench.clients]
        assert shown[0] == shown[1]
        assert shown[0]["status"] == "completed"
        assert words(shown[0]).startswith("answer to")
        assert shown[0]["usage"]["total_tokens"] == 12
        listed = bench.clients[1].request("GET", f"{RESPONSES}/{name}/input_items").json()
        assert len(listed["data"]) == 1


def test_client_that_leaves_does_not_stop_it(bench: Bench) -> None:
    """Neither before the answer was read nor while its stream runs."""
    bench.upstream.play(first_s=0.3)
    completed, requests = bench.upstream.counters.completed, bench.upstream.counters.requests
    asked = {"model": "up", "input": "left alone", "background": True}
    for stream in (False, True):
        with RawClient(bench.gateway.url) as client:
            lines = {"Host": client.host, "Content-Type": "application/json"}
            client.send(build("POST", RESPONSES, lines, body(asked, stream=stream)))
            asked_for = partial(_asked, bench, requests + 1 + stream)
            wait_for(asked_for, 5, "the call upstream")
        done = completed + 1 + stream
        wait_for(lambda n=done: bench.upstream.counters.completed == n, 5, "its end")  # type: ignore[misc]


def _asked(bench: Bench, requests: int) -> bool:
    return bench.upstream.counters.requests == requests


@pytest.mark.parametrize("model", ["up", "native"])
def test_stream_goes_on_where_it_was_left_on_any_shard(bench: Bench, model: str) -> None:
    """Events are numbered without a gap under one id; the last holds what is kept."""
    said = "one two three four five six seven eight nine ten"
    events: tuple[bytes, ...] = ()
    if model == "native":
        reply = openai_responses.reply_to_canonical(body(REPLIES["openai_responses"]))
        whole = encode("openai_responses", events_of(reply))
        events = tuple(event + b"\n\n" for event in whole.split(b"\n\n") if event)
        said = "Hi there"
    bench.upstream.play(text=said, chunks=10, delay_s=0.1, events=events)
    for session in bench.sessions:
        asked = {"model": model, "input": "go", "background": True, "stream": True}
        with connect_to(bench.gateway.url, 0) as client:
            lines = {"Host": client.host, "X-Session-Id": session}
            client.send(build("POST", RESPONSES, lines | {"Content-Type": "application/json"},
                              body(asked)))  # fmt: skip
            status, _, _ = client.read_head()
            assert status == 200
            early = b""
            for chunk in client.chunks():
                early += chunk
                if early.count(b"\n\n") >= 4 and early.endswith(b"\n\n"):
                    break
        seen = datas(early)
        name = seen[0]["response"]["id"]
        last = seen[-1]["sequence_number"]
        for client in bench.clients:
            rest = follow(client, name, last)
            whole_stream = seen + rest
            assert [e["sequence_number"] for e in whole_stream] == list(range(len(whole_stream)))
            assert whole_stream[-1]["type"] == "response.completed"
            assert text_of(whole_stream) == said
            assert {e["response"]["id"] for e in whole_stream if "response" in e} == {name}
            assert follow(client, name) == whole_stream
            assert follow(client, name, len(whole_stream) - 1) == []
            assert get(client, name).json() == whole_stream[-1]["response"]
    sent = bench.upstream.seen[-1].json()
    assert sent["stream"] is True
    assert "background" not in sent


@pytest.mark.parametrize("cancel", ["cancel", "delete"])
def test_cancelled_from_the_other_shard(bench: Bench, cancel: str) -> None:
    """The upstream is left, who follows is told, and it stays cancelled, or is forgotten."""
    bench.upstream.play("hang_body", cut_after=2, chunks=10, text="x" * 50)
    for session in bench.sessions:
        aborted = bench.upstream.counters.aborted
        name = start(bench.clients[0], "never ends", session)["id"]
        with RawClient(bench.gateway.url) as follower:
            lines = {"Host": follower.host}
            follower.send(build("GET", f"{RESPONSES}/{name}?stream=true", lines))
            assert follower.read_head()[0] == 200
            follower.read_until(b"output_text.delta")
            if cancel == "cancel":
                target = f"{RESPONSES}/{name}/cancel"
                reply = patient(lambda t=target: bench.clients[1].request("POST", t))  # type: ignore[misc]
                assert reply.json()["status"] == "cancelled", reply
            else:
                target = f"{RESPONSES}/{name}"
                reply = patient(lambda t=target: bench.clients[1].request("DELETE", t))  # type: ignore[misc]
                assert reply.json() == {"id": name, "object": "response", "deleted": True}
            told = follower.read_until(b"0\r\n\r\n")
            assert b"event: error" in told
            assert b"cancelled_on_request" in told
            assert b"response.completed" not in told
        now = aborted + 1
        wait_for(lambda n=now: bench.upstream.counters.aborted == n, 5, "the upstream left")  # type: ignore[misc]
        for client in bench.clients:
            if cancel == "delete":
                assert get(client, name).status == 404
            else:
                again = client.request("POST", f"{RESPONSES}/{name}/cancel")
                assert again.json()["status"] == "cancelled"
                assert get(client, name).json() == again.json()


def test_finished_response_stays_what_it_is_when_cancelled(bench: Bench) -> None:
    """And a new one may go on from it, but not from an unfinished one."""
    name = start(bench.clients[0], "first")["id"]
    shown = final(bench.clients[0], name)
    assert bench.clients[1].request("POST", f"{RESPONSES}/{name}/cancel").json() == shown
    later = start(bench.clients[1], "second", previous_response_id=name)
    assert final(bench.clients[0], later["id"])["status"] == "completed"
    roles = [message["role"] for message in bench.upstream.seen[-1].json()["messages"]]
    assert roles == ["user", "assistant", "user"]
    bench.upstream.play("hang")
    open_one = start(bench.clients[0], "third")["id"]
    asked = {"model": "up", "input": "x", "previous_response_id": open_one}
    reply = bench.clients[1].post_json(RESPONSES, asked)
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "previous_response_id"
    bench.clients[1].request("DELETE", f"{RESPONSES}/{open_one}")


@pytest.mark.parametrize("mode", ["status", "cut", "no_done", "stream_error", "malformed_sse"])
def test_failure_is_the_responses_state(bench: Bench, mode: Any) -> None:
    """Status and words; whoever follows gets them as the last events; it is never completed."""
    bench.upstream.play(mode, status=500)
    for session in bench.sessions:
        name = start(bench.clients[0], "doomed", session)["id"]
        for client in bench.clients:
            shown = final(client, name)
            assert shown["status"] == "failed", shown
            assert shown["error"]["code"] == "server_error"
            assert shown["error"]["message"]
            events = follow(client, name)
            assert events[-1]["type"] == "error"
            assert events[-2]["type"] == "response.failed"
            assert events[-2]["response"]["id"] == name


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": False}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"temperature": 9}, "temperature"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    bench: Bench, more: dict[str, Any], param: str
) -> None:
    """By name, and the upstream hears nothing."""
    before = bench.upstream.counters.requests
    asked = {"model": "up", "input": "x", "background": True} | more
    reply = bench.clients[0].post_json(RESPONSES, asked)
    assert reply.status in (400, 404)
    assert reply.json()["error"]["param"] == param
    assert bench.upstream.counters.requests == before


def test_bad_questions_about_a_response_are_refused(bench: Bench) -> None:
    """Each parameter by its name; a response that was not made so cannot be streamed again."""
    name = start(bench.clients[0], "asked about")["id"]
    final(bench.clients[0], name)
    for query, param in (
        ("stream=yes", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
    ):
        reply = get(bench.clients[1], name, f"?{query}")
        assert reply.status == 400
        assert reply.json()["error"]["param"] == param
    whole = bench.clients[0].post_json(RESPONSES, {"model": "up", "input": "x"}).json()["id"]
    assert get(bench.clients[0], whole, "?stream=true").status == 400
    assert bench.clients[0].request("POST", f"{RESPONSES}/{whole}/cancel").status == 400
    assert get(bench.clients[0], "resp_" + "0" * 32, "?stream=true").status == 404


def test_many_events_and_a_long_answer_cross_the_mesh(bench: Bench) -> None:
    """More than a log page, a ring record or a log holds of one event."""
    bench.upstream.play(text="word " * 60_000, chunks=2000)
    name = start(bench.clients[0], "much", bench.sessions[1])["id"]
    shown = final(bench.clients[1], name)
    assert words(shown) == "word " * 60_000
    for client in bench.clients:
        events = follow(client, name)
        assert text_of(events) == "word " * 60_000
        assert events[-1]["response"] == shown


def test_sdk_polls_follows_and_cancels(bench: Bench) -> None:
    """The unmodified OpenAI client, as its documentation shows."""
    url = f"{bench.gateway.url}/v1"
    bench.upstream.play(delay_s=0.05)
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=20) as client:
        made = client.responses.create(model="up", input="from the SDK", background=True)
        assert made.status == "queued"
        wait_for(lambda: client.responses.retrieve(made.id).status == "completed", 10, "its end")
        kept = client.responses.retrieve(made.id)
        assert kept.output_text == "answer to from the SDK"
        with client.responses.create(
            model="up", input="cut off", background=True, stream=True
        ) as stream:
            first = next(iter(stream))
        assert first.type == "response.created"
        rest = list(client.responses.retrieve(first.response.id, stream=True, starting_after=0))
        assert [event.sequence_number for event in rest] == list(range(1, len(rest) + 1))
        assert rest[-1].type == "response.completed"
        bench.upstream.play("hang")
        endless = client.responses.create(model="up", input="endless", background=True)
        assert client.responses.cancel(endless.id).status == "cancelled"
        client.responses.delete(endless.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(endless.id)


def test_worker_that_dies_leaves_its_responses_to_another(short_tmp: Path) -> None:
    """One is made once more, under its id; who followed the first try is told that it broke."""
    with Upstream() as upstream:
        config = ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "background-death", config=config, workers=2) as gateway:
            upstream.play("hang_body", cut_after=1, chunks=4)
            pids = gateway.worker_pids()
            session = session_on(gateway.url, 0)
            with connect_to(gateway.url, 0) as client:
                name = start(client, "outlives its worker", session)["id"]
            with connect_to(gateway.url, 1) as survivor:
                survivor.send(
                    build("GET", f"{RESPONSES}/{name}?stream=true", {"Host": survivor.host})
                )
                survivor.read_until(b"output_text.delta")
                upstream.play()
                os.kill(pids[0], signal.SIGKILL)
                told = survivor.read_until(b"0\r\n\r\n")
                assert b"stream_lost" in told
                shown = final(survivor, name)
                assert shown["status"] == "completed"
                assert words(shown) == "answer to outlives its worker"
                assert text_of(follow(survivor, name)) == "answer to outlives its worker"


def test_worker_that_dies_twice_leaves_a_failed_response(short_tmp: Path) -> None:
    """And a dead letter: nobody waits for ever for what no one makes."""
    with Upstream() as upstream:
        config = ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "background-twice", config=config, workers=1) as gateway:
            upstream.play("hang")
            with RawClient(gateway.url) as client:
                name = start(client, "poison")["id"]

            def failed() -> dict[str, Any] | None:
                reply = gateway.ask(f"{RESPONSES}/{name}")
                shown: dict[str, Any] = json.loads(reply.body)
                return shown if shown.get("status") == "failed" else None

            for _ in range(2):
                # A busy machine may give the call up at once, for want of a second worker.
                wait_for(lambda: upstream.counters.open == 1 or failed(), 15, "the call upstream")
                if upstream.counters.open:
                    os.kill(gateway.worker_pids()[0], signal.SIGKILL)
                    wait_for(lambda: upstream.counters.open == 0, 10, "the death")
                    wait_for(lambda: gateway.ask("/ready").status == 200, 15, "a new worker")
            assert "worker" in wait_for(failed, 15, "its failure")["error"]["message"]
            assert gateway.ask("/api/v1/dlq").json()["count"] == 1
