"""Limits that run out, drain, and tell the truth in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, SilentSeries, make_call
from tpo_mp.errors import RateLimited
from tpo_mp.simulator.limits import Allowance, Standing
from tpo_mp.simulator.rate_limits import LimitOptions, ModelLimit, RateLimits
from tpo_mp.types import Call, Dialect


class Limited:
    """Limits of 3 requests and 600 tokens a minute in a world that stands still."""

    def __init__(self, models: tuple[ModelLimit, ...] = (), **more: Any) -> None:
        self.world = FakeWorld()
        self.exceeded = SilentSeries()
        self.options = LimitOptions(enforce=True, models=models, **more)
        self.limits = self.made(0)

    def made(self, epoch: int) -> RateLimits:
        """What another worker, or another epoch, has."""
        return RateLimits(
            "sim", self.options, Allowance(3, 600), ledger=self.world.env.ledger,
            clock=self.world.env.clock, epoch=epoch, exceeded=self.exceeded,
        )  # fmt: skip


def caller(key: str = "k", dialect: Dialect = Dialect.OPENAI_CHAT, **more: Any) -> Call:
    """A call by somebody."""
    made = make_call(b"{}", model=more.pop("model", "gpt-4o"), dialect=dialect, **more)
    made.authorization = f"Bearer {key}".encode() if key else None
    return made


def told(standing: Standing, dialect: Dialect) -> dict[str, str]:
    """Header lines as a table."""
    return dict(line.split(": ") for line in standing.lines(dialect, 1).decode().splitlines())


def test_requests_run_out_and_come_back_evenly() -> None:
    """Three at once; a third of a minute later one more."""
    limited = Limited()
    for left in (2, 1, 0):
        assert limited.limits.charge(caller(), 1, 1).left(0) == left
    with pytest.raises(RateLimited) as refused:
        limited.limits.charge(caller(), 1, 1)
    assert refused.value.retry_after_s == pytest.approx(20)
    assert limited.exceeded.value == 1
    limited.world.now += 19.9
    with pytest.raises(RateLimited):
        limited.limits.charge(caller(), 1, 1)
    limited.world.now += 0.2
    assert limited.limits.charge(caller(), 1, 1).left(0) == 0


def test_a_refused_request_costs_nothing() -> None:
    """However often it is tried, the wait does not grow."""
    limited = Limited()
    limited.limits.charge(caller(), 500, 50)
    for _ in range(5):
        with pytest.raises(RateLimited) as refused:
            limited.limits.charge(caller(), 90, 10)
        assert refused.value.retry_after_s == pytest.approx(5)
    assert limited.limits.charge(caller(), 40, 10).left(1) == 0


@pytest.mark.parametrize(
    "other",
    [{"key": "other"}, {"model": "gpt-4o-mini"}, {"dialect": Dialect.OPENAI_RESPONSES}],
)
def test_each_key_model_and_endpoint_has_its_own(other: dict[str, Any]) -> None:
    """What one used up, another has."""
    limited = Limited()
    for _ in range(3):
        limited.limits.charge(caller(), 1, 1)
    assert limited.limits.charge(caller(**other), 1, 1).left(0) == 2


def test_without_a_key_the_address_counts() -> None:
    """Two machines, two allowances."""
    limited = Limited()
    for _ in range(3):
        limited.limits.charge(caller("", peer="192.0.2.1"), 1, 1)
    with pytest.raises(RateLimited):
        limited.limits.charge(caller("", peer="192.0.2.1"), 1, 1)
    assert limited.limits.charge(caller("", peer="192.0.2.2"), 1, 1).left(0) == 2


def test_all_workers_count_together_until_they_are_set_back() -> None:
    """Two views of one ledger; another epoch begins anew."""
    limited = Limited()
    other = limited.made(0)
    limited.limits.charge(caller(), 1, 1)
    other.charge(caller(), 1, 1)
    assert limited.limits.charge(caller(), 1, 1).left(0) == 0
    assert limited.made(1).charge(caller(), 1, 1).left(0) == 2


def test_models_have_numbers_of_their_own() -> None:
    """The first glob that matches; what it leaves out is as for all."""
    limited = Limited((ModelLimit(match="gpt-4*", requests_per_minute=10), ModelLimit(match="*")))
    standing = limited.limits.charge(caller(), 1, 1)
    assert standing.limits == (10, 600, 600)
    assert limited.limits.charge(caller(model="other"), 1, 1).limits == (3, 600, 600)


def test_openai_is_told_what_is_left_and_when_it_is_whole() -> None:
    """All tokens together; the error says which limit it was."""
    limited = Limited()
    standing = limited.limits.charge(caller(), 250, 50)
    found = told(standing, Dialect.OPENAI_CHAT)
    assert found["x-ratelimit-remaining-tokens"] == "300"
    assert found["x-ratelimit-reset-tokens"] == "30s"
    assert found["x-ratelimit-reset-requests"] == "20s"
    with pytest.raises(RateLimited) as refused:
        limited.limits.charge(caller(), 301, 0)
    error = json.loads(refused.value.body or b"")["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "limit 600, used 300, requested 301" in error["message"]
    assert b"x-ratelimit-remaining-tokens: 300" in refused.value.lines


def test_anthropic_counts_each_direction_by_itself() -> None:
    """And ``tokens`` is the tighter of the two."""
    limited = Limited()
    call = caller(dialect=Dialect.ANTHROPIC_MESSAGES)
    found = told(limited.limits.charge(call, 500, 100), Dialect.ANTHROPIC_MESSAGES)
    assert found["anthropic-ratelimit-input-tokens-remaining"] == "100"
    assert found["anthropic-ratelimit-output-tokens-remaining"] == "500"
    assert found["anthropic-ratelimit-tokens-remaining"] == "100"
    assert limited.limits.charge(call, 100, 400).left(2) == 100
    with pytest.raises(RateLimited) as refused:
        limited.limits.charge(call, 0, 101)
    assert "on output tokens per minute" in refused.value.message
    body = json.loads(refused.value.body or b"")
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")


def test_a_request_over_the_whole_limit_never_fits() -> None:
    """It is refused, and told so, rather than charged."""
    limited = Limited()
    with pytest.raises(RateLimited) as refused:
        limited.limits.charge(caller(), 601, 0)
    assert refused.value.retry_after_s == 60
    assert limited.limits.charge(caller(), 600, 0).left(1) == 0


def test_over_the_limit_they_stand_in_line() -> None:
    """Each waits a turn longer; beyond the line they are refused; who left is out of it."""
    limited = Limited(exceed="queue", queue=2)
    for _ in range(3):
        assert limited.limits.charge(caller(), 1, 1).wait_s == 0
    waits = [limited.made(0).charge(caller(), 1, 1) for _ in range(2)]
    assert [standing.wait_s for standing in waits] == pytest.approx([20, 40])
    assert [standing.left(0) for standing in waits] == [0, 0]
    with pytest.raises(RateLimited) as refused:
        limited.limits.charge(caller(), 1, 1)
    assert refused.value.retry_after_s == pytest.approx(60)
    limited.world.now += 20
    limited.limits.leave(caller())
    assert limited.limits.charge(caller(), 1, 1).wait_s == pytest.approx(40)


def test_what_never_fits_does_not_wait() -> None:
    """Nor does chance let it pass."""
    for more in ({"exceed": "queue"}, {"exceed": "chance", "chance": 0.0}):
        with pytest.raises(RateLimited):
            Limited(**more).limits.charge(caller(), 601, 0)


def test_by_chance_some_over_the_limit_pass_and_cost_nothing() -> None:
    """Which of them is told by their keys; all or none at the ends."""
    limited = Limited(exceed="chance", chance=0.5)
    for _ in range(3):
        limited.limits.charge(caller(), 1, 1)

    def passes(n: int) -> bool:
        try:
            limited.limits.charge(caller(), 1, 1, lambda: n.to_bytes(8, "big"))
        except RateLimited:
            return False
        return True

    first = [passes(n) for n in range(400)]
    assert 150 < sum(first) < 250
    assert [passes(n) for n in range(400)] == first
    limited.world.now += 20
    assert limited.limits.charge(caller(), 1, 1).left(0) == 0
