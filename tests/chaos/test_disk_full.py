"""A disk that is full or failing under the state directory: service goes on, letters are kept."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.conftest import StartHost
from tests.conftest import require
from tests.support.host import Host, kill, metric
from tests.support.load import Crowd, Load
from tests.support.mounts import can_mount, tmpfs
from tests.support.raw import ask
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["*"]
"""
SYNC_S = 1.0
CHAT = "/v1/chat/completions"
FAULTS = {
    "TPO_TEST": "1",
    "TPO_FAILPOINTS": "dlq.half=drop:0.3;dlq.before_fsync=drop:0.5",
}


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def metrics(host: Host) -> str:
    """The ops port's page."""
    return ask(host.ops, "/metrics").body.decode()


def writes_settled(host: Host) -> bool:
    """Whether nothing waits in memory and two rounds of syncing found nothing wrong."""
    before = metric(metrics(host), "tpo_dlq_write_errors_total")
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2 * SYNC_S, 10, "two rounds")
    page = metrics(host)
    waiting = metric(page, "tpo_store_broken", part="letters")
    return not waiting and metric(page, "tpo_dlq_write_errors_total") == before


def fails(host: Host, upstream: Upstream, number: int, prefix: str) -> set[str]:
    """Make calls that the upstream refuses; each is to become a dead letter."""
    upstream.play("status", status=500)
    with Crowd(
        host.url, number, model="up-1", text="x" * 2000, stream=False, prefix=prefix
    ) as crowd:
        attempts = crowd.ended()
    assert {a.outcome for a in attempts} == {"error"}, crowd.outcomes()
    upstream.play()
    return {a.id for a in attempts}


def test_a_full_disk_stops_nothing_and_loses_no_letter(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float
) -> None:
    """Letters wait in memory, the host says degraded, and writes them when there is room."""
    require(can_mount(), "the right to mount")
    host = start_host(start=False, config=RELAY.format(url=upstream.url))
    with tmpfs(host.state_dir, "192m"):
        host.start()
        host.warm()
        ids = fails(host, upstream, 10, "before")
        host.lettered(ids, 5 * slack)
        filler = fill(host.state_dir)
        ids |= fails(host, upstream, 60, "full")
        wait_for(lambda: metric(metrics(host), "tpo_dlq_write_errors_total") > 0, 5, "an error")
        with Load(host.url, rng, clients=8, model="up-1") as load:
            load.more(50)
            victim = host.slot(0)["pid"]
            kill(victim)
            host.replaced(0, victim)
            load.more(50)
            load.stop()
            assert load.count("refused", "hung") == 0, load.outcomes()
        wait_for(lambda: ids <= set(host.letters_by_request()), 5 * slack, "every letter")
        ready = host.ask("/ready")
        assert ready.status == 200
        assert ready.json()["degraded"], "a store that cannot write"
        filler.unlink()
        wait_for(lambda: not host.ask("/ready").json()["degraded"], 15 * slack, "recovery")
        host.end()
        # What memory held is on the disk now.
        host.start()
        letters = host.letters_by_request()
        assert ids <= set(letters)
        assert set(letters.values()) == {1}
        assert metric(metrics(host), "tpo_dlq_dropped_total") == 0
        host.stop()


def test_with_always_a_call_that_cannot_be_on_disk_is_refused(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """It does not reach the upstream; when there is room again, calls pass."""
    require(can_mount(), "the right to mount")
    config = RELAY.format(url=upstream.url) + '[store]\ndurability = "always"\n'
    host = start_host(start=False, config=config)
    question = {"model": "up-1", "messages": [{"role": "user", "content": "x" * 20_000}]}
    with tmpfs(host.state_dir, "192m"):
        host.start()
        host.warm()
        assert ask(host.url, CHAT, question).status == 200
        filler = fill(host.state_dir)
        wait_for(lambda: ask(host.url, CHAT, question).status == 507, 10 * slack, "a refusal")
        asked = upstream.counters.requests
        reply = ask(host.url, CHAT, question)
        assert (reply.status, upstream.counters.requests) == (507, asked)
        assert reply.json()["error"]["code"] == "not_on_disk"
        assert float(reply.headers["retry-after"]) > 0
        filler.unlink()
        wait_for(lambda: ask(host.url, CHAT, question).status == 200, 20 * slack, "an answer")
        host.stop()


def test_torn_writes_and_failed_syncs_lose_and_double_nothing(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Writes are short and syncs fail at random: one letter per call, before and after."""
    host = start_host(config=RELAY.format(url=upstream.url), env=FAULTS)
    host.warm()
    ids: set[str] = set()
    for batch in range(30):
        ids |= fails(host, upstream, 15, f"batch{batch}")
        host.lettered(ids, 5 * slack)
        if batch >= 4 and metric(metrics(host), "tpo_dlq_write_errors_total") > 0:
            break
    else:
        raise AssertionError("no write failed")
    wait_for(lambda: writes_settled(host), 40, "a sync that worked", every_s=SYNC_S)
    kill(host.control_pid)
    wait_for(lambda: host.events("control_died"), 5, "its death")
    host.lettered(ids, 5 * slack)
    host.end()


def test_jobs_results_budgets_and_records_wait_for_room(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Nothing that was answered meanwhile is lost: it is written when there is room again."""
    config = RELAY.format(url=upstream.url) + "[stages.token_budget]\nsession = { hard = 100000 }\n"
    host = start_host(start=False, config=config)
    with tmpfs(host.state_dir, "192m"):
        host.start()
        host.warm()
        upstream.play("answer", first_s=0.2)
        job = host.ask("/api/v1/batch", {"prompts": ["p"] * 120, "model": "up-1"}).json()["job_id"]
        filler = fill(host.state_dir)
        before = len(upstream.seen)
        body = {"model": "up-1", "messages": [{"role": "user", "content": "spend"}]}
        for _ in range(20):
            assert host.ask("/v1/chat/completions", body, {"x-session-id": "s"}).status == 200
        told = host.ask("/api/v1/infer", {"prompt": "later", "model": "up-1"})
        assert told.status in (200, 202), told
        wait_for(lambda: len(upstream.seen) >= before + 21, 20 * slack, "calls go on")
        wait_for(lambda: "store-calls" in degraded(host), 20 * slack, "degraded")
        host.settle()  # the last call is charged after its answer
        used = host.ask("/api/v1/sessions/s/budget").json()["tokens_used"]
        filler.unlink()
        wait_for(lambda: not degraded(host), 15 * slack, "recovery")
        wait_for(lambda: progress(host, job)["pending"] == 0, 60 * slack, "the job")
        assert progress(host, job)["completed"] == 120
        for slot in (0, 1):  # what they had in memory alone is gone
            victim = host.slot(slot)["pid"]
            kill(victim)
            host.replaced(slot, victim)
        result = host.ask_store(f"/api/v1/result/{told.json()['request_id']}")
        assert result["status"] == "completed"
        records = host.ask_store("/api/v1/audit?limit=1000&session_id=s")
        assert len(records["entries"]) == 20
        host.end()
        host.start()
        assert host.ask("/api/v1/sessions/s/budget").json()["tokens_used"] == used > 0
        host.stop()


def degraded(host: Host) -> set[str]:
    """What the host says is missing."""
    return set(host.ask("/ready").json()["degraded"])


def progress(host: Host, job: str) -> dict[str, Any]:
    """How a job stands."""
    return host.ask_store(f"/api/v1/batch/{job}/progress")
