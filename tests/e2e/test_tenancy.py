"""Two tenants ask the same words in the same sessions: neither is told what the other was.

The upstream numbers its answers and says again what it was asked, documents included, so an answer
tells for which request it was made and whose documents were in it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pytest

from tests.support.gateway import Gateway
from tests.support.load import LoopThread
from tests.support.raw import RawClient, build, chat
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wire import Attempt, Wire

CALLS = 10_000
CLIENTS = 48
CHAT, DOCUMENTS = "/v1/chat/completions", "/api/v1/rag/documents"
KEYS = {name: f"key-of-{name}-0123456789" for name in ("anna", "bert")}
TOPICS = ("lighthouse", "museum", "harbour")
ALIKE = (
    "When does the {} open on day {}?",
    "when does the {} open on day {}",
    "When does  the {} open on day {}!",
)
PLAIN = (
    "Which castle has number {}?",
    "which castle has number {}",
    "Which castle has  number {}!",
)
"""Documents tell nothing of these, so what the upstream is asked is the same for both tenants."""
NUMBER = re.compile(r"#(\d+)#")


@dataclass(frozen=True)
class Ask:
    """One call of a plan."""

    who: str
    text: str
    session: str
    key: str
    stream: bool
    temperature: float

    def request(self, host: str) -> bytes:
        """As it is sent."""
        head = {"Host": host, "Content-Type": "application/json",
                "Authorization": f"Bearer {KEYS[self.who]}"}  # fmt: skip
        if self.session:
            head["X-Session-Id"] = self.session
        if self.key:
            head["Idempotency-Key"] = self.key
        body = chat(self.text, "up", stream=self.stream, temperature=self.temperature)
        return build("POST", CHAT, head, json.dumps(body).encode())


def plan(rng: Random) -> list[Ask]:
    """Calls whose words, sessions and idempotency keys are those of a few others of both tenants.

    Words move on as time goes by, so that the same ones are asked at once, soon after, and later.
    """
    asks = []
    for n in range(CALLS):
        day = (n // 40 if rng.random() < 0.9 else rng.randrange(n // 40 + 1)) % 200
        plain = rng.random() < 0.5
        text = rng.choice(PLAIN if plain else ALIKE)
        text = text.format(day) if plain else text.format(rng.choice(TOPICS), day)
        stream, warm = rng.random() < 0.3, rng.random() < 0.2
        form = f"{text}{stream}{warm}"
        session = f"s{sum(form.encode()) % 16}" if rng.random() < 0.5 else ""
        # With one key a tenant says the same thing again, and the other tenant says it too.
        key = f"k {session} {crc32(form.encode())}" if rng.random() < 0.15 else ""
        asks.append(Ask(rng.choice(list(KEYS)), text, session, key, stream, 0.7 if warm else 0.0))
    return asks


def said(attempt: Attempt) -> str:
    """The words of an answer, whole or streamed."""
    if not attempt.stream:
        return str(json.loads(attempt.body)["choices"][0]["message"]["content"])
    events = [json.loads(event) for event in attempt.events if event != b"[DONE]"]
    deltas = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)


async def ask_all(url: str, asks: list[Ask]) -> list[Attempt]:
    """Make the calls of a plan in its order, some at a time."""
    attempts = [Attempt(str(n), stream=one.stream) for n, one in enumerate(asks)]
    turns = iter(range(len(asks)))

    async def client() -> None:
        wire = Wire(url)
        host = f"{wire.host}:{wire.port}"
        try:
            for n in turns:
                await wire.run(attempts[n], asks[n].request(host), patience_s=60)
        finally:
            wire.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return attempts


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """It says what it is asked."""
    with Upstream() as running:
        running.play(numbered=True, first_s=0.02)
        yield running


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, upstream: Upstream) -> Iterator[Gateway]:
    """Two workers with everything by which one call may have the answer of another."""
    config = backend("up", upstream.base_url, "*") + NO_RETRIES + section("[auth]", enabled=True)
    for name, key in KEYS.items():
        config += section("[[auth.keys]]", id=name, tenant=name, secret=key)
    config += "[stages.near_dedup]\n" + section("[stages.rag]", timeout_s=5)
    config += section("[stages.dedup]", match="all")
    with Gateway(short_tmp / "tenancy", config=config, workers=2) as running:
        for name in KEYS:
            for topic in TOPICS:
                put(running, name, topic)
        yield running


def put(gateway: Gateway, who: str, topic: str) -> None:
    """A document of a tenant's own, under a name that the other has, too."""
    text = f"The {topic} opens, says <{who}> alone."
    head = {"authorization": f"Bearer {KEYS[who]}", "content-type": "application/json"}
    sent: dict[str, Any] = {"id": topic, "title": topic, "text": text}
    with RawClient(gateway.url) as client:
        reply = client.request("POST", DOCUMENTS, head, json.dumps(sent).encode())
    assert reply.status == 200, reply


@pytest.mark.timeout(240)
def test_no_answer_goes_to_two_tenants(gateway: Gateway, rng: Random) -> None:
    """Of ten thousand: by the cache, a call under way, a near question, a key, or a document."""
    asks = plan(rng)
    with LoopThread() as loop:
        attempts = loop.call(ask_all(gateway.url, asks), 200)
    failed = [a for a in attempts if a.outcome != "ok"]
    assert not failed, Counter(f"{a.outcome} {a.status} {a.why}" for a in failed)
    asked_by: dict[str, set[str]] = {}
    wrong = 0
    for one, attempt in zip(asks, attempts, strict=True):
        words = said(attempt)
        found = NUMBER.findall(words)
        assert len(found) == 1, words
        asked_by.setdefault(found[0], set()).add(one.who)
        others = [name for name in KEYS if name != one.who]
        assert (f"<{one.who}>" in words) is ("castle" not in one.text), words
        wrong += any(f"<{name}>" in words for name in others)
    shared = sum(len(who) > 1 for who in asked_by.values())
    assert (shared, wrong) == (0, 0), "answers that two tenants were given, others' documents"
    # Every way was gone, on both workers.
    ways = Counter(a.headers.get("x-tpo-cache", "none") for a in attempts)
    assert {"hit", "miss", "coalesced", "semantic", "none"} <= set(ways), ways
    assert sum("idempotency-replayed" in a.headers for a in attempts) > 50
    assert {a.slot for a in attempts} == {0, 1}
    assert len(asked_by) < CALLS * 3 // 4  # the rest had the answers of others
