"""Calls to an engine of the host over shared memory: what HTTP says, and every way to die."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support import tiny_model
from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.mlx_engine import MlxEngine
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import connect_to, render
from tests.support.toml import section
from tests.support.wait import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]
CHAT = "/v1/chat/completions"
BY_RINGS = "tpo_mlx_calls_by_rings_total"
LEFT = 'tpo_mlx_requests_total{outcome="cancelled"}'
BEHIND = "tpo_mlx_ring_answers_waiting"
LONG = {"max_tokens": 1900, "ignore_eos": True, "temperature": 0.8}


def engine_config(name: str, model: Path, **more: Any) -> str:
    """An engine, which answers to its name and to ``both``."""
    told = section("[[engines]]", name=name, kind="mlx", model=str(model), models=[name], **more)
    names = {"both": name}
    return told + section("[[backends]]", name=name, models=[name, "both"], model_map=names)


@dataclass(frozen=True, slots=True)
class House:
    """Two workers, an engine that is asked over rings and one that is not."""

    gateway: Gateway

    def row(self, name: str) -> dict[str, Any]:
        """How an engine is."""
        rows: list[dict[str, Any]] = self.gateway.status()["engines"]
        return next(row for row in rows if row["engine"] == name)

    def engine(self, name: str) -> MlxEngine:
        """One of the engines itself."""
        row = self.row(name)
        return MlxEngine(f"http://127.0.0.1:{row['port']}", row["pid"])

    def ready(self, name: str, but: int | None = None) -> MlxEngine | None:
        """An engine once it serves, as another process than ``but``."""
        row = self.row(name)
        return self.engine(name) if row["state"] == "ready" and row["pid"] != but else None

    def ask(self, model: str, text: str, **more: Any) -> RawReply:
        """One chat."""
        with RawClient(self.gateway.url, timeout_s=100) as client:  # many tokens take their time
            return client.post_json(CHAT, chat(text, model, **{"temperature": 0.8, **more}))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, short_tmp: Path) -> Iterator[House]:
    """One host for all."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    model = tiny_model.build(tmp_path_factory.mktemp("model") / "tiny")
    config = "".join((
        engine_config("ring", model),
        engine_config("plain", model, rings=False),
        section("[[backends]]", name="echo", kind="echo", models=["echo"]),
        section("[[routes]]", models=["both"], strategy="failover", backends=["ring", "plain"]),
        section("[[routes]]", models=["ring"], strategy="weighted", backends=["ring"]),
        section("[[routes]]", models=["plain"], strategy="weighted", backends=["plain"]),
        section("[[routes]]", models=["echo"], strategy="weighted", backends=["echo"]),
    ))  # fmt: skip
    # Every other bell is lost, at the engines too: who waits looks again.
    env = {"TPO_TEST": "1", "TPO_FAILPOINTS": "ring.before_doorbell=drop:0.5"}
    with Gateway(short_tmp / "rings", config=config, workers=2, ready_s=90, env=env) as gateway:
        house = House(gateway)
        for name in ("ring", "plain"):
            wait_for(partial(house.ready, name), 90, "an engine to load")
        assert (house.row("ring")["transport"], house.row("plain")["transport"]) == (
            "rings", "http",
        )  # fmt: skip
        yield house


def begin(client: RawClient, model: str, text: str, **more: Any) -> None:
    """Ask for a stream; it has begun when this returns."""
    body = chat(text, model, stream=True, **{**LONG, **more})
    client.send(render(client.host, body, {}, "fast"))
    assert client.read_head()[0] == 200


def texts(reply: RawReply) -> list[str]:
    """What each choice of a streamed or whole reply says."""
    if not reply.body.startswith(b"data:"):
        return [choice["message"]["content"] for choice in reply.json()["choices"]]
    found: dict[int, str] = {}
    for event in reply.events:
        for choice in json.loads(event)["choices"] if event != b"[DONE]" else ():
            said = choice["delta"].get("content") or ""
            found[choice["index"]] = found.get(choice["index"], "") + said
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_text_is_what_http_brings(house: House, stream: bool) -> None:
    """Short answers and ones longer than a record; each came the way it should."""
    before = [house.engine(name).count(BY_RINGS) for name in ("ring", "plain")]
    for number, more in enumerate(({}, {"n": 3, "logprobs": True, "top_logprobs": 20})):
        asked = {"seed": 5, "stream": stream, "max_tokens": 30, "ignore_eos": True, **more}
        one, other = (
            house.ask(name, f"same {stream} {number}", **asked) for name in ("ring", "plain")
        )
        assert one.status == other.status == 200, (one.body, other.body)
        assert texts(one) == texts(other)
        assert all(texts(one))
        assert one.headers["content-type"] == other.headers["content-type"]
    after = [house.engine(name).count(BY_RINGS) for name in ("ring", "plain")]
    assert [after[0] - before[0], after[1]] == [2, 0]
    page = house.gateway.metrics()
    assert metric(page, "tpo_engine_calls_total", backend="ring", transport="rings") >= 2


def test_refusals_are_what_http_brings(house: House) -> None:
    """Of a prompt of many records too."""
    for text, more in (("word " * 20_000, {}), ("x", {"response_format": {"type": "json_object"}})):
        one, other = (house.ask(name, text, max_tokens=1, **more) for name in ("ring", "plain"))
        assert one.status == other.status == 400
        assert one.json() == other.json()


def test_client_that_leaves_ends_its_sequence(house: House) -> None:
    """Long before its last token, whole or streamed."""
    engine = house.engine("ring")
    for stream in (True, False):
        steps = engine.count("tpo_mlx_steps")
        with RawClient(house.gateway.url, timeout_s=30) as client:
            body = chat(f"leave {stream}", "ring", stream=stream, **LONG)
            client.send(render(client.host, body, {}, "fast"))
            wait_for(lambda: engine.count("tpo_mlx_steps") > steps + 5, 30, "the first tokens")  # noqa: B023
        wait_for(lambda: engine.health()["running"] == 0, 20, "the sequence to be given up")
        assert engine.count("tpo_mlx_steps") < steps + 1800


def test_slow_reader_holds_its_own_stream_only(house: House) -> None:
    """It gets all of it in the end; the engine kept what it did not take.

    The answer is twice what sockets hold, so the engine stays behind once they are full.
    """
    engine = house.engine("ring")
    with RawClient(house.gateway.url, timeout_s=60) as slow:
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        begin(slow, "ring", "slow", n=8, max_tokens=800, logprobs=True, top_logprobs=20)
        wait_for(lambda: engine.count(BEHIND) == 1, 60, "the engine to wait for the reader")
        quick = house.ask("ring", "quick", stream=True, max_tokens=300, ignore_eos=True)
        assert quick.events[-1] == b"[DONE]"
        wait_for(lambda: engine.count(BEHIND) == 1, 60, "the engine to wait when sockets are full")
        rest = b"".join(slow.chunks())
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert rest.count(b'"finish_reason":"length"') == 8


def test_dead_worker_ends_its_calls_in_the_engine(house: House) -> None:
    """The other worker's go on."""
    engine = house.engine("ring")
    pids = house.gateway.worker_pids()
    clients = [connect_to(house.gateway.url, shard, timeout_s=60) for shard in (0, 1)]
    try:
        for shard, client in enumerate(clients):
            begin(client, "ring", f"worker {shard}")
        left = engine.count(LEFT)
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: engine.count(LEFT) == left + 1, 20, "the dead worker's call to be left")
        assert b"".join(clients[1].chunks()).rstrip().endswith(b"data: [DONE]")
    finally:
        for client in clients:
            client.close()
    wait_for(partial(_takes, house, engine, 0), 60, "the new worker to use the rings")


def _takes(house: House, engine: MlxEngine, shard: int) -> bool:
    before = engine.count(BY_RINGS)
    with connect_to(house.gateway.url, shard) as client:
        reply = client.post_json(CHAT, chat("new", "ring", max_tokens=2, seed=int(before)))
    return reply.status == 200 and engine.count(BY_RINGS) > before


def test_dead_engine_is_left_and_found_again(house: House) -> None:
    """A stream is told, a call without an answer goes elsewhere, the next engine gets rings."""
    engine = house.engine("ring")
    more = {**LONG, "max_tokens": 1800}

    def both_run() -> bool:
        return bool(engine.health()["running"] == 2)

    with ThreadPoolExecutor() as pool, ExitStack() as held:
        for number in range(5):  # one may end before the other begins
            client = held.enter_context(RawClient(house.gateway.url, timeout_s=60))
            begin(client, "ring", f"to be cut {number}")
            unanswered = pool.submit(house.ask, "both", f"elsewhere {number}", **more)
            wait_for(lambda: both_run() or unanswered.done(), 30, "both calls to run")  # noqa: B023
            if not unanswered.done():
                break
        os.kill(engine.pid, signal.SIGKILL)
        told = b"".join(client.chunks())
        assert b'"error"' in told, told[-500:]
        reply = unanswered.result(120)
    assert reply.status == 200, reply.body
    assert reply.headers["x-tpo-backend"] == "plain"
    again = wait_for(partial(house.ready, "ring", engine.pid), 90, "another engine")
    wait_for(lambda: house.row("ring")["transport"] == "rings", 20, "its rings")
    wait_for(partial(_takes, house, again, 0), 60, "calls over rings")
    wait_for(partial(_takes, house, again, 1), 60, "the other worker's too")
