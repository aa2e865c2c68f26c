"""Token budgets: what is set aside, what a call that ended has used, what a refusal says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import orjson
import pytest

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tests.support.quota_host import QuotaHost
from tpo_mp.config import load
from tpo_mp.config.prices import Prices, PricesSection, TokenPrice
from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    BackendTimeout,
    Cancelled,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    OverBudget,
    RateLimited,
    Shed,
    TpoError,
    WorkerLost,
)
from tpo_mp.pipeline.endings import tell_ended
from tpo_mp.shm.quotas import SharedQuotas
from tpo_mp.stages.token_budget import Config, TokenBudget
from tpo_mp.types import Aside, Call, Dialect, Ending, Terminal

NOW = 1_795_795_200.0 + 1234  # 2026-11-27T16:00:00Z and some
HOUR = 3600.0


class Counted(SilentMetrics):
    """Metrics a test can read."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault((name, *labels.values()), SilentSeries())


class World(FakeWorld):
    """One whose quotas are those of a host with two workers."""

    def __init__(self) -> None:
        super().__init__()
        self.host = QuotaHost()
        self.seats = 0
        self.busy = ""
        self.asked: dict[str, bool] = {}

    def worker(self) -> SharedQuotas:
        """What the next worker sees; names with ``busy`` in them cannot be asked."""
        quotas = self.host.seat(self.seats)
        self.seats += 1
        update = quotas.update

        def noted(name: str, change: Any, *, crowd: bool = False) -> Any:
            if self.busy and self.busy in name:
                raise Shed("busy", reason="ledger_busy", retry_after_s=1)
            self.asked[name] = crowd
            return update(name, change, crowd=crowd)

        quotas.update = noted  # type: ignore[method-assign]
        return quotas


class Budgeted:
    """A stage in a world that stands still; its clock on the wall is ``at``."""

    def __init__(self, world: World | None = None, **options: Any) -> None:
        self.world = world or World()
        self.counted = Counted()
        self.at = NOW
        env = replace(self.world.env, metrics=self.counted, quotas=self.world.worker())
        self.stage = TokenBudget(config(**options), env, wall=lambda: self.at)

    def let_in(self, amount: int, **more: Any) -> Call:
        """A call that may use so many tokens in all comes in."""
        call = caller(amount, **more)
        self.stage.before(call)
        return call

    def refusal(self, amount: int, **more: Any) -> OverBudget:
        """What such a call is refused with."""
        with pytest.raises(OverBudget) as refused:
            self.stage.before(caller(amount, **more))
        return refused.value

    def used(self, name: str) -> tuple[float, float]:
        """Tokens and calls of one count."""
        quotas, name = self.world.host.seat(2), f"kept:budget:{name}"
        found = quotas.look(name) or quotas.look(name, crowd=True)
        assert found is not None
        return found.spent()[1:3]


def config(**options: Any) -> Config:
    """Options as a file has them."""
    if "overall" in options:
        options["global"] = options.pop("overall")
    return msgspec.convert(options, Config)


def caller(amount: int, **more: Any) -> Call:
    """A call of tenant ``t`` whose prompt is 10 tokens by estimate and its output the rest."""
    body = orjson.dumps({"max_tokens": amount - 10, "pad": ""})
    body = body[:-2] + b"x" * (40 - len(body)) + body[-2:]
    assert len(body) == 40
    return make_call(body, **{"tenant": "t", "tier": "standard", **more})


def end(call: Call, error: TpoError | None = None, *, tokens: tuple[int, int] = (-1, -1),
        attempts: int = 1, terminal: Terminal | None = None) -> None:  # fmt: skip
    """The call has ended."""
    how = terminal or (Terminal.FAILED if error else Terminal.DONE)
    tell_ended(call, Ending(how, *tokens, error, attempts))


def test_the_estimate_and_the_most_output_are_set_aside_and_the_usage_settled() -> None:
    """So two calls that could use too much together do not both come in."""
    budget = Budgeted(overall={"hour": 100})
    call = budget.let_in(60)
    assert budget.used("global:hour") == (60, 1)
    assert "60 in use" in budget.refusal(60).message
    end(call, tokens=(4, 6))
    assert budget.used("global:hour") == (10, 1)
    end(budget.let_in(90), tokens=(10, 80))
    assert budget.used("global:hour") == (100, 2)
    assert budget.counted.series["tpo_budget_tokens_total", "reserved"].value == 150
    assert budget.counted.series["tpo_budget_tokens_total", "used"].value == 100


def test_output_that_is_not_limited_is_set_aside_as_configured() -> None:
    """By a documented number."""
    budget = Budgeted(overall={"hour": 10_000}, default_output=500)
    call = make_call(b"{}" + b" " * 39)
    budget.stage.before(call)
    assert budget.used("global:hour") == (511, 1)


@pytest.mark.parametrize(
    ("ended", "used"),
    [
        ({"tokens": (4, 6)}, 10),
        ({"tokens": (4, -1)}, 94),
        ({"tokens": (-1, 6)}, 16),
        ({"tokens": (0, 0)}, 0),
        ({}, 100),
        ({"tokens": (300, 200)}, 500),
        ({"attempts": 0, "tokens": (4, 6)}, 0),
        ({"attempts": 0, "error": Shed("full")}, 0),
        ({"error": BackendRefused("no")}, 0),
        ({"error": BackendRefused("no"), "attempts": 2}, 100),
        ({"error": CircuitOpen("no")}, 0),
        ({"error": InvalidRequest("no")}, 0),
        ({"error": RateLimited("no")}, 0),
        ({"error": BackendFailure("no")}, 100),
        ({"error": BackendTimeout("no")}, 100),
        ({"error": BackendFailure("cut"), "tokens": (4, 6)}, 10),
        ({"error": WorkerLost("dead")}, 100),
        ({"error": WorkerLost("dead"), "attempts": 0}, 100),
        ({"error": Cancelled("left"), "terminal": Terminal.CANCELLED}, 100),
        ({"error": Cancelled("left"), "terminal": Terminal.CANCELLED, "attempts": 0}, 0),
        ({"error": DeadlineExceeded("late"), "terminal": Terminal.EXPIRED}, 100),
    ],
)
def test_what_a_call_that_ended_has_used(ended: dict[str, Any], used: int) -> None:
    """What was reported; nothing if nothing was asked; else what was set aside."""
    budget = Budgeted(overall={"hour": 100_000})
    end(budget.let_in(100), **ended)
    assert budget.used("global:hour") == (used, 1)
    overrun = budget.counted.series.get(("tpo_budget_overrun_total",))
    assert overrun is not None
    assert overrun.value == max(used - 100, 0)


def test_a_sessions_call_that_was_given_up_may_have_been_asked_elsewhere() -> None:
    """Its own shard does not know: it counts as asked, once it was let out."""
    budget = Budgeted(overall={"hour": 1000})
    gone: dict[str, Any] = {"error": Cancelled("left"), "terminal": Terminal.CANCELLED,
                            "attempts": 0}  # fmt: skip
    end(budget.let_in(100, affinity="s", admitted=True), **gone)
    assert budget.used("global:hour") == (100, 1)
    end(budget.let_in(100, affinity="s", admitted=False), **gone)
    assert budget.used("global:hour") == (100, 2)


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC_COUNT, Dialect.GEMINI_COUNT])
def test_counting_tokens_uses_none(dialect: Dialect) -> None:
    """It is not even looked at."""
    budget = Budgeted(request=1, overall={"hour": 1})
    assert budget.let_in(5000, dialect=dialect).endings is None


def test_one_request_may_not_use_more_than_its_cap() -> None:
    """However much the others leave; the prompt counts as well as the output."""
    budget = Budgeted(request=100, overall={"hour": 1_000_000})
    end(budget.let_in(100))
    refused = budget.refusal(101)
    assert "may use 101 tokens (10 of them its prompt), more than the 100" in refused.message
    assert b"x-tpo-budget: request\r\nx-tpo-budget-limit: 100\r\n" in refused.lines
    assert budget.used("global:hour") == (100, 1)


def test_nothing_given_is_the_documented_budget() -> None:
    """4096 a request, 100 000 an hour."""
    budget = Budgeted()
    budget.refusal(4097)
    for _ in range(24):
        budget.let_in(4096)
    assert "100000 tokens per hour has 98304 in use" in budget.refusal(4096).message


@pytest.mark.parametrize(
    "options",
    [
        {"request": 0, "overall": {"hour": 0}, "tenant": {"day": 0}, "time_zone": "Asia/Tokyo"},
        {"session": {"soft": 0, "hard": 0}},
        {"tenant": {"tiers": {"other": {"hour": 1}}}},
    ],
)
def test_no_limit_is_no_limit(options: dict[str, Any]) -> None:
    """Nothing is counted, and so nothing can be clamped."""
    budget = Budgeted(**options)
    call = budget.let_in(5_000_000, session="s")
    assert call.endings is None
    assert not budget.world.asked


def test_each_level_has_a_count_of_its_own() -> None:
    """A tenant's, a tier's tenant's, a session's, the host's."""
    budget = Budgeted(
        overall={"day": 1000}, session={"soft": 50, "hard": 150},
        tenant={"hour": 300, "tiers": {"free": {"hour": 100}}},
    )  # fmt: skip
    end(budget.let_in(100, tenant="a", session="s"))
    assert (
        "the session budget of 150 tokens has 100"
        in budget.refusal(100, tenant="a", session="s").message
    )
    end(budget.let_in(100, tenant="b", session="s"))
    end(budget.let_in(100, tenant="a", session="s2"))
    end(budget.let_in(100, tenant="a"))
    assert "the tenant budget of 300 tokens per hour" in budget.refusal(11, tenant="a").message
    end(budget.let_in(100, tenant="f", tier="free"))
    assert "budget of 100 tokens per hour" in budget.refusal(11, tenant="f", tier="free").message
    assert budget.used("global:day") == (500, 5)


def test_sessions_of_two_tenants_are_never_one() -> None:
    """However their names are cut."""
    budget = Budgeted(session={"hard": 100, "soft": 0})
    budget.let_in(100, tenant="a", session="b:c")
    budget.let_in(100, tenant="a:b", session="c")
    budget.refusal(11, tenant="a", session="b:c")


def test_a_refusal_sets_nothing_aside() -> None:
    """The host is spent; session and tenant are as they were."""
    budget = Budgeted(
        session={}, tenant={"hour": 1000, "month": 5000}, overall={"hour": 100, "day": 10_000}
    )
    end(budget.let_in(100, session="s"))
    names = ("session:1:t:s", "tenant:hour:t", "tenant:month:t", "global:day", "global:hour")
    before = [budget.used(name) for name in names]
    refused = budget.refusal(11, session="s")
    assert [budget.used(name) for name in names] == before == [(100, 1)] * 5
    assert "global budget of 100 tokens per hour" in refused.message
    assert budget.counted.series["tpo_budget_refused_total", "global"].value == 1


def test_a_busy_ledger_is_a_shed_call_that_holds_nothing() -> None:
    """A clean 503."""
    budget = Budgeted(tenant={"hour": 500}, overall={"hour": 500})
    budget.world.busy = "global"
    with pytest.raises(Shed):
        budget.stage.before(caller(100))
    assert budget.used("tenant:hour:t") == (0, 0)


def test_only_sessions_are_names_that_clients_bring() -> None:
    """They cannot push out a tenant's count."""
    budget = Budgeted(session={}, tenant={"hour": 500}, overall={"hour": 500})
    budget.let_in(100, session="s")
    seen = {name.split(":")[2]: crowd for name, crowd in budget.world.asked.items()}
    assert seen == {"session": True, "tenant": False, "global": False}


def test_dollars_are_set_aside_and_settled_by_the_price_of_the_model() -> None:
    """Once and for all; a model without a price costs nothing, and is counted."""
    world = World()
    prices = PricesSection(builtin=False, models={"dear": TokenPrice(input=10, output=1000)})
    world.env = replace(world.env, prices=Prices(prices))
    budget = Budgeted(world, max_spend_usd=0.1)
    call = budget.let_in(60, model="dear")  # ten of the prompt, fifty of the output
    assert budget.used("spend") == (0.0501 * 1e9, 1)
    refused = budget.refusal(60, model="dear")
    assert refused.message == (
        "this gateway may spend $0.10, of which $0.050100 is in use, and this request may cost "
        "$0.050100"
    )
    assert refused.lines == b"x-tpo-budget: spend\r\n"
    end(call, tokens=(20, 5))
    assert budget.used("spend") == (0.0052 * 1e9, 1)
    end(budget.let_in(90, model="dear"))
    assert budget.used("spend") == (0.0853 * 1e9, 2)
    end(budget.let_in(5_000_000, model="free of charge"))
    assert budget.used("spend") == (0.0853 * 1e9, 2)
    assert budget.counted.series["tpo_budget_unpriced_total",].value == 1


def test_a_session_that_is_only_told_of_is_counted() -> None:
    """A soft limit refuses nothing."""
    budget = Budgeted(session={"soft": 10, "hard": 0})
    end(budget.let_in(500, session="s"))
    assert budget.used("session:1:t:s") == (500, 1)


def test_a_period_starts_anew_and_owes_nothing() -> None:
    """What was set aside in the last hour is settled in the last hour."""
    budget = Budgeted(overall={"hour": 100})
    late = budget.let_in(100)
    refused = budget.refusal(11)
    assert "it starts anew at 2026-11-27T17:00:00Z" in refused.message
    assert b"x-tpo-budget-reset: 2026-11-27T17:00:00Z\r\n" in refused.lines
    budget.at += HOUR
    end(budget.let_in(60), tokens=(10, 30))
    end(late, tokens=(0, 0))
    assert budget.used("global:hour") == (40, 1)
    end(budget.let_in(60), tokens=(10, 50))
    budget.refusal(11)


def test_what_was_asked_besides_counts_too() -> None:
    """Its tokens and its dollars, also those of a call whose own model has no price."""
    section = PricesSection(builtin=False, models={"echo": TokenPrice(input=20, output=1000)})
    world = World()
    world.env = replace(world.env, prices=Prices(section))
    budget = Budgeted(world, max_spend_usd=1.0, overall={"hour": 1000})
    for model, tokens, attempts in (
        ("echo", (10, 5), 1),
        ("dark", (10, 5), 1),
        ("echo", (9, 9), 0),
    ):
        call = budget.let_in(60, model=model)
        tell_ended(call, Ending(Terminal.DONE, *tokens, None, attempts, Aside(7, 0.25)))
    assert budget.used("global:hour") == (15 + 15 + 3 * 7, 3)
    assert budget.used("spend")[0] == pytest.approx(0.0052e9 + 3 * 0.25e9)


def test_two_workers_spend_one_budget() -> None:
    """And what one gives back the other may use."""
    one = Budgeted(overall={"hour": 100})
    two = Budgeted(one.world, overall={"hour": 100})
    call = one.let_in(80)
    two.refusal(80)
    end(call, tokens=(5, 5))
    two.let_in(80)
    one.refusal(80)


def test_far_from_a_limit_calls_do_not_ask_the_host() -> None:
    """And what is told of it is as true as near it."""
    budget = Budgeted(overall={"hour": 10**9}, tenant={"day": 10**9, "month": 10**9})
    budget.let_in(1000)
    budget.world.asked.clear()
    for _ in range(100):
        end(budget.let_in(1000), tokens=(10, 20))
    assert not budget.world.asked
    for name in ("global:hour", "tenant:day:t", "tenant:month:t"):
        assert budget.used(name) == (1000 + 100 * 30, 101)


def test_what_another_holds_ahead_is_no_reason_to_refuse() -> None:
    """It comes back within a moment: the caller is told to come again, and then comes in."""
    one = Budgeted(overall={"hour": 100_000})
    two = Budgeted(one.world, overall={"hour": 100_000})
    end(one.let_in(1000), tokens=(0, 0))
    with pytest.raises(Shed) as told:
        two.stage.before(caller(99_900))
    assert (told.value.reason, told.value.retry_after_s) == ("budget_busy", 1)
    one.world.advance(0.06)
    two.let_in(99_900)
    assert "99900 in use" in one.refusal(1000).message


def test_a_tier_with_less_is_not_held_to_what_the_others_hold_ahead() -> None:
    """Keys of one tenant may have other tiers; the count is one."""
    tiers = {"tenant": {"hour": 10**9, "tiers": {"free": {"hour": 500}}}}
    one = Budgeted(**tiers)
    two = Budgeted(one.world, **tiers)
    end(one.let_in(100), tokens=(10, 40))
    end(two.let_in(400, tier="free"), tokens=(10, 40))
    assert "500 tokens per hour has 100 in use" in two.refusal(401, tier="free").message


def test_the_refused_level_gives_back_what_purses_gave() -> None:
    """The wider level is spent; the narrower one's purse is as it was."""
    budget = Budgeted(tenant={"hour": 10**9}, overall={"hour": 2000})
    budget.let_in(1000)
    before = budget.used("tenant:hour:t")
    budget.refusal(1001)
    assert budget.used("tenant:hour:t") == before == (1000, 1)


def test_a_refusal_is_one_that_waiting_does_not_help() -> None:
    """Status, reason and class are those of the contract."""
    refused = Budgeted(tenant={"month": 10}).refusal(100)
    assert (refused.http_status, refused.reason, refused.retryable) == (
        429, "insufficient_quota", False,
    )  # fmt: skip
    assert refused.message == (
        "the tenant budget of 10 tokens per month has 0 in use, and this request may need 100; "
        "it starts anew at 2026-12-01T00:00:00Z"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"request": -1}, "stages.token_budget.request = -1: expected int >= 0"),
        ({"global": {"week": 3}}, "stages.token_budget.global.week: unknown key"),
        ({"session": {"soft": 9, "hard": 5}}, "stages.token_budget.session = {'soft': 9, 'hard'"),
        ({"time_zone": "Mars/Base"}, "no time zone of this host is called 'Mars/Base'"),
        ({"tenant": {"tiers": {"a": {"day": 1.5}}}}, "stages.token_budget.tenant.tiers.a.day"),
        ({"gobal": {"hour": 1}}, "stages.token_budget.gobal: unknown key; did you mean 'global'?"),
    ],
)
def test_a_wrong_budget_is_told_with_its_path(options: dict[str, Any], said: str) -> None:
    """As every setting is."""
    with pytest.raises(ConfigError) as refused:
        load.build({"stages": {"token_budget": options}}, {}, {}, None)
    assert said in refused.value.message


def test_it_is_off_unless_it_is_configured() -> None:
    """Nobody is held to a budget that nobody gave."""
    assert "token_budget" not in load.build({}, {}, {}, None).stages
    assert (
        load.build({"stages": {"token_budget": {}}}, {}, {}, None).stages["token_budget"]
        == Config()
    )


@pytest.mark.parametrize(
    ("tree", "dollars", "said"),
    [
        ({}, 0, "--max-spend = 0: expected dollars, more than 0"),
        ({}, float("nan"), "--max-spend = nan: expected dollars, more than 0"),
        ({}, 1e9, "(from --max-spend): expected float <= 1000000.0"),
        ({"pipeline": {"stages": []}}, 1, "--max-spend: needs token_budget in pipeline.stages"),
        ({"stages": {"token_budget": {"enabled": False}}}, 1, "switched off in the file"),
        ({"stages": {"token_budget": 5}}, 1, "stages.token_budget"),
    ],
)
def test_a_cap_that_would_not_be_kept_is_refused(
    tree: dict[str, Any], dollars: float, said: str
) -> None:
    """Before anything is spent."""
    with pytest.raises(ConfigError) as refused:
        load.build(tree, {"max_spend": dollars}, {}, None)
    assert said in refused.value.message
