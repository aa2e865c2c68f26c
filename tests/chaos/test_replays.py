"""Dead letters by the hundred, or ten thousand, asked again while the processes of the host die."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter, defaultdict, deque
from functools import partial
from random import Random

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill, metric
from tests.support.messages import CHAT
from tests.support.raw import ClosedEarlyError, RawClient, ask
from tests.support.toml import backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

SESSIONS = 40
CLIENTS = 8
REPLAY = "[store.replay]\nenabled = true\nconcurrency = 16\nmax_attempts = 100\n"
QUIET = "[pipeline]\nstages = []\n"


def drop(host: Host, upstream: Upstream, number: int) -> None:
    """Make calls that all become letters, each client those of its own sessions, one at a time."""
    upstream.play("status", status=500)
    failed: list[int] = []

    def client(which: int) -> None:
        with RawClient(host.url) as connection:
            for n in range(which, number, CLIENTS):
                body = {"model": "up", "messages": [{"role": "user", "content": f"letter {n}"}]}
                told = connection.post_json(CHAT, body, {"x-session-id": f"s{n % SESSIONS}"})
                failed.append(told.status)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(failed) == {502}, Counter(failed)
    wait_for(lambda: depth(host) == number, 30, "the letters", every_s=0.25)


def reached(upstream: Upstream, number: int) -> bool:
    """Whether so many requests were seen."""
    return len(upstream.seen) >= number


def depth(host: Host) -> int | None:
    """Open letters; nothing while control, which may have been killed just now, does not tell."""
    try:
        page = ask(host.ops, "/metrics")
    except (OSError, ClosedEarlyError):
        return None
    return int(metric(page.body.decode(), "tpo_dead_letters"))


def letter_number(body: bytes) -> int:
    """Which letter a request is of."""
    return int(json.loads(body)["messages"][0]["content"].split()[1])


def killed(host: Host, victim: str, slot: int) -> bool:
    """Kill control, or who serves the slot; false while nobody is there to be killed."""
    status = host.status()
    pid = (status["control"] if victim == "control" else status["slots"][slot])["pid"]
    if pid is None:
        return False
    try:
        kill(pid)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "number",
    [
        300,
        pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    ],
)
@pytest.mark.parametrize("mode", ["native"], indirect=True)
def test_replays_survive_the_deaths_of_workers_and_of_control(
    start_host: StartHost, upstream: Upstream, rng: Random, number: int, slack: float
) -> None:
    """Each letter is answered, what was asked twice says so, and sessions keep their order."""
    upstream.seen = deque(maxlen=4 * number)
    config = QUIET + backend("up", upstream.base_url)
    host = start_host(config=config)
    host.warm()
    drop(host, upstream, number)
    ids = {entry["request_id"] for entry in host.letters()}
    upstream.play("answer", first_s=0.01)
    start, began = len(upstream.seen), time.monotonic()
    assert host.config_path is not None
    host.config_path.write_text(config + REPLAY)
    host.send_signal(signal.SIGHUP)
    victims = ["worker", "control", "worker", "control"]
    for turn, victim in enumerate(victims, 1):
        goal = start + turn * number // (len(victims) + 1)
        wait_for(partial(reached, upstream, goal), 300 * slack, "replays", every_s=0.01)
        wait_for(partial(killed, host, victim, rng.randrange(2)), 60, f"a {victim} to kill")
    wait_for(lambda: depth(host) == 0, 600 * slack, "no letter left", every_s=0.25)
    took_s = time.monotonic() - began
    wait_for(lambda: not host.letters(), 10 * slack, "an empty list")
    asked = list(upstream.seen)[start:]
    keys = Counter(seen.headers["idempotency-key"] for seen in asked)
    assert set(keys) == ids
    order = defaultdict(list)
    for seen in asked:
        n = letter_number(seen.body)
        order[n % SESSIONS].append(n)
    assert {n for numbers in order.values() for n in numbers} == set(range(number))
    assert all(numbers == sorted(numbers) for numbers in order.values()), dict(order)
    twice = {name for name, times in keys.items() if times > 1}
    for name in twice | set(rng.sample(sorted(ids), 50)):
        letter = host.ask_store(f"/api/v1/dlq/{name}")
        assert letter["status"] == "replayed"
        assert letter["repeated"] or name not in twice
    print(f"{number} letters in {took_s:.1f} s, {len(asked)} requests, {len(twice)} letters twice")
    host.end()
