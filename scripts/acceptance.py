#!/usr/bin/env python3
"""Nine tests of a running gateway, from outside: scripts/acceptance.py --url http://127.0.0.1:8080

Needs Python and nothing else, changes nothing at the target, and exits 1 when any test fails.
What the target has not switched on is not pretended: the test then checks that it is really off.
Where a limit is met on the way, it is waited for as the answer says, for at most five seconds.

health          /health, /live and /ready answer 200, and no shard is missing
root            / names the program and lists the routes that the other tests use
models          the list is not empty and each name in it is known; an unknown one is 404, unless
                some backend serves every name
chat            an answer with words, finish reason and usage; bad requests are refused by name
streaming       events that join to words, a finish reason and the terminal event
auth            with --api-key: no key and a wrong key are 401, the key is accepted;
                without: auth must be off, so that no key and any key are accepted
rate limit      a burst is answered 200 or 429, a 429 says when to come back, and then is true;
                with --limited: the burst must meet a limit
load balancing  sessions reach every shard, and each keeps its own
performance     the slowest of 100 requests stays below --p99-ms, and 8 clients at once are served
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

CHAT = "/v1/chat/completions"
BURST = 50
MAX_PAUSE_S = 5.0


class FailedError(Exception):
    """What was expected and what came instead."""


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise FailedError(f"no JSON: {self.body[:80]!r}") from None


class Target:
    """The gateway under test."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._url = urlsplit(options.url)

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str = ""
    ) -> Answer:
        """Ask as ``once`` does, again after a 429's pause if that is bearable."""
        until = time.monotonic() + MAX_PAUSE_S
        while (answer := self.once(path, body, headers, key)).status == 429:
            pause = answer.headers.get("retry-after", "")
            if not pause.isdigit() or time.monotonic() + int(pause) > until:
                break
            time.sleep(int(pause))
        return answer

    def once(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str = ""
    ) -> Answer:
        """GET, or POST a JSON body, on a connection of its own; ``key`` replaces the given one."""
        connection = self._connect()
        try:
            return self._on(connection, path, body, headers, key)
        finally:
            connection.close()

    def many(self, path: str, times: int) -> Iterator[float]:
        """GET on one connection again and again; yield the seconds each answer took."""
        connection = self._connect()
        try:
            for _ in range(times):
                began = time.perf_counter()
                expect(self._on(connection, path, None, None, ""), 200)
                yield time.perf_counter() - began
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=self.options.timeout)

    def _on(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: Any,
        headers: dict[str, str] | None,
        key: str,
    ) -> Answer:
        sent = {"Content-Type": "application/json"} | (headers or {})
        if token := key or self.options.api_key:
            sent.setdefault("Authorization", f"Bearer {token}")
        sent = {name: value for name, value in sent.items() if value}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request("GET" if body is None else "POST", path, data, sent)
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, found, reply.read())
        except (OSError, http.client.HTTPException) as error:
            raise FailedError(f"{path}: no answer ({error!r})") from None

    def chat(self, text: str, **more: Any) -> dict[str, Any]:
        """Make a short chat body."""
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, "max_tokens": 16} | more

    @property
    def model(self) -> str:
        """The model of the command line, else the first that is listed."""
        if not self.options.model:
            listed = expect(self.ask("/v1/models"), 200).json()["data"]
            check(listed, "no model is listed, name one with --model")
            self.options.model = listed[0]["id"]
        return str(self.options.model)


def check(true: object, said: str) -> None:
    """Fail with ``said`` unless ``true``."""
    if not true:
        raise FailedError(said)


def expect(answer: Answer, *statuses: int) -> Answer:
    """Fail unless the status is one of these."""
    wanted = " or ".join(map(str, statuses))
    check(answer.status in statuses, f"{wanted} wanted, got {answer.status}: {answer.body[:120]!r}")
    return answer


def health(target: Target) -> str:
    """Alive, ready, and nothing is missing."""
    for path in ("/live", "/ready"):
        expect(target.ask(path), 200)
    found = expect(target.ask("/health"), 200).json()
    check(found["status"] == "healthy", f"status {found['status']}: {found.get('degraded')}")
    return f"version {found['version']}, {len(found['host']['shards'])} shards"


def root(target: Target) -> str:
    """The banner names the program and its routes."""
    found = expect(target.ask("/"), 200).json()
    missing = {CHAT, "/v1/models", "/health", "/metrics"} - set(found["endpoints"])
    check(not missing, f"routes not listed: {sorted(missing)}")
    return f"{found['name']} {found['version']}, {len(found['endpoints'])} routes"


def models(target: Target) -> str:
    """Listed, known by name, unknown otherwise."""
    listed = expect(target.ask("/v1/models"), 200).json()["data"]
    check(listed, "no model is listed")
    for name in [entry["id"] for entry in listed][:20]:
        one = expect(target.ask(f"/v1/models/{quote(name, safe='')}"), 200).json()
        check(one["id"] == name, f"asked for {name!r}, got {one['id']!r}")
    unknown = target.ask("/v1/models/no-such-model-anywhere")
    expect(unknown, 404, 200)  # a backend of every name (`models = ["*"]`) knows this one too
    return f"{len(listed)} listed, unknown name {unknown.status}"


def chat(target: Target) -> str:
    """A whole answer, and refusals that name the field."""
    found = expect(target.ask(CHAT, target.chat("say hello")), 200).json()
    choice, usage = found["choices"][0], found["usage"]
    said = choice["message"]["content"]
    check(said, "no words in the answer")
    check(choice["finish_reason"] in ("stop", "length"), f"finish {choice['finish_reason']!r}")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    check(usage["total_tokens"] == total > 0, f"usage does not add up: {usage}")
    for wrong, field in (({"temperature": 9}, "temperature"), ({"messages": 1}, "messages")):
        error = expect(target.ask(CHAT, target.chat("hi") | wrong), 400).json()["error"]
        check(field in error["message"], f"refusal does not name {field}: {error['message']!r}")
    return f"{said[:40]!r}, {usage['total_tokens']} tokens"


def streaming(target: Target) -> str:
    """Events up to the terminal one."""
    answer = expect(target.ask(CHAT, target.chat("one two three four", stream=True)), 200)
    kind = answer.headers.get("content-type", "")
    check(kind.startswith("text/event-stream"), f"content type {kind!r}")
    data = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: ")]
    check(data and data[-1] == b"[DONE]", "the stream has no end")
    choices = [choice for event in data[:-1] for choice in json.loads(event)["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    check(said, "no words in the stream")
    check(choices[-1]["finish_reason"], "no finish reason")
    return f"{len(data)} events, {said[:40]!r}"


def auth(target: Target) -> str:
    """On exactly when a key was given on the command line."""
    body, without = target.chat("hi"), {"Authorization": ""}
    wrong = "sk-not-a-key-of-this-gateway-0000"
    if not target.options.api_key:
        check(
            target.ask(CHAT, body, without).status != 401, "auth is on: give a key with --api-key"
        )
        expect(target.ask(CHAT, body, key=wrong), 200)
        return "off: no key and any key are accepted"
    for asked in (target.ask(CHAT, body, without), target.ask(CHAT, body, key=wrong)):
        expect(asked, 401)
        check(asked.json()["error"]["message"], "a refusal without words")
    expect(target.ask(CHAT, body), 200)
    return "on: only the key is accepted"


def rate_limit(target: Target) -> str:
    """A burst meets a limit that says when to come back, or none."""
    with ThreadPoolExecutor(8) as pool:
        bodies = [target.chat(f"burst {number}") for number in range(BURST)]
        answers = list(pool.map(lambda body: target.once(CHAT, body), bodies))
    limited = [expect(answer, 200, 429) for answer in answers if answer.status != 200]
    check(limited or not target.options.limited, f"no limit met in {BURST} requests")
    if not limited:
        return f"no limit met in {BURST} requests"
    for answer in limited:
        check("retry-after" in answer.headers, "a 429 does not say when to come back")
        check(answer.json()["error"]["message"], "a 429 without words")
    expect(target.ask(CHAT, target.chat("later")), 200)
    return f"{len(limited)} of {BURST} limited, free again when told"


def load_balancing(target: Target) -> str:
    """Sessions spread over the shards and stay where they are."""
    found = expect(target.ask("/health"), 200).json()["host"]["shards"]
    serving = {str(shard["slot"]) for shard in found if shard["state"] == "ready"}
    homes: dict[str, int] = {}
    for number in range(64 * len(serving)):
        session = {"X-Session-Id": f"acceptance-{number}"}
        home = _shard(target, session)
        homes[home] = homes.get(home, 0) + 1
        if number < 8:
            check(home == _shard(target, session), f"session {number} moved from shard {home}")
        if number >= 16 and set(homes) == serving:
            break
    check(set(homes) == serving, f"shards {sorted(serving)} serve, sessions reached {homes}")
    return ", ".join(f"shard {shard}: {homes[shard]}" for shard in sorted(homes, key=int))


def _shard(target: Target, headers: dict[str, str]) -> str:
    answer = expect(target.ask(CHAT, target.chat("where", max_tokens=1), headers), 200)
    check("x-tpo-shard" in answer.headers, "the answer does not name its shard")
    return answer.headers["x-tpo-shard"]


def performance(target: Target) -> str:
    """The API answers fast, one after another and at once."""
    took = sorted(target.many("/v1/models", 100))
    check(took[98] * 1e3 < target.options.p99_ms, f"p99 {took[98] * 1e3:.1f} ms")
    with ThreadPoolExecutor(8) as pool:
        at_once = [t for many in pool.map(lambda _: list(target.many("/live", 25)), range(8))
                   for t in many]  # fmt: skip
    return f"p50 {took[49] * 1e3:.2f} ms, p99 {took[98] * 1e3:.2f} ms, {len(at_once)} at once"


TESTS: tuple[tuple[str, Callable[[Target], str]], ...] = (
    ("health", health), ("root", root), ("models", models), ("chat", chat),
    ("streaming", streaming), ("auth", auth), ("rate limit", rate_limit),
    ("load balancing", load_balancing), ("performance", performance),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the nine tests and answer the exit code."""
    about = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about[0], epilog=about[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the gateway listens")
    parser.add_argument("--verbose", action="store_true", help="say what each test saw")
    parser.add_argument("--model", default="", help="model to ask; the first listed by default")
    parser.add_argument(
        "--api-key", default=os.environ.get("TPO_API_KEY", ""),
        help="key of the gateway (or TPO_API_KEY): auth must then be on",
    )  # fmt: skip
    parser.add_argument("--limited", action="store_true", help="a rate limit must be met")
    parser.add_argument("--p99-ms", type=float, default=200.0, help="bound of the last test")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for an answer")
    target = Target(parser.parse_args(arguments))
    passed = sum(run(name, test, target) for name, test in TESTS)
    print(f"Tests Passed: {passed}/{len(TESTS)} ({100 * passed / len(TESTS):.1f}%)")
    return 0 if passed == len(TESTS) else 1


def run(name: str, test: Callable[[Target], str], target: Target) -> bool:
    """Run one test and print its line."""
    began = time.perf_counter()
    try:
        said, passed = test(target), True
    except (FailedError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        said = str(error) if isinstance(error, FailedError) else f"unexpected answer: {error!r}"
        passed = False
    word = "PASS" if passed else "FAIL"
    detail = f"  {said}" if target.options.verbose or not passed else ""
    print(f"{word}  {name:<14}  {time.perf_counter() - began:.3f} s{detail}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
