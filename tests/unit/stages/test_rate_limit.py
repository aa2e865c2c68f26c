"""Rate limits: what a bucket lets in, what a refusal says and gives back, what a config may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.config import load
from tpo_mp.errors import ConfigError, RateLimited, Shed
from tpo_mp.ports import Cells
from tpo_mp.stages.rate_limit import FEATURE, Config
from tpo_mp.types import Call, Dialect


class Counted(SilentMetrics):
    """Metrics a test can read, by level."""

    def __init__(self) -> None:
        self.levels: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.levels.setdefault(labels["level"], SilentSeries())


class Limited:
    """A stage in a world that stands still."""

    def __init__(self, world: FakeWorld | None = None, **options: Any) -> None:
        self.world = world or FakeWorld()
        self.counted = Counted()
        env = replace(self.world.env, metrics=self.counted)
        self.stage = FEATURE.build(config(**options), env)

    def let_in(self, times: int = 1, **call: Any) -> int:
        """How many of so many equal calls come in."""
        return sum(self.error(**call) is None for _ in range(times))

    def error(self, **call: Any) -> RateLimited | None:
        """What a call is refused with."""
        try:
            self.stage.before(caller(**call))
        except RateLimited as error:
            return error
        return None

    def used(self, name: str) -> Cells:
        """What the ledger holds."""
        return self.world.env.ledger.names[f"rate_limit:{name}"]  # type: ignore[attr-defined,no-any-return]


def config(**options: Any) -> Config:
    """Options as a file has them."""
    if "overall" in options:
        options["global"] = options.pop("overall")
    return msgspec.convert(options, Config)


def caller(**more: Any) -> Call:
    """A call of tenant ``t``."""
    return make_call(b"{}", **{"tenant": "t", "tier": "standard", **more})


@pytest.mark.parametrize(("window", "period_s"), [("rps", 1), ("rpm", 60), ("rph", 3600)])
def test_a_windows_worth_at_once_then_evenly(window: str, period_s: int) -> None:
    """Four at once; a quarter of the window later one more, and not a moment earlier."""
    limited = Limited(overall={window: 4})
    assert limited.let_in(10) == 4
    limited.world.now += period_s / 4 - period_s / 1000
    assert limited.let_in(3) == 0
    limited.world.now += period_s / 1000
    assert limited.let_in(3) == 1
    limited.world.now += 10 * period_s
    assert limited.let_in(10) == 4


def test_burst_bounds_what_comes_at_once() -> None:
    """Of the shortest window; the longer one still holds."""
    limited = Limited(overall={"rps": 10, "rpm": 8, "burst": 3})
    assert limited.let_in(5) == 3
    limited.world.now += 0.3
    assert limited.let_in(5) == 3
    limited.world.now += 1
    assert limited.let_in(5) == 2
    error = limited.error()
    assert error is not None
    assert "8 requests per minute" in error.message


def test_the_edge_of_a_window_is_no_second_chance() -> None:
    """Whatever the clock says, a minute never holds more than a bucket and what drained."""
    limited = Limited(overall={"rpm": 60})
    limited.world.now = 1019.0
    assert limited.let_in(100) == 60
    limited.world.now = 1021.0
    assert limited.let_in(100) == 2


def test_nothing_given_is_the_documented_limit() -> None:
    """A hundred a second, twenty at once."""
    limited = Limited()
    assert limited.let_in(50) == 20
    limited.world.now += 0.1
    assert limited.let_in(50) == 10


@pytest.mark.parametrize(
    ("level", "other"),
    [
        ("tenant", {"tenant": "u"}),
        ("session", {"session": "s2"}),
        ("session", {"session": "s", "tenant": "u"}),
        ("session", {}),
        ("model", {"model": "m2"}),
    ],
)
def test_each_has_a_limit_of_its_own(level: str, other: dict[str, Any]) -> None:
    """Others, and calls without a session, are not touched by it."""
    limited = Limited(**{level: {"rpm": 2}})
    same = {"session": "s"} if level == "session" else {}
    assert limited.let_in(5, **same) == 2
    assert limited.let_in(1, **other) == 1
    assert limited.counted.levels[level].value == 3


def test_session_of_one_tenant_is_not_taken_for_anothers() -> None:
    """However their names are cut."""
    limited = Limited(session={"rpm": 1})
    assert limited.let_in(tenant="a", session="b:c") == 1
    assert limited.let_in(tenant="a:b", session="c") == 1


def test_a_tier_has_limits_in_place_of_the_others() -> None:
    """Of a tenant's key; a tier that is not named has those of all tenants."""
    tiers = {"free": {"rpm": 1}, "premium": {"rpm": 5}}
    limited = Limited(tenant={"rpm": 3, "tiers": tiers})
    found = {t: limited.let_in(9, tenant=t, tier=t) for t in ("free", "standard", "premium")}
    assert found == {"free": 1, "standard": 3, "premium": 5}
    only = Limited(tenant={"tiers": {"free": {"rpm": 1}}})
    assert only.let_in(9) == 9
    assert only.let_in(9, tier="free") == 1


def test_a_refusal_gives_back_what_it_took() -> None:
    """The model is full; session and tenant are as they were, to the last digit."""
    limited = Limited(session={"rpm": 5}, tenant={"rpm": 5, "rph": 50}, model={"rpm": 1})
    assert limited.let_in(1, session="s") == 1
    before = [limited.used(name) for name in ("session:1:t:s", "tenant:t", "model:echo")]
    assert limited.let_in(20, session="s") == 0
    assert [limited.used(name) for name in ("session:1:t:s", "tenant:t", "model:echo")] == before
    assert limited.let_in(20, session="s", model="other") == 1
    assert limited.counted.levels["model"].value == 39


def test_who_is_over_its_own_limit_takes_nothing_shared() -> None:
    """The wide levels are not even asked."""
    limited = Limited(session={"rpm": 1}, overall={"rpm": 100})
    limited.let_in(50, session="s")
    assert limited.used("global")[1] == 1


def test_a_busy_ledger_is_a_shed_call_that_is_counted_nowhere() -> None:
    """A clean 503, whichever level could not be asked."""
    limited = Limited(tenant={"rpm": 5}, overall={"rpm": 5})
    ledger: Any = limited.world.env.ledger
    update: Callable[..., Cells] = ledger.update

    def busy(name: str, change: Any, *, crowd: bool = False) -> Cells:
        if name == "rate_limit:global":
            raise Shed("busy", reason="ledger_busy", retry_after_s=1)
        return update(name, change, crowd=crowd)

    ledger.update = busy
    with pytest.raises(Shed):
        limited.stage.before(caller())
    assert limited.used("tenant:t")[1] == 0


def test_names_of_clients_cannot_push_out_the_hosts() -> None:
    """Only the global limit is the configuration's own name."""
    limited = Limited(session={"rpm": 5}, tenant={"rpm": 5}, model={"rpm": 5}, overall={"rpm": 5})
    ledger: Any = limited.world.env.ledger
    update, seen = ledger.update, {}

    def note(name: str, change: Any, *, crowd: bool = False) -> Cells:
        seen[name.split(":")[1]] = crowd
        return update(name, change, crowd=crowd)  # type: ignore[no-any-return]

    ledger.update = note
    limited.let_in(session="s")
    assert seen == {"session": True, "tenant": True, "model": True, "global": False}


def test_two_workers_count_as_one() -> None:
    """And a clock that was read earlier than the other's drains nothing twice."""
    one = Limited(overall={"rpm": 6})
    two = Limited(one.world, overall={"rpm": 6})
    assert one.let_in(4) + two.let_in(4) == 6
    one.world.now -= 10
    assert two.let_in(1) == 0
    one.world.now += 10
    assert one.let_in(1) == 0


def test_a_refusal_says_what_when_and_how_much() -> None:
    """Level, window, wait, and the lines of the caller's family."""
    limited = Limited(tenant={"rpm": 3})
    limited.let_in(3)
    error = limited.error()
    assert error is not None
    assert (error.http_status, error.reason) == (429, "rate_limited")
    assert error.message == (
        "the tenant limit of 3 requests per minute is reached; try again in 20 s"
    )
    assert error.retry_after_s == pytest.approx(20)
    assert error.lines == (
        b"x-ratelimit-limit-requests: 3\r\nx-ratelimit-remaining-requests: 0\r\n"
        b"x-ratelimit-reset-requests: 1m0s\r\n"
    )
    other = limited.error(dialect=Dialect.ANTHROPIC_MESSAGES)
    assert other is not None
    assert other.lines.startswith(b"anthropic-ratelimit-requests-limit: 3\r\n")
    limited.world.now += 20
    assert limited.let_in() == 1


@pytest.mark.parametrize("level", ["global", "tenant", "session", "model"])
@pytest.mark.parametrize(
    "options",
    [{"rpm": 0}, {"rps": -1}, {"rph": 1.5}, {"rpm": 1, "burst": 0}, {"burst": 3}, {}, {"rmp": 1},
     {"tpm": 5}, {"rpm": "1"}],
)  # fmt: skip
def test_limits_that_limit_nothing_or_all_are_refused(level: str, options: dict[str, Any]) -> None:
    """As are keys that nothing reads."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({level: options}, Config)


@pytest.mark.parametrize(
    "options", [{"tiers": {}}, {"tiers": {"a": {}}}, {"burst": 2, "tiers": {"a": {"rpm": 1}}}]
)
def test_tiers_are_checked_like_the_rest(options: dict[str, Any]) -> None:
    """Each has a window, and a burst belongs to one."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"tenant": options}, Config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"global": {"rpm": 0}}, "stages.rate_limit.global.rpm = 0: expected int >= 1"),
        ({"model": {"burst": 3}}, "stages.rate_limit.model = {'burst': 3}: needs rps, rpm or rph"),
        ({"session": {"rmp": 3}}, "stages.rate_limit.session.rmp: unknown key; did you mean 'r"),
        ({"tenant": {"tiers": {"a": {"rpm": -1}}}}, "stages.rate_limit.tenant.tiers.a.rpm = -1: "),
        ({"golbal": {"rpm": 1}}, "stages.rate_limit.golbal: unknown key; did you mean 'global'?"),
    ],
)
def test_a_wrong_limit_is_told_with_its_path(options: dict[str, Any], said: str) -> None:
    """As every setting is."""
    with pytest.raises(ConfigError) as refused:
        load.build({"stages": {"rate_limit": options}}, {}, {}, None)
    assert said in refused.value.message


def test_limits_to_come_are_left_out_with_a_warning() -> None:
    """Tokens and calls at once; the limits beside them hold."""
    levels = ("global", "tenant", "session", "model")
    options: dict[str, Any] = {name: {"rpm": 1, "tpm": 1, "concurrent": 1} for name in levels}
    loaded = load.build({"stages": {"rate_limit": options}}, {}, {}, None)
    assert loaded.stages["rate_limit"] == config(**{name: {"rpm": 1} for name in levels})
    assert set(loaded.warnings) == {
        f"stages.rate_limit.{name}.{key}: not built yet, ignored"
        for name in levels
        for key in ("tpm", "concurrent")
    }


@pytest.mark.parametrize(
    ("limits", "options"),
    [
        ({"enabled": True, "requests_per_second": 50, "burst_capacity": 9},
         {"global": {"rps": 50, "burst": 9}}),
        ({"enabled": True}, {}),
    ],
)  # fmt: skip
def test_the_other_spelling_is_the_global_level(limits: Any, options: Any) -> None:
    """`[rate_limits]` of the reference; switched on and no more, it has the documented limit."""
    loaded = load.build({"rate_limits": limits}, {}, {}, None)
    assert loaded.stages["rate_limit"] == config(**options)


def test_it_is_off_unless_it_is_configured() -> None:
    """Nothing is limited that nobody asked to be."""
    assert "rate_limit" not in load.build({}, {}, {}, None).stages
    off = {"rate_limits": {"enabled": False, "requests_per_second": 100}}
    assert "rate_limit" not in load.build(off, {}, {}, None).stages
