"""Batch jobs from any worker: small ones answered at once, large ones fetched, either cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import CHAT, each_shard, render, session_on
from tests.support.toml import ECHO, NO_RETRIES, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

BATCH = "/api/v1/batch"
LATER = {"Prefer": "respond-async"}


@dataclass(slots=True)
class Bench:
    """Two shards before an upstream, with a connection to each."""

    gateway: Gateway
    upstream: Upstream
    clients: tuple[RawClient, RawClient]

    def start(self, prompts: list[str], **more: Any) -> str:
        """Hand over a job; answer its id."""
        reply = self.clients[0].post_json(BATCH, {"prompts": prompts, "model": "up"} | more, LATER)
        assert reply.status == 202, reply
        assert reply.headers["location"] == f"{BATCH}/{reply.json()['job_id']}"
        job_id: str = reply.json()["job_id"]
        return job_id

    def progress(self, job_id: str, client: int = 1) -> dict[str, Any]:
        """How a job stands."""
        reply = self.clients[client].request("GET", f"{BATCH}/{job_id}/progress")
        assert reply.status == 200, reply
        found: dict[str, Any] = reply.json()
        return found

    def done(self, job_id: str) -> dict[str, Any]:
        """Wait for a job's end."""
        wait_for(lambda: self.progress(job_id)["status"] != "in_progress", 60, "the job's end")
        return self.progress(job_id)

    def lines(self, job_id: str) -> list[dict[str, Any]]:
        """The results, alike from both workers."""
        bodies = []
        for client in self.clients:
            reply = client.request("GET", f"{BATCH}/{job_id}/results")
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/x-ndjson"
            bodies.append(reply.body)
        assert bodies[0] == bodies[1]
        return [json.loads(line) for line in bodies[0].splitlines()]


@pytest.fixture(scope="module")
def host(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """Two shards before an upstream that is asked once."""
    with Upstream() as upstream:
        config = NO_RETRIES + ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "batch", config=config, workers=2) as gateway:
            yield gateway, upstream


@pytest.fixture
def bench(host: tuple[Gateway, Upstream]) -> Iterator[Bench]:
    """Its connections are one test's: between two they might idle until they are closed."""
    gateway, upstream = host
    with each_shard(gateway.url, timeout_s=60) as clients:
        yield Bench(gateway, upstream, clients)


@pytest.fixture(autouse=True)
def well_behaved(bench: Bench) -> None:
    """Every test starts with an upstream that answers."""
    bench.upstream.play()


@pytest.mark.parametrize("taker", [0, 1])
def test_small_batch_is_answered_in_its_response(bench: Bench, taker: int) -> None:
    """Results in the order of the prompts, the failed one with its error; counts and job id."""
    bench.upstream.queue("status", status=400)
    body = {"prompts": ["one", "two", "three"], "model": "up", "session_id": "s-1",
            "max_concurrency": 1}  # fmt: skip
    reply = bench.clients[taker].post_json(BATCH, body)
    assert reply.status == 200, reply
    answer = reply.json()
    assert [r["text"] for r in answer["results"]] == [None, "answer to two", "answer to three"]
    assert [r["index"] for r in answer["results"]] == [0, 1, 2]
    assert answer["results"][0]["error"]["code"]
    assert answer["results"][1]["usage"]["total_tokens"] == 12
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (3, 2, 1)
    shown = bench.progress(answer["job_id"])
    assert (shown["status"], shown["completed"], shown["failed"]) == ("completed", 2, 1)
    assert (shown["session_id"], shown["max_concurrency"]) == ("s-1", 1)
    assert bench.lines(answer["job_id"]) == answer["results"]


def test_each_prompt_has_a_record_of_its_own(bench: Bench) -> None:
    """Its id is a request id like any other, on every worker."""
    job_id = bench.start(["alpha", "beta"])
    bench.done(job_id)
    for line in bench.lines(job_id):
        for client in bench.clients:
            record = client.request("GET", f"/api/v1/result/{line['request_id']}").json()
            assert (record["status"], record["result"]) == ("completed", line["text"])
            refused = client.request("DELETE", f"/api/v1/requests/{line['request_id']}")
            assert (refused.status, refused.json()["error"]["code"]) == (409, "request_finished")


def test_concurrency_of_a_job_is_kept(bench: Bench) -> None:
    """Never more at once than asked for, and no fewer when there is work."""
    bench.upstream.play(first_s=0.1)
    wait_for(lambda: bench.upstream.counters.open == 0, 5, "an idle upstream")
    bench.upstream.counters.max_working = 0
    assert bench.done(bench.start([f"c {n}" for n in range(40)], max_concurrency=3))
    assert bench.upstream.counters.max_working == 3


def test_cancelled_job_stops_at_once(bench: Bench) -> None:
    """Running prompts are cut off upstream, waiting ones never start; twice is once."""
    bench.upstream.play("hang")
    counters = bench.upstream.counters
    wait_for(lambda: counters.open == 0, 5, "an idle upstream")
    requests, aborted = counters.requests, counters.aborted
    job_id = bench.start([f"x {n}" for n in range(30)], max_concurrency=4)
    wait_for(lambda: counters.requests == requests + 4, 20, "four prompts upstream")
    for client in bench.clients:
        reply = client.request("DELETE", f"{BATCH}/{job_id}")
        assert (reply.status, reply.json()["status"]) == (200, "cancelled"), reply
        assert reply.json()["cancelled"] == 30
    wait_for(lambda: counters.aborted == aborted + 4, 5, "all four cut off")
    assert counters.requests == requests + 4
    lines = bench.lines(job_id)
    assert [line["status"] for line in lines] == ["cancelled"] * 30
    assert {line["error"]["code"] for line in lines} == {"cancelled_on_request"}


def test_finished_job_cannot_be_cancelled(bench: Bench) -> None:
    """409 with what it is."""
    job_id = bench.start(["x"])
    bench.done(job_id)
    for client in bench.clients:
        reply = client.request("DELETE", f"{BATCH}/{job_id}")
        assert (reply.status, reply.json()["error"]["code"]) == (409, "job_finished")


def test_client_that_leaves_cancels_what_it_waited_for(bench: Bench) -> None:
    """Nobody knows the id of the job."""
    bench.upstream.play("hang")
    counters = bench.upstream.counters
    wait_for(lambda: counters.open == 0, 5, "an idle upstream")
    aborted = counters.aborted
    with RawClient(bench.gateway.url) as client:
        client.send(render(client.host, {"prompts": ["a", "b"], "model": "up"}, {}, "fast", BATCH))
        wait_for(lambda: counters.open == 2, 20, "both prompts upstream")
    wait_for(lambda: counters.aborted == aborted + 2, 10, "both cut off")


def test_batch_that_takes_too_long_to_wait_for_is_accepted(bench: Bench) -> None:
    """202 with the job's id when the time is up."""
    bench.upstream.play("hang")
    body = {"prompts": ["slow"], "model": "up"}
    reply = bench.clients[0].post_json(BATCH + "?wait=0.2", body)
    assert reply.status == 202, reply
    job_id = reply.json()["job_id"]
    assert bench.progress(job_id)["status"] == "in_progress"
    assert bench.clients[1].request("DELETE", f"{BATCH}/{job_id}").status == 200


@pytest.mark.timeout(240)
def test_ten_thousand_prompts_are_one_job(bench: Bench) -> None:
    """The most there may be; interactive calls are served meanwhile."""
    prompts = [f"p {n}" for n in range(10_000)]
    job_id = bench.start(prompts, model="echo", max_concurrency=16)
    took = []
    while bench.progress(job_id)["status"] == "in_progress":
        began = time.monotonic()
        assert bench.clients[0].post_json(CHAT, chat("now")).status == 200
        took.append(time.monotonic() - began)
    print(f"{len(took)} calls meanwhile, the slowest after {max(took, default=0):.3f} s")
    lines = bench.lines(job_id)
    assert [line["text"] for line in lines] == prompts
    assert [line["index"] for line in lines] == list(range(10_000))


def test_job_of_a_session_runs_where_the_session_lives(bench: Bench) -> None:
    """As its interactive calls do."""
    session = session_on(bench.gateway.url, 1)
    job_id = bench.start(["here"], model="echo", session_id=session)
    assert bench.done(job_id)["session_id"] == session


def test_busy_upstream_gets_its_prompts_later(bench: Bench) -> None:
    """A 429 sends a prompt back to wait instead of failing it."""
    bench.upstream.queue("status", times=2, status=429)
    job_id = bench.start(["patience"])
    assert bench.done(job_id)["completed"] == 1
    assert bench.lines(job_id)[0]["text"] == "answer to patience"


@pytest.mark.parametrize("tail", ["", "/progress", "/results"])
@pytest.mark.parametrize("job_id", ["nonsense", "0", "3f9de4e0-0000-4000-8000-000000000000"])
def test_unknown_jobs_are_404(bench: Bench, tail: str, job_id: str) -> None:
    """On every route of a job."""
    for client in bench.clients:
        reply = client.request("GET", f"{BATCH}/{job_id}{tail}")
        assert (reply.status, reply.json()["error"]["code"]) == (404, "job_not_found")
    assert bench.clients[0].request("DELETE", f"{BATCH}/{job_id}").status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "one"}, "prompts"),
        ({"prompts": ["a", ""]}, "prompts[...]"),
        ({"prompts": ["a", 7]}, "prompts[1]"),
        ({"prompts": ["a"] * 10_001}, "prompts"),
        ({"prompts": ["a"], "max_concurrency": 0}, "max_concurrency"),
        ({"prompts": ["a"], "max_concurrency": 17}, "max_concurrency"),
        ({"prompts": ["a"], "session_id": ""}, "session_id"),
        ({"prompts": ["a"], "model": ""}, "model"),
        ({"prompts": ["a"], "temperature": 3}, "temperature"),
        ({"prompts": ["a"], "stream": True}, "stream"),
    ],
)
def test_every_wrong_field_is_named(bench: Bench, body: dict[str, Any], field: str) -> None:
    """422, and no job."""
    reply: RawReply = bench.clients[0].post_json(BATCH, body)
    assert reply.status == 422, reply
    error = reply.json()["error"]
    assert error["code"] == "VALIDATION_ERROR"
    assert error["param"].partition("[")[0] == field.partition("[")[0]


def test_unknown_model_is_404(bench: Bench) -> None:
    """Before anything is kept."""
    reply = bench.clients[0].post_json(BATCH, {"prompts": ["a"], "model": "nobody"})
    assert (reply.status, reply.json()["error"]["param"]) == (404, "model")
