"""Budgets over HTTP: what is shown, to whom, and what a reset leaves."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from tests.support.fake_env import FakeQuotas
from tests.support.fake_gateway import FakeExchange, Surface
from tests.support.raw import build
from tpo_mp.config.tree import Config
from tpo_mp.errors import TpoError
from tpo_mp.http.endpoints import EndpointTable
from tpo_mp.http.exchange import Exchange
from tpo_mp.http.head import parse
from tpo_mp.pipeline.budgets import NANO, BudgetOptions
from tpo_mp.ports import Env, Feature
from tpo_mp.surfaces.budget_api import FEATURE
from tpo_mp.types import EVERYBODY, Principal

SESSION = "/api/v1/sessions/s/budget"


class Shown:
    """A surface over some budgets, and its ledger."""

    def __init__(self, **options: Any) -> None:
        seen: list[Env] = []

        def built(config: Any, env: Env) -> Any:
            seen.append(env)
            return FEATURE.build(config, env)

        self.surface = Surface(Feature(FEATURE.Config, built))
        stages: dict[str, msgspec.Struct] = {}
        if options:
            stages["token_budget"] = msgspec.convert(options, BudgetOptions)
        self.surface.gateway.config = Config(stages=stages)
        self.surface.gateway.tenants = {"t": "t"}
        self.names = cast("FakeQuotas", seen[0].quotas).names

    def put(self, name: str, *cells: float, ahead: int = 0) -> None:
        """Have a count; ``ahead`` of it, in two calls, is only held by a worker."""
        quota = self.names[f"kept:budget:{name}"]
        quota.cells[:4] = cells
        quota.unspent = [quota.lease(2 if ahead else 0, ahead)]

    def ask(self, method: str, target: str, who: Principal = EVERYBODY) -> Any:
        """What a caller of tenant ``t`` is answered."""
        raw = build(method, target, {"Host": "x", "Authorization": "t", "Content-Length": "0"})
        exchange = FakeExchange(parse(raw, EndpointTable(self.surface.gateway.table), 1 << 20))
        exchange.head.principal = who
        assert exchange.head.endpoint is not None
        exchange.head.endpoint.handler(cast("Exchange", exchange))
        return exchange.json()

    def refused(self, method: str, target: str) -> str:
        """Why not."""
        with pytest.raises(TpoError) as refused:
            self.ask(method, target)
        assert refused.value.status == 404
        return refused.value.reason


def test_a_session_is_shown_as_it_stands() -> None:
    """Used, limits, whether they are reached, and since when."""
    shown = Shown(session={"soft": 80, "hard": 100})
    shown.put("session:1:t:s", 0.0, 90.0, 5.0, 1_795_795_200.0, ahead=10)
    assert shown.ask("GET", SESSION) == shown.ask("GET", "/v1/sessions/s/budget") == {
        "session_id": "s", "tokens_used": 80, "soft_limit_tokens": 80, "hard_limit_tokens": 100,
        "soft_limit_reached": True, "hard_limit_reached": False,
        "last_updated": "2026-11-27T16:00:00Z", "last_reset": None, "request_count": 3,
    }  # fmt: skip
    shown.put("session:1:t:s", 1_795_795_000.0, 100.0, 4.0, 1_795_795_200.0)
    told = shown.ask("GET", SESSION)
    assert told["hard_limit_reached"] is True
    assert told["last_reset"] == "2026-11-27T15:56:40Z"


def test_a_reset_session_starts_anew() -> None:
    """And says since when."""
    shown = Shown(session={})
    shown.put("session:1:t:s", 0.0, 100_000.0, 3.0, 5.0, ahead=700)
    assert shown.ask("POST", SESSION + "/reset") == {"status": "reset", "session_id": "s"}
    told = shown.ask("GET", SESSION)
    assert (told["tokens_used"], told["request_count"]) == (0, 0)
    assert told["last_reset"] == told["last_updated"] is not None


@pytest.mark.parametrize("method_and_path", [("GET", SESSION), ("POST", SESSION + "/reset")])
@pytest.mark.parametrize("options", [{}, {"request": 5}, {"session": {}}])
def test_a_session_that_used_nothing_does_not_exist(
    method_and_path: tuple[str, str], options: dict[str, Any]
) -> None:
    """Nor does one where sessions have no budget, or another tenant's; asking makes none."""
    shown = Shown(**options)
    shown.put("session:1:u:s", 0.0, 1.0, 1.0, 1.0)
    assert shown.refused(*method_and_path) == "session_not_found"
    assert list(shown.names) == ["kept:budget:session:1:u:s"]


def test_a_tenant_sees_its_budgets_and_an_admin_the_hosts() -> None:
    """By the caller's tier; what is of a period that is over shows as unused."""
    shown = Shown(
        request=4096, tenant={"hour": 100, "tiers": {"free": {"month": 50, "day": 10}}},
        max_spend_usd=2.5, **{"global": {"month": 1000}},
    )  # fmt: skip
    shown.put("tenant:month:t", 4e9, 20.0, 2.0, 1.0)
    shown.put("tenant:day:t", 3600.0, 9.0, 1.0, 1.0)
    shown.put("spend", 0.0, 0.5 * NANO, 7.0, 1.0)
    told = shown.ask("GET", "/api/v1/budgets", Principal("t", "k", "free"))
    assert told["request_limit_tokens"] == 4096
    assert [
        (b["level"], b["period"], b["limit"], b["used"], b["remaining"], b["requests"])
        for b in told["budgets"]
    ] == [("tenant", "month", 50, 20, 30, 2), ("tenant", "day", 10, 0, 10, 0)]
    assert all(b["resets_at"].endswith(":00:00Z") for b in told["budgets"])
    told = shown.ask("GET", "/api/v1/budgets", Principal("t", "k", "standard", admin=True))
    assert [b["level"] for b in told["budgets"]] == ["tenant", "global", "spend"]
    assert told["budgets"][-1] == {
        "level": "spend", "period": "", "unit": "usd", "limit": 2.5, "used": 0.5,
        "remaining": 2.0, "requests": 7, "resets_at": None,
    }  # fmt: skip


def test_no_budgets_are_an_empty_list() -> None:
    """No error."""
    assert Shown().ask("GET", "/api/v1/budgets") == {"request_limit_tokens": 0, "budgets": []}
