"""SDKs come back when an upstream says so, through the gateway: when, how often, and not at all.

The counts are the gateway's, of calls it was asked for; the pauses are the upstream's, by its log.
An SDK's own pause before its first retry is at most half a second: who waits longer was told to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.conftest import families
from tests.support.dialects import REPLIES
from tests.support.gateway import Gateway
from tests.support.javascript import Node
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

SDKS = ("openai-python", "anthropic-python", "openai-javascript", "anthropic-javascript")
BACKENDS = {"gpt-1": "openai_chat", "claude-1": "anthropic_messages"}
PAUSE_S = 1.2
NO: dict[str, Any] = {"type": "error", "error": {"type": "some_error", "message": "not now"}}
pytestmark = pytest.mark.timeout(240)  # the first test may wait for the npm packages

Ask = Callable[[str, str], int]


@dataclass(frozen=True, slots=True)
class Asked:
    """How one call through an SDK went: its last status, and how often it was made."""

    status: int
    calls: int


@pytest.fixture(scope="module")
def both_families(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """Of these tests alone, since they count."""
    yield from families(short_tmp / "retries")


@pytest.fixture(params=SDKS)
def ask(request: pytest.FixtureRequest) -> Ask:
    """One SDK, which retries twice: a function of address and model to the last status."""
    family, _, language = request.param.partition("-")
    if language == "javascript":
        node: Node = request.getfixturevalue("node")  # only these tests need Node

        def run(url: str, model: str) -> int:
            seen = node.run(family, "chat", url=url, model=model, text="hi", retries=2)
            return int(seen["error"]["status"]) if "error" in seen else 200

        return run
    return ask_openai if family == "openai" else ask_anthropic


def ask_openai(url: str, model: str) -> int:
    """Ask with OpenAI's for Python."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=2) as client:
        try:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
        except openai.APIStatusError as error:
            return error.status_code
    return 200


def ask_anthropic(url: str, model: str) -> int:
    """Ask with Anthropic's for Python."""
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=2) as client:
        try:
            client.messages.create(
                model=model, max_tokens=9, messages=[{"role": "user", "content": "x"}]
            )
        except anthropic.APIStatusError as error:
            return error.status_code
    return 200


def calls_of(gateway: Gateway) -> int:
    """Count the calls that the gateway was asked for."""
    text = gateway.metrics()
    lines = [line for line in text.splitlines() if line.startswith("tpo_calls_total{")]
    return sum(int(float(line.split()[-1])) for line in lines)


def measured(ask: Ask, scripted: tuple[Gateway, Upstream], model: str) -> Asked:
    """Ask once, however often that is.

    A call is counted just after its answer was sent; this gateway asks its upstream once a call.
    """
    gateway, upstream = scripted
    before = upstream.counters.requests
    assert calls_of(gateway) == before, "somebody else's calls"
    status = ask(gateway.url, model)
    wait_for(lambda: calls_of(gateway) >= upstream.counters.requests, 10, "calls to be counted")
    return Asked(status, calls_of(gateway) - before)


@pytest.mark.parametrize("model", BACKENDS)
@pytest.mark.parametrize("status", [429, 503])
def test_pause_in_milliseconds_is_kept(
    ask: Ask, scripted: tuple[Gateway, Upstream], model: str, status: int
) -> None:
    """``retry-after-ms`` from either API; the second try is answered."""
    _, upstream = scripted
    headers = {"Retry-After-Ms": str(round(PAUSE_S * 1e3)), "Retry-After": "1"}
    upstream.queue("status", status=status, reply=NO, headers=headers)
    upstream.queue("answer", reply=REPLIES[BACKENDS[model]])
    asked = measured(ask, scripted, model)
    assert (asked.status, asked.calls) == (200, 2)
    assert upstream.seen[-1].at - upstream.seen[0].at >= PAUSE_S


def test_pause_up_to_a_date_is_kept(ask: Ask, scripted: tuple[Gateway, Upstream]) -> None:
    """``retry-after`` as an HTTP date, which has whole seconds."""
    _, upstream = scripted
    ahead_s = 3.0  # more than a client waits by itself
    date, due = formatdate(time.time() + ahead_s, usegmt=True), time.monotonic() + ahead_s - 1
    upstream.queue("status", status=429, reply=NO, headers={"Retry-After": date})
    upstream.queue("answer", reply=REPLIES["openai_chat"])
    asked = measured(ask, scripted, "gpt-1")
    assert (asked.status, asked.calls) == (200, 2)
    assert upstream.seen[-1].at >= due


@pytest.mark.parametrize("model", BACKENDS)
@pytest.mark.parametrize("status", [429, 503])
def test_who_is_told_not_to_come_back_does_not(
    ask: Ask, scripted: tuple[Gateway, Upstream], model: str, status: int
) -> None:
    """``x-should-retry: false`` from either API: one call, and its error."""
    _, upstream = scripted
    upstream.queue("status", status=status, reply=NO, headers={"X-Should-Retry": "false"})
    asked = measured(ask, scripted, model)
    assert asked.status in (status, 529)
    assert asked.calls == 1


def test_who_is_told_to_come_back_does(ask: Ask, scripted: tuple[Gateway, Upstream]) -> None:
    """``x-should-retry: true`` on a refusal that nobody would try again."""
    _, upstream = scripted
    upstream.queue("status", status=422, reply=NO, headers={"X-Should-Retry": "true"})
    upstream.queue("answer", reply=REPLIES["openai_chat"])
    asked = measured(ask, scripted, "gpt-1")
    assert (asked.status, asked.calls) == (200, 2)


def test_tries_come_to_an_end(ask: Ask, scripted: tuple[Gateway, Upstream]) -> None:
    """Three in all, then the upstream's own status."""
    _, upstream = scripted
    upstream.queue("status", 3, status=429, reply=NO, headers={"Retry-After-Ms": "1"})
    asked = measured(ask, scripted, "gpt-1")
    assert (asked.status, asked.calls) == (429, 3)
