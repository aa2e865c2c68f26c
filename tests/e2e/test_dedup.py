"""Identical calls at the same time are one upstream call, whichever of two workers they came to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from tests.support.gateway import Gateway
from tests.support.load import Crowd
from tests.support.raw import build
from tests.support.toml import NO_CACHE, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tests.support.wire import Attempt, Wire

pytestmark = pytest.mark.usefixtures("at_rest")
MANY = 1000
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
SHARED = "orchestrator_dedup_requests_total"
TURNS = 5
"""One worker may take all connections while the other is kept from running: then once more."""


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers and the default pipeline; what SDKs try again joins their first try."""
    config = section("[stages.dedup]", sdk_retries=True, linger_s=60)
    config += backend("up", origin.base_url, "*") + NO_CACHE
    with Gateway(short_tmp / "dedup", config=config, workers=2) as started:
        yield started


class Alike(Crowd):
    """Many requests at once with one body."""

    def __init__(
        self,
        url: str,
        number: int,
        body: dict[str, Any],
        target: str = CHAT,
        keys: tuple[str, ...] = (),
        **head: str,
    ) -> None:
        """``keys`` are shared out among them; ``head`` are header fields."""
        super().__init__(url, number, stream=bool(body.get("stream")))
        self._target = target
        self._same = json.dumps(body).encode()
        self._keys = keys
        self._head = {name.replace("_", "-"): text for name, text in head.items()}

    async def _start(self) -> None:
        for at, attempt in enumerate(self.attempts):
            wire = Wire(self._url)
            head = {"Host": f"{wire.host}:{wire.port}", "Content-Type": "application/json"}
            head |= self._head
            if self._keys:
                head["Authorization"] = f"Bearer {self._keys[at % len(self._keys)]}"
            request = build("POST", self._target, head, self._same)
            self._running.append(asyncio.create_task(self._run(wire, attempt, request)))

    def leave(self, which: list[Attempt]) -> None:
        """These clients hang up."""

        async def cancel() -> None:
            for attempt in which:
                self._running[self.attempts.index(attempt)].cancel()
            await asyncio.sleep(0)

        self.call(cancel())


def chat(text: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A chat body that is certain to get the same answer."""
    message = {"role": "user", "content": text}
    return {"model": "up", "messages": [message], "temperature": 0, "stream": stream} | more


def ways(attempts: list[Attempt]) -> Counter[str]:
    """How they ended and were answered."""
    return Counter(f"{a.outcome} {a.headers.get('x-tpo-cache', '')}".strip() for a in attempts)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (CHAT, chat("whole")),
        (CHAT, chat("piece by piece", stream=True)),
        (EMBEDDINGS, {"model": "up", "input": "to a vector"}),
    ],
    ids=["whole", "streamed", "embeddings"],
)
def test_a_thousand_identical_calls_are_one_upstream(
    gateway: Gateway, origin: Upstream, target: str, body: dict[str, Any]
) -> None:
    """On both workers, with one answer for all, of which one call pays for."""
    vector = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
              "model": "up", "usage": {"prompt_tokens": 3, "total_tokens": 3}}  # fmt: skip
    all_here = threading.Event()
    origin.play(
        until=all_here, delay_s=0.05, chunks=8, reply=vector if target == EMBEDDINGS else None
    )
    before, asked = origin.counters.requests, gateway.metric(SHARED)
    with Alike(gateway.url, MANY, body, target) as crowd:
        answer_all(gateway, asked + MANY, all_here)
        attempts = crowd.ended()
    assert ways(attempts) == {"ok": 1, "ok coalesced": MANY - 1}
    assert origin.counters.requests == before + 1
    assert len({attempt.body for attempt in attempts}) == 1
    assert {attempt.headers["x-tpo-backend"] for attempt in attempts} == {"up"}
    assert [a.headers.get("x-tpo-attempts") for a in attempts].count(None) == MANY


def test_what_is_shared_is_counted_once(gateway: Gateway, origin: Upstream) -> None:
    """In the metrics and in the audit; those who joined are told to have cost nothing."""
    names = ("orchestrator_dedup_hits_total", "orchestrator_dedup_waiters_unblocked_total",
             "orchestrator_dedup_requests_total", "tpo_dedup_saved_tokens_total",
             "tpo_prompt_tokens_total", "tpo_saved_calls_total",
             "tpo_saved_tokens_total")  # fmt: skip
    by = {"by": "coalesced"}
    labels: list[dict[str, str]] = [{}, {}, {}, {"kind": "prompt"}, {"backend": "up"}, by, by]

    def look() -> list[float]:
        return [gateway.metric(name, **more) for name, more in zip(names, labels, strict=True)]

    before = look()
    all_here, asked = threading.Event(), gateway.metric(SHARED)
    origin.play(until=all_here)
    with Alike(gateway.url, 10, chat("counted"), X_Session_Id="of-the-audit") as crowd:
        answer_all(gateway, asked + 10, all_here)
        assert ways(crowd.ended()) == {"ok": 1, "ok coalesced": 9}
    expected = [9.0, 9.0, 10.0, 63.0, 7.0, 9.0, 9.0 * 12]
    wait_for(
        lambda: [b - a for a, b in zip(before, look(), strict=True)] == expected, 5, "the counts"
    )
    assert gateway.metric("orchestrator_dedup_active_requests") == 0

    def entries() -> list[dict[str, Any]]:
        found = gateway.ask("/api/v1/audit?session_id=of-the-audit").json()["entries"]
        return list(found)

    wait_for(lambda: len(entries()) == 10, 5, "the records")
    found = Counter((entry["cache"], entry["attempts"]) for entry in entries())
    assert found == {(None, 1): 1, ("coalesced", 0): 9}


def test_who_leaves_leaves_alone_and_the_last_ends_the_call(
    gateway: Gateway, origin: Upstream
) -> None:
    """The one that began it among them."""
    origin.play("hang_body", cut_after=2)
    before = origin.counters.requests
    with Alike(gateway.url, 12, chat("to be left", stream=True)) as crowd:
        crowd.flowing()
        first = [a for a in crowd.attempts if "x-tpo-cache" not in a.headers]
        assert len(first) == 1
        stay = [a for a in crowd.attempts if a not in first][:2]
        crowd.leave([a for a in crowd.attempts if a not in stay])
        seen = stay[0].body
        late = Alike(gateway.url, 1, chat("to be left", stream=True))
        with late:
            late.flowing()
            wait_for(lambda: late.attempts[0].body == seen, 5, "the prefix")
            assert origin.counters.requests == before + 1
            assert len(origin.aborted_at) == 0
            late.leave(late.attempts)
        crowd.leave(stay)
        wait_for(lambda: len(origin.aborted_at) == 1, 5, "the end of the upstream call")


def test_other_tenants_and_no_store_ask_by_themselves(origin: Upstream, short_tmp: Path) -> None:
    """Two tenants are two upstream calls, and whoever wants an answer of its own gets it."""
    keys = ("key-of-the-first-01", "key-of-the-other-01")
    config = backend("up", origin.base_url, "*") + NO_CACHE + "[auth]\nenabled = true\n"
    for at, key in enumerate(keys):
        config += f'[[auth.keys]]\nid = "t{at}"\nsecret = "{key}"\n'
    all_here = threading.Event()
    origin.play(until=all_here)
    before = origin.counters.requests
    with Gateway(short_tmp / "tenants", config=config, workers=2) as gateway:
        with Alike(gateway.url, 20, chat("secret"), keys=keys) as crowd:
            answer_all(gateway, 20, all_here)
            assert ways(crowd.ended()) == {"ok": 2, "ok coalesced": 18}
        assert origin.counters.requests == before + 2
        with Alike(gateway.url, 3, chat("own"), keys=keys[:1], X_TPO_Cache="no-store") as crowd:
            assert ways(crowd.ended())["ok coalesced"] == 0
        assert origin.counters.requests == before + 5


def test_what_an_sdk_tries_again_joins_its_first_try(gateway: Gateway, origin: Upstream) -> None:
    """Whatever the sampling: it hung up because it had waited long enough, and pays once."""
    all_here = threading.Event()
    origin.play(until=all_here)
    body = chat("again", temperature=1)
    before, asked = origin.counters.requests, gateway.metric(SHARED)
    first = {"x_stainless_retry_count": "0", "x_stainless_read_timeout": "0.5"}
    with Alike(gateway.url, 1, body, **first) as crowd:
        wait_for(lambda: origin.counters.requests == before + 1, 10, "the upstream call")
        seen_at = monotonic()
        wait_for(lambda: monotonic() > seen_at + 0.7, 5, "the SDK's patience")
        crowd.leave(crowd.attempts)
        with Alike(gateway.url, 3, body, x_stainless_retry_count="1") as again:
            answer_all(gateway, asked + 4, all_here)
            assert ways(again.ended()) == {"ok coalesced": 3}
    assert origin.counters.requests == before + 1
    assert len(origin.aborted_at) == 0
    both_here = threading.Event()
    origin.play(until=both_here)
    with Alike(gateway.url, 2, body, x_stainless_retry_count="0") as crowd:
        wait_for(lambda: origin.counters.requests == before + 3, 10, "both upstream")
        both_here.set()
        assert ways(crowd.ended()) == {"ok": 2}


class Killed:
    """Identical calls, whose upstream call is in a worker that is killed; ``survivors`` are not."""

    def __init__(
        self, gateway: Gateway, crowd: Alike, home: int, asked: float, all_here: threading.Event
    ) -> None:
        """``asked`` counts what had come before them; ``all_here`` lets the upstream answer."""
        victim = gateway.worker_pids()[home]
        os.kill(victim, signal.SIGKILL)
        asked += len(crowd.attempts)

        def again() -> bool:
            living = sum(attempt.outcome == "open" for attempt in crowd.attempts)
            return all_have_come(gateway, asked + living)

        try:
            wait_for(again, 20, "the survivors to ask again")
        finally:
            all_here.set()
        self.attempts = crowd.ended()
        # The clients of the dead worker see their connections end.
        self.survivors = [a for a in self.attempts if a.outcome not in ("cut", "refused")]
        gateway.replaced(home, victim)


def asking(gateway: Gateway, origin: Upstream) -> int:
    """The slot of the worker that sent the upstream its last request."""
    port = origin.seen[-1].port
    for slot, pid in enumerate(gateway.worker_pids()):
        if any(c.laddr.port == port for c in psutil.Process(pid).net_connections("tcp")):
            return slot
    raise AssertionError("no worker has that connection")


def answer_all(gateway: Gateway, number: float, all_here: threading.Event) -> None:
    """Let the upstream answer once so many calls could share an answer up to now."""
    try:
        wait_for(partial(all_have_come, gateway, number), 60, "all calls")
    finally:
        all_here.set()


def all_have_come(gateway: Gateway, number: float) -> bool:
    """Whether so many calls could share an answer up to now."""
    return gateway.metric(SHARED) >= number


def test_a_killed_worker_before_the_first_byte_costs_one_more_upstream_call(
    gateway: Gateway, origin: Upstream
) -> None:
    """All that live on share it, and are answered."""
    for turn in range(TURNS):
        body = chat(f"killed before {turn}")
        all_here, asked = threading.Event(), gateway.metric(SHARED)
        before = origin.counters.requests
        origin.queue("hang")
        origin.play(until=all_here)
        with Alike(gateway.url, 40, body) as crowd:
            wait_for(partial(all_have_come, gateway, asked + 40), 20, "all calls")
            wait_for(lambda: origin.seen, 10, "the upstream call")
            killed = Killed(gateway, crowd, asking(gateway, origin), asked, all_here)
        if len(killed.survivors) > 5:
            break
        origin.forget()
    assert len(killed.survivors) > 5
    assert {a.outcome for a in killed.survivors} == {"ok"}, ways(killed.attempts)
    assert origin.counters.requests == before + 2
    assert len({a.body for a in killed.survivors}) == 1


@pytest.mark.parametrize("same", [True, False], ids=["the same answer", "another answer"])
def test_a_killed_worker_amid_a_stream(gateway: Gateway, origin: Upstream, same: bool) -> None:
    """Streams go on where what comes again is the same, under the id they had; else they fail."""
    text = "one two three four five six"
    for turn in range(TURNS):
        origin.forget()
        origin.queue("hang_body", cut_after=3, chunks=6, text=text)
        all_here, asked = threading.Event(), gateway.metric(SHARED)
        answer = text if same else text.upper()
        origin.play(until=all_here, delay_s=0.02, chunks=6, text=answer)
        before = origin.counters.requests
        with Alike(gateway.url, 40, chat(f"killed amid {same} {turn}", stream=True)) as crowd:
            crowd.flowing()
            wait_for(lambda: all(len(a.events) == 3 for a in crowd.attempts), 5, "what came")
            killed = Killed(gateway, crowd, asking(gateway, origin), asked, all_here)
        if len(killed.survivors) > 5:
            break
    assert len(killed.survivors) > 5
    assert {a.outcome for a in killed.survivors} == {"ok" if same else "error"}
    assert origin.counters.requests == before + 2
    for attempt in killed.survivors:
        said = [json.loads(e) for e in attempt.events if e != b"[DONE]"]
        answer = "".join(
            e["choices"][0]["delta"].get("content") or "" for e in said if e.get("choices")
        )
        assert answer == text if same else text.startswith(answer)
        assert len({e["id"] for e in said if "id" in e}) == 1
