"""Token budgets of a running gateway: exact over two workers, and over the death of one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.load import Crowd
from tests.support.raw import RawClient, RawReply, build, chat
from tests.support.toml import ECHO, section
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
WORDS = "one two three four five"
LIMIT = 2_000
KEYS = {name: f"key-of-{name}-0123456789" for name in ("crowd", "held", "free", "plain")}
CONFIG = (
    ECHO.replace('models = ["echo"]', 'models = ["*"]')
    + section("[[backends]]", name="slow", kind="echo", models=["slow"], delay_ms=500)
    + section("[[routes]]", models=["slow"], backends=["slow"])
    + section("[[routes]]", models=["*"], backends=["echo"])
    + section("[stages.token_budget]", request=20_000, session={"soft": 500, "hard": 1_000})
    + section("[stages.token_budget.tenant]", month=LIMIT, tiers={"free": {"day": 100}})
    + "[auth]\nenabled = true\n"
    + "".join(
        section("[[auth.keys]]", id=name, secret={"env": f"KEY_{name.upper()}"},
                tier="free" if name == "free" else "standard")
        for name in KEYS
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def budgeted(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers; each tenant has two thousand tokens a month."""
    env = {f"KEY_{name.upper()}": key for name, key in KEYS.items()}
    with Gateway(short_tmp / "budgeted", config=CONFIG, workers=2, env=env) as gateway:
        yield gateway


def ask(gateway: Gateway, who: str, path: str = CHAT, **more: Any) -> RawReply:
    """One chat of so many words."""
    headers = {"authorization": f"Bearer {KEYS[who]}", **more.pop("headers", {})}
    return gateway.ask(path, chat(WORDS, **more), headers)


def in_use(refused: RawReply) -> int:
    """What a refusal says is used or set aside."""
    assert refused.status == 429, refused
    return int(refused.headers["x-tpo-budget-used"])


def test_a_budget_is_spent_to_the_last_call_and_no_further(budgeted: Gateway) -> None:
    """Two workers let in as many as one could have, whatever the order and the bursts."""
    answered = refused = 0
    slots = set()
    for wave in range(3):
        with Crowd(
            budgeted.url, 40, model="m", text="a b c d", prefix=f"w{wave}", stream=False,
            apart=True, key=KEYS["crowd"], max_tokens=600,
        ) as crowd:  # fmt: skip
            for attempt in crowd.ended():
                answered += attempt.status == 200
                # 503: what is left is held ahead by the other worker for the moment.
                refused += attempt.status in (429, 503)
                slots.add(attempt.slot)
    assert slots == {0, 1}
    assert answered + refused == 120
    assert answered > 3  # many came at once, each with far more set aside than it used
    last: list[RawReply] = []

    def spent() -> bool:
        """Sequential calls find what the waves left; what they set aside is settled by then."""
        nonlocal answered
        reply = ask(budgeted, "crowd", model="m", max_tokens=10)
        if reply.status == 200:
            answered += 1
            return False
        if reply.status == 503:  # held ahead, as above
            return False
        last.append(reply)
        return in_use(reply) == 10 * answered or answered > LIMIT // 10

    wait_for(spent, 30, "the budget spent")
    amount = 10 + -(-len(json.dumps(chat(WORDS, model="m", max_tokens=10))) // 4)
    assert LIMIT - amount < 10 * answered <= LIMIT
    error = last[-1].json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert f"the tenant budget of {LIMIT} tokens per month has {10 * answered}" in error["message"]
    assert last[-1].headers["x-should-retry"] == "false"
    assert "retry-after" not in last[-1].headers


def test_a_call_whose_worker_was_killed_has_used_what_was_set_aside(budgeted: Gateway) -> None:
    """Once, and for all workers: neither lost with it nor counted twice."""
    headers = {"host": "gateway", "authorization": f"Bearer {KEYS['held']}",
               "content-type": "application/json"}  # fmt: skip
    body = chat("word " * 100, model="slow", max_tokens=1_500, stream=True)
    with RawClient(budgeted.url) as client:
        client.send(build("POST", CHAT, headers, json.dumps(body).encode()))
        assert client.read_until(b"data: ").startswith(b"HTTP/1.1 200")
        before = in_use(ask(budgeted, "held", model="m", max_tokens=1_900))
        assert before > 1_500
        old = budgeted.worker_pids()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: all(
            slot["state"] == "ready" and slot["pid"] not in old
            for slot in budgeted.status()["slots"]
        ),
        30, "other workers", every_s=0.1,
    )  # fmt: skip
    assert in_use(ask(budgeted, "held", model="m", max_tokens=1_900)) == before
    assert ask(budgeted, "held", model="m", max_tokens=100).status == 200


def test_a_session_and_a_tier_have_budgets_of_their_own(budgeted: Gateway) -> None:
    """And one tenant's session is not another's of the same name."""
    one = {"x-session-id": "one"}
    assert ask(budgeted, "plain", model="m", max_tokens=900, headers=one).status == 200
    refused = ask(budgeted, "plain", model="m", max_tokens=1_000, headers=one)
    assert "the session budget of 1000 tokens has" in refused.json()["error"]["message"]
    assert "x-tpo-budget-reset" not in refused.headers
    assert ask(budgeted, "plain", model="m", max_tokens=1_000).status == 200
    refused = ask(budgeted, "free", model="m", max_tokens=100)
    assert "budget of 100 tokens per day" in refused.json()["error"]["message"]
    assert refused.headers["x-tpo-budget-reset"].endswith("T00:00:00Z")


def test_a_session_is_shown_and_reset_by_its_own_tenant(budgeted: Gateway) -> None:
    """By any worker; to others it does not exist."""
    mine = {"authorization": f"Bearer {KEYS['plain']}"}
    path = "/api/v1/sessions/shown/budget"
    for _ in range(2):
        headers = {"x-session-id": "shown"}
        assert ask(budgeted, "plain", model="m", max_tokens=400, headers=headers).status == 200

    def used() -> set[tuple[int, int]]:
        told = [budgeted.ask(path, headers=mine).json() for _ in range(4)]
        return {(one["tokens_used"], one["request_count"]) for one in told}

    wait_for(lambda: used() == {(20, 2)}, 10, "both calls to be settled")
    told = budgeted.ask("/v1/sessions/shown/budget", headers=mine).json()
    assert (told["soft_limit_tokens"], told["hard_limit_tokens"]) == (500, 1_000)
    for method, target in (("GET", path), ("POST", path + "/reset")):
        with RawClient(budgeted.url) as client:
            reply = client.request(method, target, {"authorization": f"Bearer {KEYS['held']}"})
        assert (reply.status, reply.json()["error"]["code"]) == (404, "session_not_found")
    with RawClient(budgeted.url) as client:
        assert client.request("POST", path + "/reset", mine).json()["status"] == "reset"
    assert used() == {(0, 0)}
    found = budgeted.ask("/api/v1/budgets", headers=mine).json()["budgets"]
    assert [(one["level"], one["period"], one["limit"]) for one in found] == [
        ("tenant", "month", LIMIT)
    ]


def test_each_dialect_tells_it_in_its_own_words(budgeted: Gateway) -> None:
    """And none asks its client to try again."""
    for path, body, kind in (
        ("/v1/messages", chat(WORDS, model="m", max_tokens=30_000), "rate_limit_error"),
        ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 30_000},
         "insufficient_quota"),
        ("/v1/responses", {"model": "m", "input": "a", "max_output_tokens": 30_000},
         "insufficient_quota"),
    ):  # fmt: skip
        refused = budgeted.ask(path, body, {"authorization": f"Bearer {KEYS['plain']}"})
        assert (refused.status, refused.json()["error"]["type"]) == (429, kind)
        assert "more than the 20000 that one request may" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"
    native = budgeted.ask(
        "/v1/prompt", {"prompt": "hi", "model": "m", "max_tokens": 30_000},
        {"authorization": f"Bearer {KEYS['plain']}"},
    )  # fmt: skip
    assert (native.status, native.json()["error"]["code"]) == (429, "insufficient_quota")
    assert "tpo_budget_refused_total{" in budgeted.metrics()


def test_a_host_spends_no_more_than_it_may(short_tmp: Path) -> None:
    """``--max-spend``, over two workers, a restart, and with a higher number."""
    config = ECHO + section("[prices.models]", echo={"input": 0, "output": 1_000})
    gateway = Gateway(short_tmp / "cap", "--max-spend", "0.05", config=config, workers=2)

    def refused() -> RawReply:
        return gateway.ask(CHAT, chat(WORDS, max_tokens=50))

    with gateway:
        with Crowd(gateway.url, 30, text="a b c d", stream=False, max_tokens=10) as crowd:
            passed = [attempt.status for attempt in crowd.ended()].count(200)
        assert 0 < passed <= 10

        def spent_usd() -> float:
            return round(gateway.ask("/api/v1/budgets").json()["budgets"][0]["used"], 9)

        wait_for(lambda: spent_usd() == round(passed * 0.005, 9), 10, "all calls to be settled")
        gateway.stop()
        gateway.start()
        reply = refused()
        assert reply.status == 429
        assert reply.json()["error"]["code"] == "insufficient_quota"
        assert f"may spend $0.05, of which ${passed * 0.005:.6f} is in use" in reply.body.decode()
        gateway.stop()
        gateway._args = ("--max-spend", "5")
        gateway.start()
        assert refused().status == 200


def test_what_was_spent_is_spent_after_a_restart(short_tmp: Path) -> None:
    """Of the whole gateway, in good order or not; one of control alone counts nothing twice."""
    config = ECHO + section("[stages.token_budget.global]", month=1_000)
    gateway = Gateway(short_tmp / "again", config=config, workers=2)

    def spend(times: int) -> None:
        for _ in range(times):
            assert gateway.ask(CHAT, chat(WORDS, max_tokens=10)).status == 200

    def spent() -> int:
        return in_use(gateway.ask(CHAT, chat(WORDS, max_tokens=2_000)))

    def written() -> float:
        lines = gateway.metrics().splitlines()
        found = [line for line in lines if line.startswith("tpo_counts_written_total")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    with gateway:
        spend(5)
        wait_for(lambda: spent() == 50, 10, "the last call to be settled")
        gateway.stop()
        gateway.start()
        assert spent() == 50
        spend(2)
        wait_for(lambda: spent() == 70, 10, "the last call to be settled")
        before = written()
        wait_for(lambda: spent() == 70 and written() >= before + 2, 10, "it to be written")
        gateway.close()
        gateway.start()
        assert spent() == 70
        control = gateway.status()["control"]["pid"]
        os.kill(control, signal.SIGKILL)

        def replaced() -> bool:
            found = gateway.status()["control"]
            return found["pid"] not in (None, control) and found["state"] == "ready"

        wait_for(replaced, 20, "another control process", every_s=0.1)
        assert spent() == 70
