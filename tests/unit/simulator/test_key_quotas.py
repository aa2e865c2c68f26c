"""Quotas of a day and of a month."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.support.fake_env import FakeLedger, SilentSeries, make_call
from tpo_mp.errors import RateLimited
from tpo_mp.simulator.key_quotas import KeyQuotas, QuotaOptions, period
from tpo_mp.simulator.limits import Allowance
from tpo_mp.types import Call


def instant(text: str) -> float:
    """Seconds since 1970 of an instant in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def caller(key: str = "k") -> Call:
    """A call by somebody."""
    call = make_call(b"{}", model="gpt-4o")
    call.authorization = f"Bearer {key}".encode()
    return call


class Clocked:
    """Quotas on a wall clock that stands where a test puts it."""

    def __init__(self, options: QuotaOptions, at: str) -> None:
        self.at = instant(at)
        self.ledger = FakeLedger()
        self.exceeded = SilentSeries()
        self.options = options

    def quotas(self, epoch: int = 0) -> KeyQuotas:
        """Those of any process."""
        return KeyQuotas(
            "sim", self.options, Allowance(3, 600), ledger=self.ledger, wall=lambda: self.at,
            epoch=epoch, exceeded=self.exceeded,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("span", "at", "hour", "begins", "ends"),
    [
        ("daily", "2026-03-01T00:00", 0, "2026-03-01T00:00", "2026-03-02T00:00"),
        ("daily", "2026-03-01T05:59", 6, "2026-02-28T06:00", "2026-03-01T06:00"),
        ("daily", "2026-03-01T06:00", 6, "2026-03-01T06:00", "2026-03-02T06:00"),
        ("monthly", "2026-03-01T05:59", 6, "2026-02-01T06:00", "2026-03-01T06:00"),
        ("monthly", "2026-12-31T23:59", 0, "2026-12-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_periods_begin_at_their_hour(span: str, at: str, hour: int, begins: str, ends: str) -> None:
    """An instant belongs to the one that began before it."""
    found = period(span, instant(at), hour)  # type: ignore[arg-type]  # a parameter
    assert found == (instant(begins), instant(ends))


def test_a_quota_is_a_keys_on_the_whole_host_until_its_hour() -> None:
    """Two processes count together; another key has its own; at the hour it is whole."""
    clocked = Clocked(QuotaOptions(daily_requests=2, reset_hour=6), "2026-03-01T05:00")
    one, other = clocked.quotas(), clocked.quotas()
    one.charge(caller(), 10)
    other.charge(caller(), 10)
    with pytest.raises(RateLimited) as refused:
        one.charge(caller(), 10)
    assert refused.value.retry_after_s == 3600
    assert json.loads(refused.value.body or b"")["error"]["code"] == "quota_exceeded"
    assert clocked.exceeded.value == 1
    one.charge(caller("other"), 10)
    clocked.quotas(epoch=1).charge(caller(), 10)
    clocked.at = instant("2026-03-01T06:00")
    one.charge(caller(), 10)


def test_what_a_month_refuses_does_not_cost_the_day() -> None:
    """Nor does what is given back, and a request that still fits passes."""
    clocked = Clocked(QuotaOptions(daily_requests=3, monthly_tokens=100), "2026-03-31T23:00")
    quotas = clocked.quotas()
    quotas.charge(caller(), 90)
    for _ in range(5):
        with pytest.raises(RateLimited) as refused:
            quotas.charge(caller(), 11)
        assert refused.value.retry_after_s == 3600
    quotas.give_back(quotas.charge(caller(), 10))
    quotas.charge(caller(), 5)
    quotas.charge(caller(), 5)
    with pytest.raises(RateLimited):
        quotas.charge(caller(), 0)
    clocked.at = instant("2026-04-01T00:00")
    assert len(quotas.charge(caller(), 100)) == 2
