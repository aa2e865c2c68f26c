"""Rate limits over HTTP: what is used, what is left, page by page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest

from tests.support.fake_env import FakeQuotas, FakeWorld, make_call
from tests.support.fake_gateway import Surface
from tpo_mp.config import load
from tpo_mp.errors import InvalidRequest, RateLimited
from tpo_mp.ports import Env, Feature
from tpo_mp.stages.rate_limit import Config, RateLimit
from tpo_mp.surfaces.limits_api import FEATURE

STATS = "/api/v1/rate-limiter/stats"


class Limited:
    """A stage and the surface that shows its limits."""

    def __init__(self, keys: tuple[tuple[str, str], ...] = (), **options: Any) -> None:
        seen: list[Env] = []

        def built(config: Any, env: Env) -> Any:
            seen.append(env)
            return FEATURE.build(config, env)

        self.surface = Surface(Feature(FEATURE.Config, built))
        told = {"stages": {"rate_limit": options}} if options else {}
        auth = [{"id": f"k{n}", "tenant": t, "tier": tier, "secret": f"secret-of-16-bytes-{n}"}
                for n, (t, tier) in enumerate(keys)]  # fmt: skip
        tree = load.build({**told, "auth": {"keys": auth}}, {}, {}, None)
        self.surface.gateway.config = tree.config if hasattr(tree, "config") else tree
        self.world: FakeWorld = self.surface.world
        env = replace(seen[0], clock=self.world.env.clock)
        config = msgspec.convert(options, Config) if options else Config()
        self.stage = RateLimit(config, env)
        self.quotas = cast("FakeQuotas", env.quotas)

    def come_in(self, times: int = 1, **more: Any) -> int:
        """Calls come; answers how many were let in."""
        came = 0
        for _ in range(times):
            try:
                self.stage.before(make_call(b"{}", **{"tenant": "t", "model": "m", **more}))
                came += 1
            except RateLimited:
                pass
        return came

    def ask(self, query: str = "") -> Any:
        """What is told."""
        return self.surface.ask("GET", STATS + query).json()


def test_each_level_says_what_came_in_and_what_is_left() -> None:
    """Windows, places and refusals, of the host's counts; what is only leased did not come in."""
    limited = Limited(
        session={"rph": 9000}, tenant={"rpm": 60, "tpm": 50_000}, model={"rps": 5, "concurrent": 9},
        **{"global": {"concurrent": 100}},
    )  # fmt: skip
    assert limited.come_in(7, session="s") == 5
    told = limited.ask()
    assert {(one["level"], one["tenant"], one["name"]) for one in told["limits"]} == {
        ("session", "t", "s"), ("tenant", "t", "t"), ("model", None, "m"), ("global", None, "")
    }  # fmt: skip
    by = {one["level"]: one for one in told["limits"]}
    assert [(one["requests_allowed"], one["requests_denied"]) for one in by.values()].count(
        (5, 0)
    ) == 3
    assert (by["model"]["requests_denied"], by["model"]["in_flight"]) == (2, 5)
    assert by["model"]["concurrent"] == 9
    assert by["session"]["concurrent"] is None
    assert by["session"]["windows"] == [
        {"unit": "requests", "period": "hour", "limit": 9000, "capacity": 9000, "remaining": 8995}
    ]
    assert [(w["unit"], w["period"]) for w in by["tenant"]["windows"]] == [
        ("requests", "minute"), ("tokens", "minute")
    ]  # fmt: skip
    assert told["models"] == [
        {"model_id": "m", "requests_allowed": 5, "requests_denied": 2, "current_tokens": 0,
         "capacity": 5}
    ]  # fmt: skip
    assert (told["count"], told["next"]) == (4, None)


def test_windows_drain_while_nobody_comes() -> None:
    """What is shown is what a request would find now."""
    limited = Limited(model={"rps": 5})
    limited.come_in(5)
    limited.world.now += 0.4
    assert limited.ask()["models"][0]["current_tokens"] == 2


def test_a_level_and_a_page_can_be_asked_for() -> None:
    """Each name once over all pages."""
    limited = Limited(model={"rpm": 9}, tenant={"rpm": 999})
    for number in range(150):
        limited.come_in(model=f"m{number}")
    query, seen = "?level=model&limit=40", []
    while query:
        told = limited.ask(query)
        assert told["count"] == len(told["models"]) <= 40
        seen += [one["model_id"] for one in told["models"]]
        query = f"?level=model&limit=40&after={told['next']}" if told["next"] else ""
    assert sorted(seen) == sorted(f"m{number}" for number in range(150))
    assert [one["name"] for one in limited.ask("?level=tenant")["limits"]] == ["t"]


def test_a_tenant_has_the_windows_of_its_tier() -> None:
    """Where all its keys have one."""
    tiers = {"rpm": 60, "tiers": {"free": {"rpm": 6}}}
    for keys, limit in (
        ((("t", "free"),), 6), ((("t", "standard"),), 60), ((), 60),
        ((("t", "free"), ("t", "standard")), None),
    ):  # fmt: skip
        limited = Limited(keys, tenant=tiers)
        limited.come_in()
        windows = limited.ask()["limits"][0]["windows"]
        assert [window["limit"] for window in windows] == ([] if limit is None else [limit])


@pytest.mark.parametrize("query", ["?level=week", "?limit=0", "?limit=x", "?after=-1"])
def test_a_wrong_question_is_refused(query: str) -> None:
    """By the name of what is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        Limited(model={"rpm": 9}).ask(query)
    assert refused.value.param == query[1:].partition("=")[0]


def test_where_nothing_is_limited_nothing_is_listed() -> None:
    """Though an earlier configuration may have left counts."""
    limited = Limited()
    limited.come_in(3)
    limited.surface.gateway.config = load.build({}, {}, {}, None)
    assert limited.ask() == {"models": [], "limits": [], "count": 0, "next": None}
