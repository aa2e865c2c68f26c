"""Dead letters that the gateway asks again by itself, through the deaths of its processes."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, defaultdict
from typing import Any

import psutil
import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.messages import CHAT
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

SESSIONS = 5
REPLAY = "[store.replay]\nenabled = true\nconcurrency = 4\n"


def config(upstream: Upstream, replay: str = REPLAY) -> str:
    """An upstream that can be told to fail; no retries but the scheduler's."""
    return ECHO + backend("up", upstream.base_url) + replay


def fail(gateway: Gateway, upstream: Upstream, n: int) -> None:
    """``n`` calls over a few sessions that all become letters."""
    upstream.play("status", status=500)
    for i in range(n):
        body = {"model": "up", "messages": [{"role": "user", "content": f"letter {i}"}]}
        told = gateway.ask(CHAT, body, {"x-session-id": f"s{i % SESSIONS}"})
        assert told.status >= 500
    wait_for(lambda: len(letters(gateway)) == n, 10, "the letters")


def letters(gateway: Gateway) -> list[dict[str, Any]]:
    """Open letters."""
    told = gateway.ask("/api/v1/dlq")
    return list(told.json()["entries"]) if told.status == 200 else [{}]


def number(body: bytes) -> int:
    """Which letter a request is of."""
    return int(json.loads(body)["messages"][0]["content"].split()[1])


def metric(gateway: Gateway, name: str) -> float:
    """One series, summed."""
    lines = gateway.metrics().splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.split("{")[0].split(" ")[0] == name)


def test_letters_survive_deaths_in_the_middle_in_the_order_of_their_sessions(
    start_gateway: StartGateway, upstream: Upstream
) -> None:
    """Each is answered; what may have been answered twice is marked, and has the same key."""
    n = 40
    gateway = start_gateway(config=config(upstream), workers=2)
    fail(gateway, upstream, n)
    ids = {e["request_id"] for e in letters(gateway)}
    upstream.play("answer", first_s=0.15)
    start = len(upstream.seen)
    wait_for(lambda: len(upstream.seen) >= start + 8, 20, "some replays")
    os.kill(gateway.worker_pids()[1], signal.SIGKILL)
    wait_for(lambda: len(upstream.seen) >= start + 18, 20, "more replays")
    (control,) = [pid for pid in gateway.processes() if title(pid) == "tpo: control"]
    os.kill(control, signal.SIGKILL)
    wait_for(lambda: letters(gateway) == [], 60, "no letter left")
    asked = list(upstream.seen)[start:]
    assert {number(s.body) for s in asked} == set(range(n))
    order = defaultdict(list)
    for seen in asked:
        order[number(seen.body) % SESSIONS].append(number(seen.body))
    assert all(numbers == sorted(numbers) for numbers in order.values()), dict(order)
    keys = Counter(seen.headers["idempotency-key"] for seen in asked)
    assert set(keys) == ids
    twice = {name for name, times in keys.items() if times > 1}
    assert len(twice) <= 8, "more than were under way when a process died"
    for name in ids:
        letter = gateway.ask(f"/api/v1/dlq/{name}").json()
        assert letter["status"] == "replayed"
        assert letter["attempts"] >= 1
        assert letter["repeated"] or name not in twice
    wait_for(lambda: metric(gateway, "orchestrator_dlq_replayed_total") >= n - 4, 10, "the counter")
    assert metric(gateway, "orchestrator_dlq_aged_out_total") == 0


def test_old_letters_are_given_up_and_without_a_word_nothing_is_asked(
    start_gateway: StartGateway, upstream: Upstream
) -> None:
    """The scheduler is off by default; switched on, age counts from the drop."""
    gateway = start_gateway(config=config(upstream, ""), workers=2)
    fail(gateway, upstream, 4)
    upstream.play("answer")
    seen = len(upstream.seen)
    assert gateway.config_path is not None
    names = [e["request_id"] for e in letters(gateway)]
    wait_for(lambda: metric(gateway, "tpo_uptime_seconds") > 4, 20, "letters of some age")
    assert len(upstream.seen) == seen
    gateway.config_path.write_text(config(upstream, REPLAY + "max_age_s = 1\n"))
    gateway.send_signal(signal.SIGHUP)
    wait_for(lambda: letters(gateway) == [], 20, "no open letter")
    assert {gateway.ask(f"/api/v1/dlq/{n}").json()["status"] for n in names} == {"aged_out"}
    wait_for(lambda: metric(gateway, "orchestrator_dlq_aged_out_total") == 4, 10, "the counter")
    assert len(upstream.seen) == seen


@pytest.mark.parametrize("value", ["0", '"x"', "1000"])
def test_bad_settings_are_named(start_gateway: StartGateway, value: str) -> None:
    """Path, value and reason."""
    with pytest.raises(AssertionError, match=r"store\.replay\.concurrency"):
        start_gateway(config=ECHO + f"[store.replay]\nconcurrency = {value}\n")


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return str(psutil.Process(pid).cmdline()[0])
    except (psutil.Error, IndexError):
        return ""
