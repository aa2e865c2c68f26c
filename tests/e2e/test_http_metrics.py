"""``http_requests_total`` of the host: every request once, whichever worker and lane took it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.host import kill
from tests.support.messages import chunked
from tests.support.raw import RawClient, chat
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
MODEL = {"serve": "echo", "simulate": "gpt-4o"}
TIMES = 5


@pytest.fixture(scope="module", params=["serve", "simulate"])
def counted(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[tuple[Gateway, str]]:
    """A host of two workers, and a model it serves."""
    verb = request.param
    args = ("--no-latency",) if verb == "simulate" else ()
    with Gateway(short_tmp / f"count-{verb}", *args, workers=2, verb=verb) as gateway:
        yield gateway, MODEL[verb]


@contextmanager
def each_worker(gateway: Gateway, model: str) -> Iterator[list[RawClient]]:
    """A connection to each of two workers, used once at least; what was asked is counted."""
    before = page(gateway)
    made: list[RawClient] = []
    with ExitStack() as open_now:
        found: dict[str, RawClient] = {}

        def both() -> bool:
            client = open_now.enter_context(RawClient(gateway.url))
            made.append(client)
            reply = client.post_json(CHAT, chat("hi", model=model))
            found.setdefault(reply.headers["x-tpo-shard"], client)
            return len(found) == 2

        wait_for(both, 60, "a connection to each worker")
        # An answer is counted a moment after it was written.
        asked = {labels("POST", CHAT, 200): len(made)}
        wait_for(lambda: page(gateway) - before == asked, 20, "these to be counted")
        yield list(found.values())


def page(gateway: Gateway, name: str = "http_requests_total") -> Counter[str]:
    """Samples of a metric by their labels, as control tells them."""
    text = gateway.metrics()
    lines = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name + "{")]
    return Counter({line.rpartition(" ")[0]: int(float(line.rpartition(" ")[2])) for line in lines})


def labels(method: str, path: str, status: int) -> str:
    """The labels of one series."""
    return f'{{method="{method}",path="{path}",status="{status}"}}'


def test_every_request_is_counted_once(counted: tuple[Gateway, str]) -> None:
    """Good, refused, unknown, streamed and chunked ones, on both workers, and past a death."""
    gateway, model = counted
    with each_worker(gateway, model) as workers:
        before, timed = page(gateway), page(gateway, "http_request_duration_seconds_count")
        for worker in workers:
            for n in range(TIMES):
                asked = chat("hi", model=model, stream=n == 0)
                assert worker.post_json(CHAT, asked).status == 200
                assert worker.post_json(CHAT, {"model": model}).status == 400
                assert worker.request("GET", f"/v1/models/{model}").status == 200
                assert worker.request("GET", f"/v1/nothing/{n}").status == 404
            head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            worker.send(head % CHAT.encode() + b"Transfer-Encoding: chunked\r\n\r\n"
                        + chunked(b"[]"))  # fmt: skip
            assert worker.read_reply().status == 400
    expected = Counter({
        labels("POST", CHAT, 200): 2 * TIMES,
        labels("POST", CHAT, 400): 2 * TIMES + 2,
        labels("GET", "/v1/models/{model}", 200): 2 * TIMES,
        labels("GET", "other", 404): 2 * TIMES,
    })  # fmt: skip
    wait_for(lambda: page(gateway) - before == expected, 20, "every request to be counted once")
    took = page(gateway, "http_request_duration_seconds_count") - timed
    assert took == {
        f'{{method="POST",path="{CHAT}"}}': 4 * TIMES + 2,
        '{method="GET",path="/v1/models/{model}"}': 2 * TIMES,
        '{method="GET",path="other"}': 2 * TIMES,
    }
    victim = gateway.status()["slots"][0]["pid"]
    kill(victim, signal.SIGKILL)
    wait_for(lambda: gateway.status()["slots"][0]["pid"] not in (victim, None), 30,
             "another worker in its place")  # fmt: skip
    assert page(gateway) - before == expected
