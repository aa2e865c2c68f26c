"""Metrics while processes die, and with more label values than anyone should have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill
from tests.support.load import Load
from tests.support.raw import ClosedEarlyError, RawClient, ask, build, chat
from tests.support.wait import wait_for

MANY = 10_000
BATCH = 50
ANY_MODEL = """
[[backends]]
name = "echo"
kind = "echo"
models = ["*"]
"""


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Parse a page strictly; every sample appears once."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(page):
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def pages(host: Host) -> Iterator[str]:
    """The page of the ops port, then of the main port; control itself may be away."""
    for url in (host.ops, host.url):
        try:
            reply = ask(url, "/metrics")
        except (OSError, ClosedEarlyError):  # who was asked may be the one that was killed
            continue
        assert reply.status == 200
        yield reply.body.decode()


def test_every_scrape_while_workers_die_is_valid_and_counts_go_on(
    start_host: StartHost, rng: Random
) -> None:
    """Pages parse, no sample appears twice, and no counter falls, whoever was killed."""
    host = start_host()
    last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    scrapes = 0
    with Load(host.url, rng, clients=6) as load:
        for _ in range(4):
            host.warm()
            victim = host.slot(rng.randrange(2))["pid"]
            died = len(host.events("worker_died"))
            kill(victim)
            while len(host.events("worker_died")) == died or scrapes % 10:
                for page in pages(host):
                    scrapes += 1
                    seen = samples(page)
                    fell = {
                        key: (before, seen.get(key))
                        for key, before in last.items()
                        if key[0].endswith(("_total", "_count", "_bucket"))
                        and not key[0].startswith("tpo_process_")  # of one process each
                        and seen.get(key, -1.0) < before
                    }
                    assert not fell
                    last = seen
        load.stop()
    print(f"{scrapes} scrapes")
    host.end()


def requests(host: Host, number: int, rng: Random) -> Iterator[bytes]:
    """Requests of which each names another model and another session."""
    salt = rng.getrandbits(32)
    for i in range(number):
        headers = {
            "Host": f"127.0.0.1:{host.port}",
            "Content-Type": "application/json",
            "X-Session-Id": f"session-{salt}-{i}",
            "X-Request-Id": f"request-{salt}-{i}",
        }
        body = json.dumps(chat("hi", f"model-{salt}-{i}")).encode()
        yield build("POST", "/v1/chat/completions", headers, body)


def test_ten_thousand_sessions_and_models_stay_a_bounded_page(
    start_host: StartHost, rng: Random
) -> None:
    """Label values are capped per process: the page stays small, the rest is ``other``."""
    host = start_host(config=ANY_MODEL)
    every = list(requests(host, MANY, rng))
    sizes = []
    for third in range(3):
        part = every[third::3]
        with RawClient(host.url, timeout_s=20) as client:
            for at in range(0, len(part), BATCH):
                client.send(b"".join(part[at : at + BATCH]))
                for _ in part[at : at + BATCH]:
                    assert client.read_reply().status == 200
        wait_for(lambda: host.status()["slots"][0]["open_calls"] == 0, 5, "an idle host")
        page = ask(host.ops, "/metrics").body.decode()
        sizes.append((len(samples(page)), len(page)))
    print(f"samples and bytes: {sizes}")
    seen = samples(page)
    models = {dict(labels).get("model") for _, labels in seen} - {None}
    assert "other" in models
    assert len(models) <= 2 * 64 + 2
    assert sizes[2][0] < 3000
    assert sizes[2][1] < 500_000
    assert "session-" not in page
    overflow = sum(value for (name, _), value in seen.items() if "overflow" in name)
    assert overflow == 0
    host.stop()
