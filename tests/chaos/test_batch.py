"""Batch jobs through every death: each prompt ends once, and what had ended is not run again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from random import Random
from typing import Any

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill
from tests.support.raw import RawClient
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tpo_mp.store.job_questions import ASK_S

PROMPTS = 240
AT_ONCE = 16
RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["up-1"]
"""


class Batch:
    """One job on a host, and what its upstream saw of it."""

    def __init__(self, host: Host, upstream: Upstream, prompts: int = PROMPTS) -> None:
        self.host = host
        self.upstream = upstream
        self.prompts = [f"prompt {n} of {prompts}" for n in range(prompts)]
        body = {"prompts": self.prompts, "model": "up-1", "max_concurrency": AT_ONCE}
        with RawClient(host.url) as client:
            reply = client.post_json("/api/v1/batch", body)
        assert reply.status == 202, reply
        self.id: str = reply.json()["job_id"]
        self.known: dict[str, int] = {}
        """How often prompts had run that had ended when somebody looked."""

    def progress(self) -> dict[str, Any]:
        """How it stands, as soon as somebody says so."""
        return self.host.ask_store(f"/api/v1/batch/{self.id}/progress")

    def reached(self, completed: int) -> None:
        """Wait until so many prompts are completed, and remember which."""
        wait_for(lambda: self.progress()["completed"] >= completed, 60, f"{completed} prompts")
        ended = [self.prompts[line["index"]] for line in self.lines()]
        assert len(ended) >= completed
        runs = self.runs()
        self.known = {text: runs[text] for text in ended}

    def lines(self) -> list[dict[str, Any]]:
        """The results so far."""
        reply = self.host.ask(f"/api/v1/batch/{self.id}/results")
        assert reply.status == 200, reply
        return [json.loads(line) for line in reply.body.splitlines()]

    def runs(self) -> Counter[str]:
        """How often the upstream was asked each prompt."""
        bodies = [json.loads(seen.body) for seen in list(self.upstream.seen) if seen.body]
        return Counter(body["messages"][0]["content"] for body in bodies)

    def check(self, deaths: int, within_s: float = 90.0) -> None:
        """All completed, in order, once; only what was running at a death ran again."""
        wait_for(lambda: self.progress()["pending"] == 0, within_s, "the end of the job")
        found = self.progress()
        assert (found["status"], found["completed"]) == ("completed", len(self.prompts)), found
        lines = self.lines()
        assert [line["index"] for line in lines] == list(range(len(self.prompts)))
        for line, prompt in zip(lines, self.prompts, strict=True):
            assert (line["status"], line["text"]) == ("completed", f"answer to {prompt}")
        assert len({line["request_id"] for line in lines}) == len(lines)
        runs = self.runs()
        again = {text: n for text, n in runs.items() if n > 1}
        print(f"run again after {deaths} deaths: {len(again)}")
        assert set(runs) == set(self.prompts)
        assert sum(runs.values()) - len(runs) <= deaths * AT_ONCE
        assert {text: runs[text] for text in self.known} == self.known


def start(start_host: StartHost, upstream: Upstream) -> Batch:
    """A job whose prompts take a moment each, a third of them done."""
    upstream.play(first_s=0.05)
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    batch = Batch(host, upstream)
    batch.reached(PROMPTS // 3)
    return batch


def test_killed_workers_delay_a_job(start_host: StartHost, upstream: Upstream, rng: Random) -> None:
    """One after the other, in any order; the prompts they had wait and run again."""
    batch = start(start_host, upstream)
    for slot in rng.sample(range(2), 2):
        victim = batch.host.slot(slot)["pid"]
        kill(victim)
        batch.host.replaced(slot, victim, 30)
    batch.check(deaths=2)
    assert batch.host.letters() == []
    batch.host.end()


def test_killed_control_delays_a_job(start_host: StartHost, upstream: Upstream) -> None:
    """Workers keep what they have until the next control takes it; nothing runs twice."""
    batch = start(start_host, upstream)
    victim = batch.host.control_pid
    kill(victim)
    batch.host.event("control_died", 20, pid=victim)
    batch.check(deaths=0)
    batch.host.end()


def test_a_batch_that_comes_before_the_next_control_knows_the_jobs_waits(
    start_host: StartHost,
) -> None:
    """It lies on the ring when that one starts, which reads the ring before it reads the store."""
    host = start_host()
    host.warm()
    with RawClient(host.url, timeout_s=60) as client:
        for turn in range(5):
            victim = host.control_pid
            kill(victim)
            began = time.monotonic()
            told = client.post_json("/api/v1/batch", {"prompts": ["p"], "model": "echo"})
            took_s = time.monotonic() - began
            print(f"turn {turn}: {told.status} after {took_s:.2f} s")
            # On a machine that stood still nobody came for as long as a worker waits.
            assert told.status == 200 or took_s >= ASK_S, told.body
            if told.status == 200:
                break
            host.warm()
    assert (told.status, told.json()["succeeded"]) == (200, 1), told.body
    host.end()


def test_job_goes_on_after_everything_died(start_host: StartHost, upstream: Upstream) -> None:
    """The whole group killed twice; each start continues where the last one ended."""
    batch = start(start_host, upstream)
    for step in (1, 2):
        os.killpg(batch.host.pid, signal.SIGKILL)
        batch.host.wait()
        wait_for(lambda: not batch.host.processes(), 20, "no process left")
        batch.host.close_unswept()
        batch.host.start()
        if step == 1:
            batch.reached(PROMPTS // 2)
    batch.check(deaths=2)
    assert batch.host.letters() == []
    batch.host.end()


def test_rolling_restart_costs_a_job_nothing(start_host: StartHost, upstream: Upstream) -> None:
    """Workers finish the prompts they have; the next ones go to their successors."""
    batch = start(start_host, upstream)
    before = set(batch.host.worker_pids())
    assert batch.host.tpo("restart").returncode == 0
    wait_for(lambda: not before & set(batch.host.worker_pids()), 60, "other workers")
    batch.check(deaths=0)
    batch.host.end()
