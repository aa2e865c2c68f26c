"""The audit of a running gateway: the same from both workers, over a death and a restart."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.load import Crowd
from tests.support.raw import ClosedEarlyError, build, chat
from tests.support.shards import connect_to, session_on
from tests.support.toml import ECHO
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
AUDIT = "/api/v1/audit"
CONFIG = (
    ECHO.replace('models = ["echo"]', 'models = ["cheap", "dear", "dark"]')
    + ECHO.replace('"echo"', '"slow"', 1).replace('["echo"]', '["slow"]')
    + "delay_ms = 4000\n"
    + """
[prices]
builtin = false
[prices.models]
cheap = { input = 1, output = 2 }
dear = { input = 100, output = 200 }
"""
)


@pytest.fixture(scope="module")
def gateway(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers with three models, two of which have a price."""
    with Gateway(short_tmp / "audit", config=CONFIG, workers=2) as running:
        yield running


class Asked:
    """What a test asked, and what the audit says about it."""

    def __init__(self, gateway: Gateway, session: str) -> None:
        self.gateway = gateway
        self.sessions = [f"{session}-{n}" for n in range(5)]
        self.ids: list[str] = []
        self.cost: Counter[str] = Counter()

    def ask(self, n: int, *models: str) -> None:
        """``n`` calls, each on a connection of its own."""
        for i in range(n):
            model = models[i % len(models)]
            told = self.gateway.ask(
                CHAT, chat("some words", model=model), {"x-session-id": self.sessions[i % 5]}
            )
            assert told.status == 200, told.body
            self.ids.append(told.headers["x-tpo-call-id"])
            usage = told.json()["usage"]
            dollars = usage["prompt_tokens"] + 2 * usage["completion_tokens"]
            self.cost[model] += dollars * {"cheap": 1, "dear": 100}.get(model, 0)

    def entries(self, **filters: Any) -> list[dict[str, Any]]:
        """Every page of it, 7 to a page."""
        found: list[dict[str, Any]] = []
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        after = ""
        while True:
            told = self.gateway.ask(f"{AUDIT}?limit=7&{query}{after}").json()
            found += told["entries"]
            if told["next"] is None:
                return found
            after = f"&after={told['next']}"

    def mine(self) -> list[str]:
        """The ids of its calls that are in the audit, oldest first."""
        known = set(self.ids)
        return [e["id"] for e in self.entries(limit=7) if e["id"] in known][::-1]

    def settled(self) -> bool:
        """Whether the audit has each of its calls, once."""
        found = [e["id"] for e in self.entries()]
        return Counter(i for i in found if i in set(self.ids)) == Counter(self.ids)


def test_every_call_is_in_the_audit_once_whoever_is_asked(gateway: Gateway) -> None:
    """With its cost; filters take all of what they name and nothing else."""
    asked = Asked(gateway, "once")
    url = gateway.url
    asked.sessions = [session_on(url, n % 2, f"once-{n}", model="dark") for n in range(5)]
    asked.ask(24, "cheap", "dear", "dark")
    wait_for(asked.settled, 10.0, "all calls in the audit")
    entries = [e for e in asked.entries() if e["id"] in asked.ids]
    assert {e["shard"] for e in entries} == {0, 1}
    assert all(e["terminal"] == "done" and e["latency_ms"] > 0 for e in entries)
    for model in ("cheap", "dear"):
        costs = [e["cost_usd"] for e in entries if e["model_id"] == model]
        assert sum(costs) == pytest.approx(asked.cost[model] / 1e6)
    assert {e["cost_usd"] for e in entries if e["model_id"] == "dark"} == {None}
    one = entries[3]
    for name, value in [("request_id", one["id"]), ("session_id", one["session_id"]),
                        ("model_id", "dear"), ("status", 200), ("terminal", "failed"),
                        ("cache_hit", "true"), ("min_latency_ms", 60_000),
                        ("since", one["timestamp"]), ("until", one["timestamp"])]:  # fmt: skip
        field = {"request_id": "id"}.get(name, name)
        found = [e["id"] for e in asked.entries(**{name: value}) if e["id"] in asked.ids]
        expected = {
            "since": lambda e: e["timestamp"] >= one["timestamp"],
            "until": lambda e: e["timestamp"] < one["timestamp"],
            "cache_hit": lambda _: False,
            "min_latency_ms": lambda _: False,
        }.get(name, lambda e, field=field, value=value: e[field] == value)
        assert found == [e["id"] for e in entries if expected(e)], name
    refused = gateway.ask(f"{AUDIT}?status=abc")
    assert (refused.status, refused.json()["error"]["param"]) == (400, "status")


def test_calls_are_found_by_their_tags(gateway: Gateway) -> None:
    """Whichever worker took them; a tag that is none is told and nothing runs."""
    asked = Asked(gateway, "tags")
    expected: dict[str, list[str]] = {}
    for number in range(6):
        tags = ["nightly", f"run:{number % 2}"]
        headers = {"x-session-id": f"tags-{number}", "x-tpo-tags": ", ".join(tags)}
        told = gateway.ask(CHAT, chat("words", model="cheap"), headers)
        asked.ids.append(told.headers["x-tpo-call-id"])
        expected[asked.ids[-1]] = tags
    asked.ask(1, "cheap")
    wait_for(asked.settled, 10.0, "all calls in the audit")
    found = asked.entries(tag="nightly")
    assert {e["id"]: e["tags"] for e in found} == expected
    assert len(found) == 6
    assert {e["id"] for e in asked.entries(tag="run:1")} == set(asked.ids[1:6:2])
    assert next(e["tags"] for e in asked.entries() if e["id"] == asked.ids[6]) == []
    refused = gateway.ask(CHAT, chat("words", model="cheap"), {"x-tpo-tags": "two words"})
    assert (refused.status, refused.json()["error"]["param"]) == (400, "x-tpo-tags")


def test_sums_and_export_say_what_the_pages_say(gateway: Gateway) -> None:
    """And the metric has the same dollars."""
    asked = Asked(gateway, "sums")
    asked.ask(12, "cheap", "dark")
    wait_for(asked.settled, 10.0, "all calls in the audit")
    entries = asked.entries(model_id="cheap")
    stats = gateway.ask(f"{AUDIT}/stats?model_id=cheap").json()
    assert stats["total_entries"] == len(entries) == stats["by_model"]["cheap"]["total_entries"]
    assert stats["cost_usd"] == pytest.approx(sum(e["cost_usd"] for e in entries))
    assert stats["prompt_tokens"] == sum(e["prompt_tokens"] for e in entries)
    mean = sum(e["latency_ms"] for e in entries) / len(entries)
    assert stats["avg_latency_ms"] == pytest.approx(mean)
    assert gateway.ask(f"{AUDIT}/stats?model_id=dark").json()["unpriced"] >= 6
    told = gateway.ask(f"{AUDIT}/export?model_id=cheap")
    assert told.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in told.body.splitlines()] == entries
    page = gateway.metrics()
    (line,) = [x for x in page.splitlines() if x.startswith("orchestrator_inference_cost_usd_total")
               and 'model="cheap"' in x]  # fmt: skip
    assert float(line.rpartition(" ")[2]) == pytest.approx(stats["cost_usd"])


def test_entries_outlive_a_worker_and_the_gateway(short_tmp: Path) -> None:
    """One worker is killed between calls; then everything stops and starts again."""
    with Gateway(short_tmp / "lives", config=CONFIG, workers=2) as gateway:
        asked = Asked(gateway, "lives")
        asked.ask(10, "cheap")
        wait_for(asked.settled, 10.0, "the first calls")
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        asked.ask(10, "dear")
        wait_for(asked.settled, 15.0, "the calls after the death")
        before = asked.entries()
        gateway.stop()
        gateway.start()
        assert asked.entries() == before
        stats = gateway.ask(f"{AUDIT}/stats").json()
        assert {m: s["total_entries"] for m, s in stats["by_model"].items()} == {
            "cheap": 10, "dear": 10,
        }  # fmt: skip


def test_calls_that_died_with_their_worker_are_in_the_audit(gateway: Gateway) -> None:
    """As crashed, once each, and so every accepted call is: one by one the dead letters'."""
    with (
        connect_to(gateway.url, 1, model="dark") as held,
        Crowd(gateway.url, 30, model="slow", stream=False, prefix="crash") as crowd,
    ):
        head = {"host": held.host, "content-type": "application/json", "x-request-id": "held"}
        held.send(build("POST", CHAT, head, json.dumps(chat("hi", model="slow")).encode()))
        wait_for(lambda: open_calls(gateway) >= 31, 10.0, "all of them accepted")
        victim = gateway.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        attempts = crowd.ended()
        with pytest.raises(ClosedEarlyError):
            held.read_head()
    cut = {a.id for a in attempts if a.outcome == "cut"}
    assert cut | {a.id for a in attempts if a.outcome == "ok"} == {a.id for a in attempts}
    cut.add("held")

    def told() -> dict[str | None, list[str]]:
        found: dict[str | None, list[str]] = {}
        page = gateway.ask(f"{AUDIT}?model_id=slow&limit=1000").json()
        for entry in page["entries"]:
            found.setdefault(entry["error"], []).append(entry["client_request_id"])
        return found

    wait_for(lambda: sum(map(len, told().values())) == 31, 15.0, "a record of each")
    assert sorted(told()["worker_lost"]) == sorted(cut)
    letters = gateway.ask("/api/v1/dlq").json()["entries"]
    assert {letter["client_request_id"] for letter in letters} >= cut
    entries = gateway.ask(f"{AUDIT}?terminal=crashed&model_id=slow").json()["entries"]
    crashed = next(entry for entry in entries if entry["error"] == "worker_lost")
    assert (crashed["status"], crashed["cost_usd"]) == (502, None)

    def replaced() -> bool:
        slot = gateway.status()["slots"][1]
        return slot["pid"] not in (None, victim) and slot["state"] == "ready"

    wait_for(replaced, 20.0, "another worker in the slot")
    wait_for(lambda: shard_of(gateway) == "1", 20.0, "calls on the new worker")


def shard_of(gateway: Gateway) -> str:
    """Where one more call ran."""
    return gateway.ask(CHAT, chat("hi", model="dark")).headers["x-tpo-shard"]


def open_calls(gateway: Gateway) -> float:
    """How many are open on the host."""
    return metric(gateway.metrics(), "tpo_open_calls")
