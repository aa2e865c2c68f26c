"""Rate limits and keys of a simulator, exact over two workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from time import monotonic

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.host import kill
from tests.support.raw import ClosedEarlyError, RawReply, chat
from tests.support.shards import connect_to
from tests.support.wait import unhurried, wait_for

CHAT = "/v1/chat/completions"
CONFIG = """
[simulator]
requests_per_minute = 10
tokens_per_minute = 100000
api_keys = ["sk-known", "sk-other", "sk-third", "sk-fourth", "sk-fifth"]
limits = { enforce = true }
"""


@pytest.fixture(scope="module")
def limited(short_tmp: Path) -> Iterator[Gateway]:
    """A two-worker simulator of ten requests a minute."""
    with Gateway(short_tmp / "limited", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def ask(gateway: Gateway, key: str, sim_key: str = "") -> RawReply:
    """A chat on a connection of its own."""
    headers = {"authorization": f"Bearer {key}"} | ({"x-sim-key": sim_key} if sim_key else {})
    return gateway.ask(CHAT, chat("hi", model="gpt-4o"), headers)


def test_the_limit_is_the_hosts(limited: Gateway) -> None:
    """Forty requests from eight sides to two workers: ten pass, and what drained meanwhile."""
    key, asked = {"authorization": "Bearer sk-known"}, chat("hi", model="gpt-4o")
    assert limited.ask("/admin/config", {"limits": {"enforce": False}}).status == 200
    with ExitStack() as opened, ThreadPoolExecutor(8) as pool:
        clients = [
            opened.enter_context(connect_to(limited.url, n % 2, model="gpt-4o", headers=key))
            for n in range(8)
        ]
        assert limited.ask("/admin/config", {"limits": None}).status == 200
        assert limited.ask("/admin/rate-limits/reset", {}).status == 200
        began = monotonic()
        five = pool.map(
            lambda client: [client.post_json(CHAT, asked, key) for _ in range(5)], clients
        )
        replies = list(chain.from_iterable(five))
        drained = (monotonic() - began) / 6
    passed = [reply for reply in replies if reply.status == 200]
    assert 10 <= len(passed) <= 10 + drained
    assert len({reply.headers["x-tpo-shard"] for reply in replies}) == 2
    left = sorted(int(reply.headers["x-ratelimit-remaining-requests"]) for reply in passed)
    assert left[-10:] == list(range(10))
    refused = next(reply for reply in replies if reply.status == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_set_back_they_are_whole_at_once(limited: Gateway) -> None:
    """On every worker; nobody else's limit was touched before."""
    while ask(limited, "sk-other").status == 200:
        pass
    assert limited.ask("/admin/rate-limits/reset", {}).json()["status"] == "success"
    replies = [ask(limited, "sk-other") for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 6
    assert int(replies[0].headers["x-ratelimit-remaining-requests"]) == 9


def test_an_unknown_key_is_the_dialects_401(limited: Gateway) -> None:
    """OpenAI's words for OpenAI's clients, Anthropic's for theirs; no key is unknown too."""
    for headers in ({"authorization": "Bearer sk-unknown"}, None):
        refused = limited.ask(CHAT, chat("hi", model="gpt-4o"), headers)
        assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    asked = {"model": "claude-haiku-4-5", "max_tokens": 5,
             "messages": [{"role": "user", "content": "hi"}]}  # fmt: skip
    refused = limited.ask("/v1/messages", asked, {"x-api-key": "sk-unknown"})
    assert (refused.status, refused.json()["error"]["type"]) == (401, "authentication_error")
    passed = limited.ask("/v1/messages", asked, {"x-api-key": "sk-third"})
    assert passed.status == 200, passed.body
    assert passed.headers["anthropic-ratelimit-requests-remaining"] == "9"


def test_limits_are_switched_on_and_off_while_it_runs(start_gateway: StartGateway) -> None:
    """In a gateway too: its own shards are the provider's workers."""
    config = "[simulator]\nrequests_per_minute = 1\n[surfaces.simulator_admin]\n"
    gateway = start_gateway("--backend", "simulator", config=config)
    assert [ask(gateway, "k").status for _ in range(3)] == [200] * 3
    assert gateway.ask("/admin/config", {"limits": {"enforce": True}}).status == 200
    assert sorted(ask(gateway, "k").status for _ in range(2)) == [200, 429]
    assert gateway.ask("/admin/config", {"limits": None}).status == 200
    assert ask(gateway, "k").status == 200


def test_beyond_the_limit_they_wait_in_line(limited: Gateway) -> None:
    """On the host: of eight to two workers, those beyond the limit and the line are refused."""
    told = {"limits": {"exceed": "queue", "queue": 2, "models": [
        {"match": "gpt-4o", "requests_per_minute": 2}]}, "request_timeout_s": 0.5}  # fmt: skip
    assert limited.ask("/admin/config", told).status == 200

    def four_more() -> None:
        assert limited.ask("/admin/rate-limits/reset", {}).status == 200
        sent = [ask(limited, "sk-fourth") for _ in range(2)]
        assert [reply.status for reply in sent] == [200, 200]
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask(limited, "sk-fourth"), range(4)))
        # Half a minute is longer than a request may take; the line holds two of the four.
        assert sorted(reply.status for reply in replies) == [429, 429, 504, 504]

    unhurried(four_more, 0.8)
    quick = {"limits": {"models": [{"match": "gpt-4o", "requests_per_minute": 60}]},
             "request_timeout_s": 60}  # fmt: skip
    assert limited.ask("/admin/config", quick).status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    began = monotonic()
    assert {ask(limited, "sk-fourth").status for _ in range(62)} == {200}
    assert monotonic() - began > 1.99, "the last two waited until they fitted"
    assert limited.ask("/admin/config", {"limits": None, "request_timeout_s": None}).status == 200


def test_a_quota_is_used_up_on_the_whole_host(limited: Gateway) -> None:
    """Whatever worker answers; set back it is whole, and another key has its own."""
    changed = {"limits": {"enforce": False}, "quotas": {"daily_requests": 3, "reset_hour": 7}}
    assert limited.ask("/admin/config", changed).status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(limited, "sk-fifth"), range(20)))
    assert sum(reply.status == 200 for reply in replies) == 3
    refused = next(reply for reply in replies if reply.status == 429)
    assert refused.json()["error"]["code"] == "quota_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert ask(limited, "sk-fourth").status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    assert ask(limited, "sk-fifth").status == 200
    bad = limited.ask("/admin/config", {"quotas": {"reset_hour": 24}})
    assert (bad.status, b"reset_hour" in bad.body) == (400, True)
    assert limited.ask("/admin/config", {"limits": None, "quotas": None}).status == 200


def test_what_a_limit_refuses_costs_no_quota(limited: Gateway) -> None:
    """The two that passed were counted, the two that were refused were not."""
    narrow = {"enforce": True, "models": [{"match": "gpt-4o", "requests_per_minute": 2}]}
    told = {"limits": narrow, "quotas": {"daily_requests": 3}}
    assert limited.ask("/admin/config", told).status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    assert [ask(limited, "sk-fifth").status for _ in range(4)] == [200, 200, 429, 429]
    assert limited.ask("/admin/config", {"limits": {"enforce": False}}).status == 200
    assert ask(limited, "sk-fifth").status == 200
    assert ask(limited, "sk-fifth").json()["error"]["code"] == "quota_exceeded"
    assert limited.ask("/admin/config", {"limits": None, "quotas": None}).status == 200


def test_what_one_quota_refuses_costs_no_other(limited: Gateway) -> None:
    """What the month refused is not counted for the day."""
    off = {"enforce": False}
    told = {"limits": off, "quotas": {"daily_requests": 3, "monthly_requests": 2}}
    assert limited.ask("/admin/config", told).status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    assert [ask(limited, "sk-fifth").status for _ in range(4)] == [200, 200, 429, 429]
    told = {"limits": off, "quotas": {"daily_requests": 3, "monthly_requests": None}}
    assert limited.ask("/admin/config", told).status == 200
    assert [ask(limited, "sk-fifth").status for _ in range(2)] == [200, 429]
    assert limited.ask("/admin/config", {"limits": None, "quotas": None}).status == 200


@pytest.mark.parametrize(("chance", "refused"), [(0.0, range(1)), (0.5, range(8, 32)), (1.0, [39])])
def test_beyond_the_limit_chance_decides(
    limited: Gateway, chance: float, refused: Sequence[int]
) -> None:
    """The same requests meet the same chance, whichever worker they come to."""
    limits = {"exceed": "chance", "chance": chance,
              "models": [{"match": "*", "requests_per_minute": 1}]}  # fmt: skip
    assert limited.ask("/admin/config", {"seed": 7, "limits": limits}).status == 200

    def statuses() -> list[int]:
        assert limited.ask("/admin/rate-limits/reset", {}).status == 200
        assert ask(limited, "sk-third", "first").status == 200  # what fits passes in any case
        return [ask(limited, "sk-third", f"request-{n}").status for n in range(39)]

    seen = statuses()
    assert set(seen) <= {200, 429}
    assert seen.count(429) in refused, seen
    # Two minutes' worth drained while forty were asked would let one pass that was refused.
    again = statuses()
    assert sum(a != b for a, b in zip(seen, again, strict=True)) <= 2, (seen, again)
    assert limited.ask("/admin/config", {"limits": None, "seed": None}).status == 200


def test_a_quota_outlives_the_worker_that_counted(limited: Gateway) -> None:
    """Killed under load: what was used stays used, and nobody uses more than there is."""
    most = 60
    changed = {"limits": {"enforce": False}, "quotas": {"daily_requests": most}}
    assert limited.ask("/admin/config", changed).status == 200
    assert limited.ask("/admin/rate-limits/reset", {}).status == 200
    answered: list[int] = []
    broken: list[int] = []

    def client(number: int) -> None:
        while True:
            try:
                status = ask(limited, "sk-other").status
            except (OSError, ClosedEarlyError):
                broken.append(number)
                continue
            answered.append(status)
            if status == 429:
                return

    victim = limited.status()["slots"][1]["pid"]
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, n) for n in range(4)]
        wait_for(lambda: len(answered) >= most // 4, 30, "a quarter of the quota to be used")
        kill(victim)
        for each in clients:
            each.result(60)
    good = answered.count(200)
    # A request that broke off may have been charged; one that was answered was, exactly once.
    assert good <= most <= good + len(broken), (good, len(broken))
    wait_for(lambda: limited.status()["slots"][1]["pid"] not in (victim, None), 30, "another")
    seen: set[str] = set()

    def both_refuse() -> bool:
        reply = ask(limited, "sk-other")
        assert reply.status == 429, "used up is used up"
        seen.add(reply.headers["x-tpo-shard"])
        return len(seen) == 2

    wait_for(both_refuse, 30, "a refusal by each worker")
    assert limited.ask("/admin/config", {"limits": None, "quotas": None}).status == 200
