"""Refusals in each provider's words and shapes."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_env import make_call
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
        for order in (ErrorOrder(429), ErrorOrder(503, 7), ErrorOrder(429, None, True),
                      ErrorOrder(401))
    ]  # fmt: skip
    assert waits == [1.0, 7, None, None]


def test_limit_headers_say_what_is_left() -> None:
    """Nothing, when the limit was the reason; an empty account is not one."""
    call = make_call(b"", model="m")
    limited, broke, bad = (
        refusal(order, call, ALLOWED).lines
        for order in (ErrorOrder(429), ErrorOrder(429, None, True), ErrorOrder(400))
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
    assert not refusal(ErrorOrder(429, None, True), call, ALLOWED).retryable
