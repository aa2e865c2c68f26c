"""Refusals in each provider's words and shapes."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.fake_env import make_call
from tpo_mp.errors import TpoError
from tpo_mp.simulator.error_kinds import KINDS
from tpo_mp.simulator.failures import refusal
from tpo_mp.simulator.limits import Allowance
from tpo_mp.simulator.orders import ErrorOrder
from tpo_mp.types import Dialect

ALLOWED = Allowance(60, 1000)
STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_a_body_in_each_family(status: int) -> None:
    """OpenAI's envelope has four fields, Anthropic's a type and the request's id."""
    openai = refusal(ErrorOrder(status), make_call(b"", model="m"), ALLOWED)
    assert openai.status == status
    told = json.loads(openai.body or b"")["error"]
    assert set(told) == {"message", "type", "param", "code"}
    call = make_call(b"", model="m", dialect=Dialect.ANTHROPIC_MESSAGES)
    anthropic = json.loads(refusal(ErrorOrder(status), call, ALLOWED).body or b"")
    assert anthropic["type"] == "error"
    assert set(anthropic["error"]) == {"type", "message"}
    assert anthropic["request_id"] == "call-1"
    assert "{" not in told["message"] + anthropic["error"]["message"]


def test_only_what_passes_says_when_to_come_back() -> None:
    """A limit and an overload do; an empty account and a bad key do not."""
    call = make_call(b"", model="m")
    waits = [
        refusal(order, call, ALLOWED).retry_after_s
        for order in (ErrorOrder(429), ErrorOrder(503, 7),
                      ErrorOrder(429, None, "insufficient_quota"), ErrorOrder(401))
    ]  # fmt: skip
    assert waits == [1.0, 7, None, None]


def test_limit_headers_say_what_is_left() -> None:
    """Nothing, when the limit was the reason; an empty account is not one."""
    call = make_call(b"", model="m")
    limited, broke, bad = (
        refusal(order, call, ALLOWED).lines
        for order in (ErrorOrder(429), ErrorOrder(429, None, "insufficient_quota"), ErrorOrder(400))
    )
    assert b"x-ratelimit-remaining-requests: 0\r\n" in limited
    assert b"x-ratelimit-remaining-requests: 59\r\n" in broke
    assert b"x-ratelimit-remaining-requests: 59\r\n" in bad


def test_gateway_may_try_again_where_a_client_would() -> None:
    """Limits and failures are retryable, refusals are not."""
    call = make_call(b"", model="m")
    assert [refusal(ErrorOrder(s), call, ALLOWED).retryable for s in (429, 500, 400)] == [
        True, True, False,
    ]  # fmt: skip
    assert not refusal(ErrorOrder(429, None, "insufficient_quota"), call, ALLOWED).retryable


def named(name: str, dialect: Dialect = Dialect.OPENAI_CHAT, tokens: int = 0) -> TpoError:
    """The refusal of that name."""
    call = make_call(b"", model="gpt-4o", dialect=dialect)
    return refusal(ErrorOrder(KINDS[name].status, None, name, tokens), call, ALLOWED)


@pytest.mark.parametrize("name", KINDS)
def test_every_name_has_a_body_in_each_family(name: str) -> None:
    """Whole sentences, the status of the name, and the wait that belongs to it."""
    for dialect in (Dialect.OPENAI_CHAT, Dialect.ANTHROPIC_MESSAGES):
        error = named(name, dialect)
        assert error.status == KINDS[name].status
        assert error.retry_after_s == KINDS[name].wait_s
        told = json.loads(error.body or b"")["error"]
        assert told["message"]
        assert "{" not in told["message"]
        assert told["type"]


@pytest.mark.parametrize(
    ("name", "status", "kind", "code", "param"),
    [
        ("context_length_exceeded", 400, "invalid_request_error", "context_length_exceeded",
         "messages"),
        ("missing_parameter", 400, "invalid_request_error", "missing_required_parameter",
         "messages"),
        ("content_filter_triggered", 400, "invalid_request_error", "content_policy_violation",
         None),
        ("rate_limit_tpm", 429, "tokens", "rate_limit_exceeded", None),
        ("rate_limit_rpm", 429, "requests", "rate_limit_exceeded", None),
        ("insufficient_quota", 429, "insufficient_quota", "insufficient_quota", None),
    ],
)  # fmt: skip
def test_openais_own_types_and_codes(
    name: str, status: int, kind: str, code: str, param: str | None
) -> None:
    """As the API reference lists them."""
    error = named(name)
    told = json.loads(error.body or b"")["error"]
    assert (error.status, told["type"], told["code"], told["param"]) == (status, kind, code, param)


@pytest.mark.parametrize(
    ("name", "wait_s"),
    [
        ("rate_limit", 60), ("rate_limit_concurrent", 60), ("quota_exceeded", 3600),
        ("daily_quota_exceeded", 86_400), ("monthly_quota_exceeded", 2_592_000),
        ("service_unavailable", 5), ("bad_gateway", 5), ("gateway_timeout", 10),
        ("request_timeout", 10), ("bad_request", None), ("insufficient_quota", None),
    ],
)  # fmt: skip
def test_waits_are_those_of_the_design(name: str, wait_s: float | None) -> None:
    """Limits a minute, quotas their period, servers five seconds, timeouts ten."""
    assert named(name).retry_after_s == wait_s


@pytest.mark.parametrize("dialect", [Dialect.OPENAI_CHAT, Dialect.ANTHROPIC_MESSAGES])
def test_length_that_is_too_long_is_said_to_be_longer(dialect: Dialect) -> None:
    """A message whose numbers contradict each other would give the simulator away."""
    for tokens in (1, 100_000, 250_000):
        said = named("context_length_exceeded", dialect, tokens).message
        numbers = [int(digits) for digits in re.findall(r"(?<![-\w])\d+(?!\w)", said)]
        assert tokens in numbers
        assert max(numbers) == tokens
