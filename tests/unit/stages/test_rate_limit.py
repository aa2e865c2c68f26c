"""Rate limits: what a bucket lets in, what a refusal says and gives back, what a config may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.config import load
from tpo_mp.errors import ConfigError, RateLimited, Shed, TooLarge
from tpo_mp.pipeline.endings import tell_ended
from tpo_mp.stages.rate_limit import FEATURE, Config
from tpo_mp.types import Call, Dialect, Ending, Quota, Reply, Stream, Terminal


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

    def quota(self, name: str) -> Quota:
        """What the host knows."""
        quotas: Any = self.world.env.quotas
        return quotas.names[f"rate_limit:{name}"]  # type: ignore[no-any-return]

    def used(self, name: str) -> list[float]:
        """What is used of the requests a second, minute and hour, and of the tokens a minute."""
        return self.quota(name).cells[:4]


def config(**options: Any) -> Config:
    """Options as a file has them."""
    if "overall" in options:
        options["global"] = options.pop("overall")
    return msgspec.convert(options, Config)


def caller(**more: Any) -> Call:
    """A call of tenant ``t``."""
    body = more.pop("body", b"{}")
    return make_call(body, **{"tenant": "t", "tier": "standard", **more})


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
    quotas: Any = limited.world.env.quotas
    update: Callable[..., Any] = quotas.update

    def busy(name: str, change: Any, *, crowd: bool = False) -> Any:
        if name == "rate_limit:global":
            raise Shed("busy", reason="ledger_busy", retry_after_s=1)
        return update(name, change, crowd=crowd)

    quotas.update = busy
    with pytest.raises(Shed):
        limited.stage.before(caller())
    assert limited.used("tenant:t")[1] == 0


def test_names_of_clients_cannot_push_out_the_hosts() -> None:
    """Only the global limit is the configuration's own name."""
    limited = Limited(session={"rpm": 5}, tenant={"rpm": 5}, model={"rpm": 5}, overall={"rpm": 5})
    limited.let_in(session="s")
    quotas: Any = limited.world.env.quotas
    assert {name.split(":")[1]: crowd for name, crowd in quotas.crowd.items()} == {
        "session": True,
        "tenant": True,
        "model": True,
        "global": False,
    }


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
     {"tpm": 0}, {"tpm": 9, "burst": 2}, {"concurrent": 0}, {"rpm": "1"}],
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
        (
            {"model": {"burst": 3}},
            "stages.rate_limit.model = {'burst': 3}: burst needs rps, rpm or rph",
        ),
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


BODY = b'{"model":"m","max_tokens":100,"messages":[]}'  # 44 bytes: 11 tokens
COST = 111


def ended(prompt: int = -1, completion: int = -1, attempts: int = 1) -> Ending:
    """How a call ended."""
    return Ending(Terminal.DONE, prompt, completion, None, attempts)


def come_in(limited: Limited, **call: Any) -> Call:
    """A call that is let in."""
    made = caller(**{"body": BODY, **call})
    limited.stage.before(made)
    return made


@pytest.mark.parametrize("level", ["global", "tenant", "session", "model"])
def test_tokens_are_reserved_and_settled(level: str) -> None:
    """The worst case counts until the end, what was used from then on."""
    limited = Limited(**{level: {"tpm": 300}})
    calls = [come_in(limited, session="s") for _ in range(2)]
    error = limited.error(body=BODY, session="s")
    assert error is not None
    assert error.message == (
        f"the {level} limit of 300 tokens per minute is reached (this request may cost 111); "
        "try again in 6.6 s"
    )
    assert error.lines.startswith(b"x-ratelimit-limit-tokens: 300\r\nx-ratelimit-remaining-tokens:")
    tell_ended(calls[0], ended(11, 9))
    third = come_in(limited, session="s")
    tell_ended(calls[1], ended(attempts=0))
    tell_ended(third, ended())
    name = {"session": "session:1:t:s", "tenant": "tenant:t", "model": "model:echo"}.get(level)
    assert limited.used(name or "global")[3] == 20 + COST


def test_who_used_more_than_was_reserved_pays_for_it() -> None:
    """Where the request did not say, and the answer was long."""
    limited = Limited(overall={"tpm": 1000}, answer_tokens=10)
    call = come_in(limited, body=b"{}")
    assert limited.used("global")[3] == 11
    tell_ended(call, ended(1, 1200))
    assert limited.used("global")[3] == 1201
    assert limited.let_in() == 0
    limited.world.now += 60
    assert limited.let_in() == 1


def test_more_than_a_limit_ever_lets_in_is_told_so() -> None:
    """Waiting does not help; a request that asks for no number gets what there is."""
    limited = Limited(tenant={"tpm": 100, "concurrent": 9})
    with pytest.raises(TooLarge, match="may cost 111 tokens, and 100 per minute"):
        come_in(limited)
    come_in(limited, body=b"{}" * 10)
    assert limited.used("tenant:t")[3] == 100
    assert limited.quota("tenant:t").held == 1


@pytest.mark.parametrize("level", ["global", "tenant", "session", "model"])
def test_calls_at_once(level: str) -> None:
    """A place is taken until the call has ended, and given back once."""
    limited = Limited(**{level: {"concurrent": 2}})
    one, two = (come_in(limited, session="s") for _ in range(2))
    error = limited.error(session="s")
    assert error is not None
    assert error.reason == "too_many_at_once"
    assert error.message == f"the {level} limit of 2 requests at once is reached"
    assert (error.retry_after_s, error.lines) == (1, b"")
    limited.stage.after(one, Reply(200, b"{}"))
    assert limited.let_in(session="s") == 1
    tell_ended(one, ended())
    assert limited.let_in(session="s") == 0
    limited.stage.after(two, Reply(200, None, stream=cast("Stream", object())))
    assert limited.let_in(session="s") == 0
    tell_ended(two, ended())
    assert limited.let_in(3, session="s") == 1


def test_a_refusal_gives_back_place_and_tokens() -> None:
    """When the widest level is full, nothing stays at the narrow ones."""
    both = {"rpm": 50, "tpm": 5000, "concurrent": 5}
    limited = Limited(session=both, tenant=both, overall={"concurrent": 1})
    come_in(limited, session="s")
    for _ in range(10):
        assert limited.error(session="s", body=BODY) is not None
    for name in ("session:1:t:s", "tenant:t"):
        quota = limited.quota(name)
        assert (quota.cells[1], quota.cells[3], quota.held) == (1, COST, 1)


def test_a_call_that_runs_again_is_not_counted_again() -> None:
    """It takes a place, for it is under way; what it reserved before is settled at its end."""
    limited = Limited(tenant={"rpm": 1, "tpm": 120, "concurrent": 1})
    come_in(limited)
    limited.quota("tenant:t").held = 0  # its worker died
    again = come_in(limited, rerun=True)
    quota = limited.quota("tenant:t")
    assert (quota.cells[1], quota.cells[3], quota.held) == (1, COST, 1)
    tell_ended(again, ended(5, 5))
    quota = limited.quota("tenant:t")
    assert (quota.cells[3], quota.held) == (10, 0)


def test_far_from_a_limit_the_host_is_rarely_asked() -> None:
    """One update for a part of what is left; the rest comes back at the next turn of the timers."""
    limited = Limited(overall={"rpm": 6000, "tpm": 600_000, "concurrent": 5000})
    quotas: Any = limited.world.env.quotas
    update, asked = quotas.update, []

    def note(name: str, change: Any, *, crowd: bool = False) -> Any:
        asked.append(name)
        return update(name, change, crowd=crowd)

    quotas.update = note
    calls = [come_in(limited) for _ in range(300)]
    assert len(asked) == 2
    leased = 5000 // 32 + (5000 - 5000 // 32) // 32
    assert limited.used("global") == [0, leased, 0, leased * COST]
    for call in calls:
        tell_ended(call, ended(1, 1))
    limited.world.advance(0.0)
    quota = limited.quota("global")
    assert (quota.cells[1], quota.cells[3], quota.held) == (300, 300 * 2, 0)
    assert (quota.requests, quota.tokens, len(asked)) == (0, 0, 3)
    limited.world.advance(1)
    assert len(asked) == 3


def test_a_lease_is_spent_only_where_it_covers_the_call() -> None:
    """A long request asks the host; the limit holds to the last token."""
    limited = Limited(overall={"tpm": 200_000})
    come_in(limited)
    long = BODY.replace(b"100", b"90000")
    come_in(limited, body=long)
    limited.world.advance(0.0)
    assert limited.used("global")[3] == COST + 90_012
    come_in(limited, body=long)
    assert limited.error(body=long) is not None


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 40)), max_size=60),
    st.integers(0, 120),
)
def test_leases_let_in_what_the_limit_does(steps: list[tuple[int, int, int]], extra: int) -> None:
    """Two workers, any order of calls, timers and pauses: never more, and all of it in the end."""
    room = 2100
    options: Any = {"overall": {"rph": room + extra}}
    one = Limited(**options)
    pair = (one, Limited(one.world, **options))
    admitted = 0
    for what, worker, times in steps:
        if what < 2:
            admitted += pair[worker].let_in(times)
        elif what == 2:
            one.world.advance(0.0)
    for _ in range(2):
        for limited in pair:
            admitted += limited.let_in(room + extra - admitted + 50)
        one.world.advance(0.0)
    assert admitted == room + extra


def test_who_comes_in_is_told_what_is_left() -> None:
    """Of the limit with the least room, of requests and of tokens; in the words of its family."""
    limited = Limited(tenant={"rpm": 60, "tpm": 6000}, overall={"rps": 100, "rph": 50, "tpm": 9000})
    come_in(limited)
    call = come_in(limited)
    assert call.limit_lines == (
        b"x-ratelimit-limit-requests: 50\r\nx-ratelimit-remaining-requests: 48\r\n"
        b"x-ratelimit-reset-requests: 2m24s\r\n"
        b"x-ratelimit-limit-tokens: 6000\r\nx-ratelimit-remaining-tokens: 5778\r\n"
        b"x-ratelimit-reset-tokens: 2.22s\r\n"
    )
    other = come_in(limited, dialect=Dialect.ANTHROPIC_MESSAGES)
    assert b"anthropic-ratelimit-requests-remaining: 47\r\n" in other.limit_lines
    assert b"anthropic-ratelimit-tokens-remaining: 5667\r\n" in other.limit_lines
    assert come_in(Limited(overall={"concurrent": 5})).limit_lines == b""


def test_what_other_stages_tell_stays() -> None:
    """Wherever they are listed: on the first call, and on those that find the lines made."""
    limited = Limited(overall={"rph": 50})
    for _ in range(2):
        call = come_in(limited, limit_lines=b"x-tpo-guard: flag\r\n")
        assert call.limit_lines.startswith(b"x-tpo-guard: flag\r\nx-ratelimit-limit-requests: 50")
        assert call.limit_lines.count(b"x-tpo-guard") == 1


def test_what_is_left_is_told_from_a_lease_too() -> None:
    """As it was when the host was asked last, at most a turn of the timers ago."""
    limited = Limited(overall={"rph": 9000})
    told = {come_in(limited).limit_lines for _ in range(32)}
    assert len(told) == 1
    assert b"remaining-requests: 8999\r\n" in told.pop()
    limited.world.advance(0.0)
    assert b"remaining-requests: 8967\r\n" in come_in(limited).limit_lines
