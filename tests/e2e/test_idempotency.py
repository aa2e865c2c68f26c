"""Requests with an idempotency key on two workers: run once, whoever dies, and answered again."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import ClosedEarlyError, RawClient, RawReply, build, chat
from tests.support.raw import ask as get
from tests.support.shards import connect_to
from tests.support.toml import ECHO, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("at_rest")
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
KEYS = {name: f"key-of-{name}-0123456789" for name in ("one", "other", "spender", "ops")}
REPLAYED = "idempotency-replayed"


def config(origin: Upstream, **options: Any) -> str:
    """Two tenants, each with a budget, in front of one backend."""
    return (
        ECHO
        + backend("up", origin.base_url)
        + NO_RETRIES
        + section("[stages.idempotency]", wait_s=15, max_answer_bytes=20_000, **options)
        + section("[stages.token_budget]", tenant={"day": 100_000})
        + "[auth]\nenabled = true\n"
        + "".join(
            section("[[auth.keys]]", id=name, secret={"env": f"KEY_{name.upper()}"},
                    admin=name == "ops")
            for name in KEYS
        )
    )  # fmt: skip


ENV = {f"KEY_{name.upper()}": key for name, key in KEYS.items()}


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers that keep answers."""
    with Gateway(short_tmp / "once", config=config(origin), workers=2, env=ENV) as started:
        yield started


def headers(key: str, who: str = "one") -> dict[str, str]:
    """What a client of a tenant sends."""
    return {"authorization": f"Bearer {KEYS[who]}", "idempotency-key": key}


def ask(
    gateway: Gateway, key: str, text: str = "hi", who: str = "one", path: str = CHAT, **more: Any
) -> RawReply:
    """One request with a key."""
    return gateway.ask(path, chat(text, "up", max_tokens=9, **more), headers(key, who))


def code(reply: RawReply) -> tuple[int, Any]:
    """Status and the error's code."""
    return reply.status, reply.json()["error"].get("code")


@contextmanager
def underway(
    gateway: Gateway, origin: Upstream, key: str, who: str = "one", **more: Any
) -> Iterator[RawClient]:
    """A request that runs on the first worker; the connection it came by."""
    body = json.dumps(chat("hi", "up", max_tokens=9, **more)).encode()
    client = RawClient(gateway.url)
    while shard_of(client) != "0":
        client.close()
        client = RawClient(gateway.url)
    before = origin.counters.requests
    named = {"host": client.host, "content-type": "application/json", **headers(key, who)}
    with client:
        client.send(build("POST", CHAT, named, body))
        wait_for(lambda: origin.counters.requests > before, 5, "it asked upstream")
        yield client


def shard_of(client: RawClient) -> str:
    """The worker that has a connection."""
    said = client.post_json(
        CHAT, chat("hi", max_tokens=9), {"authorization": f"Bearer {KEYS['ops']}"}
    )
    return said.headers["x-tpo-shard"]


def test_fifty_at_once_are_one_call(gateway: Gateway, origin: Upstream) -> None:
    """Whichever worker they come to: one asks, all have its answer, one is charged."""
    with ExitStack() as opened:
        # While a worker stands still the other one takes all that come.
        ops = {"authorization": f"Bearer {KEYS['ops']}"}
        clients = [
            opened.enter_context(connect_to(gateway.url, n % 2, headers=ops)) for n in range(50)
        ]
        assert fifty(gateway, origin, clients) == {"0", "1"}


def fifty(gateway: Gateway, origin: Upstream, clients: list[RawClient]) -> set[str]:
    """Ask through all of them at once; answers the shards that took part."""
    origin.play(first_s=0.5)
    body, sent = chat("hi", "up", max_tokens=9), headers("fifty", "spender")
    before = origin.counters.requests
    used = budget(gateway)
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda client: client.post_json(CHAT, body, sent), clients))
    assert Counter(reply.status for reply in replies) == {200: 50}
    assert len({reply.body for reply in replies}) == 1
    assert origin.counters.requests - before == 1
    assert sum(REPLAYED in reply.headers for reply in replies) == 49
    ran = next(reply for reply in replies if REPLAYED not in reply.headers)
    told = {r.headers["x-tpo-first-call-id"] for r in replies if REPLAYED in r.headers}
    assert told == {ran.headers["x-tpo-call-id"]}
    usage = ran.json()["usage"]
    spent = usage["prompt_tokens"] + usage["completion_tokens"]
    wait_for(lambda: budget(gateway) == used + spent, 5, "what one call used is settled")
    return {reply.headers["x-tpo-shard"] for reply in replies}


def is_charged(gateway: Gateway, tokens: int) -> bool:
    """Whether the tenant has used so much."""
    return budget(gateway) == tokens


def budget(gateway: Gateway) -> int:
    """Tokens a tenant has used or set aside."""
    said = get(
        gateway.url, "/api/v1/budgets", headers={"authorization": f"Bearer {KEYS['spender']}"}
    )
    (row,) = [b for b in said.json()["budgets"] if b["level"] == "tenant"]
    return int(row["used"])


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/prompt", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_comes_again_in_every_dialect(
    gateway: Gateway, origin: Upstream, path: str, stream: bool
) -> None:
    """Whole or streamed, from either worker, and an upstream is not asked."""
    key = f"again-{path}-{stream}"
    body: dict[str, Any] = chat("hi", "up", max_tokens=9, stream=stream)
    if path == "/v1/prompt":
        if stream:
            pytest.skip("it does not stream")
        body = {"prompt": "hi", "model": "up"}
    elif path == "/v1/responses":
        body = {"model": "up", "input": "hi", "stream": stream}
    first = gateway.ask(path, body, headers(key))
    assert first.status == 200, first
    before = origin.counters.requests
    slots: set[str] = set()
    while slots != {"0", "1"}:
        again = gateway.ask(path, body, headers(key))
        assert again.status == 200, again
        assert again.headers[REPLAYED] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert said(again, path) == said(first, path)
        slots.add(again.headers["x-tpo-shard"])
    assert origin.counters.requests == before


def said(reply: RawReply, path: str) -> Any:
    """What a reply says, without what is each call's own on native routes."""
    if path != "/v1/prompt":
        return reply.body
    record = reply.json()
    return [record[name] for name in ("result", "usage", "finish_reason", "model")]


def test_another_body_or_tenant_is_another_matter(gateway: Gateway, origin: Upstream) -> None:
    """Of one tenant a key means one request; another tenant's is another key."""
    assert ask(gateway, "mine").status == 200
    for _ in range(4):
        refused = ask(gateway, "mine", text="something else")
        assert code(refused) == (422, "idempotency_key_reused")
        assert refused.json()["error"]["param"] == "idempotency-key"
        assert refused.headers["x-should-retry"] == "false"
    anthropic = ask(gateway, "mine", text="something else", path=MESSAGES)
    assert (anthropic.status, anthropic.json()["error"]["type"]) == (422, "invalid_request_error")
    assert "idempotency-key: this key was used" in anthropic.json()["error"]["message"]
    before = origin.counters.requests
    others = ask(gateway, "mine", text="something else", who="other")
    assert (others.status, REPLAYED in others.headers) == (200, False)
    assert origin.counters.requests == before + 1
    for bad in ("", "x" * 256, "caf\xe9"):
        malformed = ask(gateway, bad)
        assert malformed.status == 400, bad
        assert malformed.json()["error"]["param"] == "idempotency-key"


def test_a_failure_that_may_be_tried_again_is_not_kept(gateway: Gateway, origin: Upstream) -> None:
    """A 503 is followed by another try, a refusal of the request by the same refusal."""
    origin.queue("status", status=503)
    assert ask(gateway, "flaky").status == 503
    again = ask(gateway, "flaky")
    assert (again.status, REPLAYED in again.headers) == (200, False)
    origin.queue("status", status=400)
    first = ask(gateway, "wrong")
    assert first.status == 400
    before = origin.counters.requests
    again = ask(gateway, "wrong")
    assert (again.status, again.body, again.headers[REPLAYED]) == (400, first.body, "true")
    assert origin.counters.requests == before


def test_a_client_that_left_finds_the_answer(gateway: Gateway, origin: Upstream) -> None:
    """The call goes on without it; whoever asks meanwhile waits for it."""
    origin.play(first_s=1.0)
    before = origin.counters.requests
    for stream in (False, True):
        key = f"left-{stream}"
        used = budget(gateway)
        more = {"stream_options": {"include_usage": True}} if stream else {}
        with underway(gateway, origin, key, "spender", stream=stream, **more) as client:
            client.close()
        again = ask(gateway, key, who="spender", stream=stream, **more)
        assert (again.status, again.headers[REPLAYED]) == (200, "true")
        said = again.json() if not stream else json.loads(again.body.split(b"data: ")[-2])
        spent = said["usage"]["prompt_tokens"] + said["usage"]["completion_tokens"]
        wait_for(partial(is_charged, gateway, used + spent), 5, "what it used is charged")
    assert origin.counters.requests == before + 2


def test_an_answer_too_large_is_not_given_again(gateway: Gateway, origin: Upstream) -> None:
    """Nor is the request run again."""
    origin.play(text="x" * 30_000)
    assert ask(gateway, "large").status == 200
    before = origin.counters.requests
    refused = ask(gateway, "large")
    assert code(refused) == (409, "idempotency_answer_not_kept")
    assert refused.headers["x-should-retry"] == "false"
    assert origin.counters.requests == before


def test_a_request_whose_worker_died_is_not_run_again(gateway: Gateway, origin: Upstream) -> None:
    """Who waits on the other worker is told, and so is who asks later; other keys go on."""
    dead = threading.Event()
    origin.play(until=dead)
    before = origin.counters.requests
    victim = gateway.worker_pids()[0]
    with underway(gateway, origin, "lost") as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, gateway, "lost") for _ in range(8)]
        try:
            wait_for(lambda: open_calls(gateway) >= 9, 5, "all of them wait")
            os.kill(victim, signal.SIGKILL)
        finally:
            dead.set()
        with pytest.raises((ClosedEarlyError, ConnectionError)):
            client.read_reply()
        told = [outcome(one) for one in waiting]
    assert set(told) <= {(409, "idempotency_outcome_unknown"), None}
    origin.play()
    later = ask(gateway, "lost")
    assert code(later) == (409, "idempotency_outcome_unknown")
    assert later.headers["x-should-retry"] == "false"
    assert origin.counters.requests == before + 1
    letter = f"/api/v1/dlq/{later.headers['x-tpo-first-call-id']}"
    ops = {"authorization": f"Bearer {KEYS['ops']}"}
    wait_for(lambda: gateway.ask(letter, headers=ops).status == 200, 10, "its dead letter")
    assert ask(gateway, "another").status == 200


def open_calls(gateway: Gateway) -> float:
    """Open calls of the host."""
    return metric(gateway.metrics(), "tpo_open_calls")


def outcome(one: Future[RawReply]) -> tuple[int, Any] | None:
    """Status and code; ``None`` for one whose own worker died."""
    try:
        return code(one.result(20))
    except (ClosedEarlyError, ConnectionError):
        return None


def test_keys_outlive_the_host(short_tmp: Path, origin: Upstream) -> None:
    """Stopped and started, it has the answer; of what it was killed over it knows that much."""
    gateway = Gateway(
        short_tmp / "restarted", config=config(origin, after_crash="run"), workers=2, env=ENV
    )
    with gateway:
        first = ask(gateway, "kept")
        before = origin.counters.requests
        gateway.stop()
        gateway.start()
        again = ask(gateway, "kept")
        assert (again.status, again.body, again.headers[REPLAYED]) == (200, first.body, "true")
        assert origin.counters.requests == before
        dead = threading.Event()
        origin.play(until=dead)
        with underway(gateway, origin, "killed"):
            gateway.close()
        dead.set()
        origin.play()
        gateway.start()
        anew = ask(gateway, "killed")
        assert (anew.status, REPLAYED in anew.headers) == (200, False)
        assert origin.counters.requests == before + 2
