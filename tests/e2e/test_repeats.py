"""Requests whose very bytes came before: told again by whichever worker, and never when wrong."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat
from tests.support.toml import NO_RETRIES, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
KEYS = {"a": "key-of-team-a-0123", "b": "key-of-team-b-0123"}
ADMIN = {"authorization": "Bearer key-of-the-admin-0123"}
REPEATS = "tpo_repeats_total"
TIMES = 12
"""More than enough that each worker was asked often enough to remember."""


SIMULATED = """
[[backends]]
name = "google"
kind = "simulator"
models = ["gemini-2.5-flash"]
[surfaces.gemini_api]
"""


@dataclass(frozen=True)
class Asked:
    """What is asked in a dialect, where the key goes, and the mark of a stream in the answer."""

    path: str
    body: dict[str, Any]
    key: str = "x-api-key"
    mark: bytes = b""

    def ask(self, gateway: Gateway, who: str = "a", **head: str) -> RawReply:
        """Ask it in the same bytes, on a connection of its own."""
        secret = KEYS.get(who, who)
        return gateway.ask(self.path, self.body, {self.key: f"{BEARER[self.key]}{secret}"} | head)

    def remembered(self, gateway: Gateway, **head: str) -> list[RawReply]:
        """What is told by both workers once they remember it."""

        def told() -> list[RawReply] | None:
            before = gateway.metric(REPEATS)
            replies = [self.ask(gateway, **head) for _ in range(TIMES)]
            shards = {reply.headers["x-tpo-shard"] for reply in replies}
            at_once = gateway.metric(REPEATS) - before >= TIMES
            return replies if at_once and len(shards) == gateway.workers else None

        return wait_for(told, 30, "workers that remember")


BEARER = {"x-api-key": "", "authorization": "Bearer "}


def messages(text: str, **more: Any) -> Asked:
    """In Anthropic's words."""
    body = chat(text, "up-1", temperature=0, max_tokens=50, **more)
    return Asked("/v1/messages", body, mark=b"message_stop" if more else b"")


def response(text: str, **more: Any) -> Asked:
    """In OpenAI's newer words."""
    body = {"model": "up-1", "input": text, "temperature": 0, "store": False} | more
    return Asked("/v1/responses", body, "authorization", b"response.completed" if more else b"")


def gemini(text: str, method: str = "generateContent", mark: bytes = b"") -> Asked:
    """In Google's words."""
    contents = [{"role": "user", "parts": [{"text": text}]}]
    body = {"contents": contents, "generationConfig": {"temperature": 0}}
    return Asked(f"/v1beta/models/gemini-2.5-flash:{method}", body, mark=mark)


PROMPT = {"model": "up-1", "prompt": "\n\nHuman: as it was\n\nAssistant:", "temperature": 0,
          "max_tokens_to_sample": 50}  # fmt: skip
DIALECTS = {
    "messages": messages("one"),
    "messages, streamed": messages("two", stream=True),
    "complete": Asked("/v1/complete", PROMPT),
    "responses": response("three"),
    "responses, streamed": response("four", stream=True),
    "gemini": gemini("five"),
    "gemini, streamed": gemini("six", "streamGenerateContent?alt=sse", b"data: "),
    "gemini, an array": gemini("seven", "streamGenerateContent", b"[{"),
}


def config(origin: Upstream) -> str:
    """Two keys, an operator's, and one upstream."""
    keys = "".join(f'[[auth.keys]]\nid = "{k}"\nsecret = "{v}"\n' for k, v in KEYS.items())
    keys += '[[auth.keys]]\nid = "root"\nadmin = true\nsecret = "key-of-the-admin-0123"\n'
    return backend("up", origin.base_url, "up-1") + NO_RETRIES + "[auth]\nenabled = true\n" + keys


@pytest.fixture(scope="module")
def gateway(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers."""
    with Gateway(short_tmp / "repeats", config=config(origin), workers=2) as running:
        yield running


def ask(gateway: Gateway, text: str, times: int = 1, who: str = "a", **more: Any) -> list[RawReply]:
    """Ask the same in the same bytes, each on a connection of its own."""
    head = {"authorization": f"Bearer {KEYS[who]}"} | more.pop("headers", {})
    body = chat(text, "up-1", temperature=0, **more)
    return [gateway.ask(CHAT, body, head) for _ in range(times)]


def hows(replies: list[RawReply]) -> list[str]:
    """What they say of the cache."""
    return [reply.headers["x-tpo-cache"] for reply in replies]


def warm(gateway: Gateway, text: str, **more: Any) -> None:
    """Ask until every worker has told it again at once."""

    def told() -> bool:
        before = gateway.metric(REPEATS)
        shards = {reply.headers["x-tpo-shard"] for reply in ask(gateway, text, TIMES, **more)}
        return len(shards) == gateway.workers and gateway.metric(REPEATS) - before >= TIMES

    wait_for(told, 30, "workers that remember")


def test_repeats_are_told_by_every_worker_and_booked_as_calls(
    gateway: Gateway, origin: Upstream
) -> None:
    """Streams and wholes, each under an id of its own, in the words of the first."""
    names = ("orchestrator_cache_hits_total", "tpo_saved_tokens_total", REPEATS)
    forms: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "user": "somebody"}]
    for number, form in enumerate(forms):
        text = f"form {number}"
        first = ask(gateway, text, **form)[0]
        warm(gateway, text, **form)
        before = origin.counters.requests
        counted = [gateway.metric(name) for name in names]
        told = ask(gateway, text, 20, **form)
        assert hows(told) == ["hit"] * 20
        assert not any("x-tpo-backend" in reply.headers for reply in told)
        assert len({reply.headers["x-tpo-call-id"] for reply in told}) == 20
        assert origin.counters.requests == before

        def same(reply: RawReply) -> bytes:
            """The answer without its id."""
            said = reply.events[0] if reply.events else reply.body
            return reply.body.replace(json.loads(said)["id"].encode(), b"ID")

        assert {same(reply) for reply in told} == {same(first)}

        grown = [20, 20 * (11 if "stream" in form else 12), 20]

        def booked(grown: list[float] = grown, counted: list[float] = counted) -> bool:
            now = [gateway.metric(name) for name in names]
            return [a - b for a, b in zip(now, counted, strict=True)] == grown

        wait_for(booked, 10, "the books")


def test_other_tenants_and_opting_out_go_the_whole_way(gateway: Gateway, origin: Upstream) -> None:
    """Whoever else asks in the same bytes gets no answer of another's."""
    warm(gateway, "whose")
    before, repeats = origin.counters.requests, gateway.metric(REPEATS)
    assert hows(ask(gateway, "whose", who="b")) == ["miss"]
    assert hows(ask(gateway, "whose", 4, who="b")) == ["hit"] * 4
    no_store = ask(gateway, "whose", 2, headers={"x-tpo-cache": "no-store"})
    assert not any("x-tpo-cache" in reply.headers for reply in no_store)
    assert hows(ask(gateway, "whose", headers={"x-tpo-cache": "no-cache"})) == ["miss"]
    assert origin.counters.requests == before + 4
    assert gateway.ask(CHAT, chat("whose", "up-1", temperature=0), {}).status == 401
    warm(gateway, "whose")  # what a refresh brought is told again, too
    assert gateway.metric(REPEATS) > repeats


def test_a_flush_and_a_death_are_heard_of(gateway: Gateway, origin: Upstream) -> None:
    """What was flushed is asked again; what a dead worker kept is told by both of those there."""
    warm(gateway, "kept")
    assert gateway.delete("/api/v1/cache", {"authorization": f"Bearer {KEYS['a']}"}).status == 403
    old = gateway.worker_pids()[0]
    os.kill(old, signal.SIGKILL)
    gateway.replaced(0, old)
    before = origin.counters.requests
    assert hows(ask(gateway, "kept", TIMES)) == ["hit"] * TIMES
    warm(gateway, "kept")
    assert origin.counters.requests == before


def test_a_reload_forgets(gateway: Gateway) -> None:
    """Another upstream, another answer, on both workers; a flush is heard of likewise."""
    warm(gateway, "again")
    assert gateway.delete("/api/v1/cache", ADMIN).status == 200
    assert Counter(hows(ask(gateway, "again", TIMES)))["miss"] == 1
    warm(gateway, "again")
    assert gateway.config_path is not None
    text = gateway.config_path.read_text()
    gateway.config_path.write_text(text.replace('name = "up"', 'name = "other"'))
    assert gateway.tpo("reload").returncode == 0
    told = ask(gateway, "again", TIMES)
    assert Counter(hows(told)) == {"miss": 1, "hit": TIMES - 1}
    assert told[0].headers["x-tpo-backend"] == "other"
    warm(gateway, "again")


@pytest.fixture(scope="module")
def polyglot(short_tmp: Path, origin: Upstream) -> Iterator[Gateway]:
    """Two workers that speak every dialect."""
    with Gateway(short_tmp / "polyglot", config=config(origin) + SIMULATED, workers=2) as running:
        yield running


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_told_again(polyglot: Gateway, origin: Upstream, name: str) -> None:
    """By both workers, as the first was answered and as its clients read it; never to others."""
    asked = DIALECTS[name]
    first = asked.ask(polyglot)
    assert (first.status, first.headers["x-tpo-cache"]) == (200, "miss"), first.body

    for reply in asked.remembered(polyglot):
        assert (reply.status, reply.headers["x-tpo-cache"]) == (200, "hit")
        assert bare(reply) == bare(first)
        ours = {line for line in reply.headers if line.endswith("request-id")}
        assert ours == {line for line in first.headers if line.endswith("request-id")}
        assert reply.headers["content-type"] == first.headers["content-type"]
    assert asked.mark in first.body
    before = origin.counters.requests
    assert asked.ask(polyglot, "nobody's key, and long").status == 401
    assert asked.ask(polyglot, "b").headers["x-tpo-cache"] == "miss"
    assert origin.counters.requests == before + ("gemini" not in name)


def bare(reply: RawReply) -> bytes:
    """An answer without what each has of its own."""
    found = re.search(rb'"id":\s?("[^"]+")', reply.body)
    return reply.body.replace(found[1], b"ID") if found else reply.body


def test_what_the_head_says_makes_another_question(polyglot: Gateway) -> None:
    """The same bytes for another version of the API, or for an answer in another form."""
    asked = messages("of a version")
    asked.remembered(polyglot, **{"anthropic-version": "2023-06-01"})
    other = asked.ask(polyglot, **{"anthropic-version": "2023-01-01"})
    assert other.headers["x-tpo-cache"] == "miss"
    events = gemini("in a form", "streamGenerateContent?alt=sse")
    assert events.remembered(polyglot)[0].body.startswith(b"data: ")
    array = replace(events, path=events.path.removesuffix("?alt=sse"))
    assert array.ask(polyglot).body.startswith(b"[{")


def test_limits_are_kept_by_repeats_of_every_dialect(short_tmp: Path, origin: Upstream) -> None:
    """Who may ask eight times an hour is answered eight times, whoever answers."""
    text = config(origin) + SIMULATED + "[stages.rate_limit]\ntenant = { rph = 8 }\n"
    names = ("messages, streamed", "responses", "gemini, an array")
    keys = "".join(
        f'[[auth.keys]]\nid = "t{n}"\nsecret = "key-of-tenant-{n}-0123"\n'
        for n in range(len(names))
    )
    with Gateway(short_tmp / "strict", config=text + keys, workers=2) as strict:
        for number, name in enumerate(names):
            who = f"key-of-tenant-{number}-0123"
            told: list[int] = []

            def all_were_answered(name: str = name, who: str = who, told: list[int] = told) -> bool:
                told.append(DIALECTS[name].ask(strict, who).status)
                return told.count(200) == 8

            wait_for(all_were_answered, 30, "eight answers")
            more = [DIALECTS[name].ask(strict, who).status for _ in range(4)]
            assert more == [429] * 4, (name, told)
