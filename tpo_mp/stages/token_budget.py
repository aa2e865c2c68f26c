"""Budgets of tokens: of a request, a session, a tenant, the whole host, by the hour, day or month.

Before a call runs, the most it can use is set aside: its prompt, estimated from its bytes, and the
most output it lets the model make.  When it has ended, what it really used is settled and the rest
given back.  The counts are the host's (see ``pipeline.allowance``), so they are exact over all
workers, and a call whose worker dies has used what was set aside for it, once.

What a call that ended has used:

- what its backend reported, the estimate standing in for a count that is missing;
- nothing, when no backend was asked, none was reached, or it refused the request as it was;
- all that was set aside in every other case: nobody knows better.

The levels are asked from the narrowest to the widest; a refusal gives back what those before it
set aside.

Invariants: those of ``pipeline.allowance``; a level that is not given is not counted.
Known weakness: a quarter of a token per byte is an estimate; pictures in a body make it far too
high, a few languages too low.  Of the tries of a call that is tried again only the last is
settled.  A call of a session that was given up before its shard told of an answer counts as if it
had been asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Final, TypeAlias

from msgspec import Meta, Struct

from tpo_mp.dialects.most_output import COUNTING, most_output
from tpo_mp.errors import OverBudget, TpoError
from tpo_mp.pipeline.allowance import KEPT, Calendar, Held, Period, Purses, Span, instant, zone
from tpo_mp.pipeline.endings import at_end
from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import Call, Ending, Phase, Terminal

BYTES_PER_TOKEN: Final = 4
_LIMIT: Final = Meta(ge=0, le=1_000_000_000_000)
_Tokens: TypeAlias = Annotated[int, _LIMIT]
REFUSED_BELOW: Final = 500
_NOT_REACHED: Final = frozenset({"backend_refused", "circuit_open", "shed", "draining"})
_GIVEN_UP: Final = frozenset({Terminal.CANCELLED, Terminal.EXPIRED})


class Periods(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens per period of the calendar; 0, or nothing given, is no limit."""

    hour: Annotated[_Tokens, Meta(description="Tokens per hour.")] = 0
    day: Annotated[_Tokens, Meta(description="Tokens per day.")] = 0
    month: Annotated[_Tokens, Meta(description="Tokens per month.")] = 0


class TenantPeriods(Periods, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of each tenant, and other ones of some tiers."""

    tiers: Annotated[
        dict[str, Periods],
        Meta(max_length=256, description="Budgets by a key's tier, in place of the others."),
    ] = {}


class SessionTokens(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of a session, until it is reset; 0 is no limit."""

    soft: Annotated[_Tokens, Meta(description="From here on the session is reported as over.")] = (
        80_000
    )
    hard: Annotated[_Tokens, Meta(description="No call may take the session past this.")] = 100_000

    def __post_init__(self) -> None:
        if 0 < self.hard < self.soft:
            raise ValueError("soft is more than hard")


class Config(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"overall": "global"}
):
    """Budgets of tokens; with nothing given 4096 per request and 100 000 per hour on this host."""

    request: Annotated[
        _Tokens, Meta(description="Most tokens of one request, prompt and output; 0: no limit.")
    ] = 0
    default_output: Annotated[
        int,
        Meta(ge=0, le=10_000_000,
             description="Output set aside for an answer whose length the request leaves open."),
    ] = 1024  # fmt: skip
    time_zone: Annotated[
        str, Meta(max_length=64, description="IANA name of the zone whose clocks end the periods.")
    ] = "UTC"
    overall: Annotated[Periods | None, Meta(description="Budgets of the whole host.")] = None
    tenant: Annotated[
        TenantPeriods | None,
        Meta(description="Budgets of each tenant; without keys all callers are one."),
    ] = None
    session: Annotated[
        SessionTokens | None, Meta(description="Budget of each session, as `X-Session-Id` names it")
    ] = None

    def __post_init__(self) -> None:
        zone(self.time_zone)


UNSAID: Final = Config(request=4096, overall=Periods(hour=100_000))
"""What holds where the stage runs and nothing is limited."""


def session_row(tenant: str, session: str) -> str:
    """The ledger's name for a session's count."""
    # The length keeps "a:b" of "c" apart from "a" of "b:c".
    return f"{KEPT}session:{len(tenant)}:{tenant}:{session}"


@dataclass(frozen=True, slots=True)
class _Limit:
    """One count that a call is held against."""

    level: str
    limit: int
    period: Period


_Limits: TypeAlias = tuple[_Limit, ...]


class TokenBudget:
    """Lets a call in when each of its budgets has room for the most it can use."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env, wall: Callable[[], float] = time.time) -> None:
        """``wall`` is the clock on the wall, in epoch seconds."""
        if config == Config():
            config = UNSAID
        self._config = config
        self._purses = Purses(env.ledger, env.timers, env.clock, wall)
        self._calendar = Calendar(config.time_zone, wall)
        session = config.session.hard if config.session is not None else 0
        self._session = _Limit("session", session, "") if session else None
        self._tenant = _limits("tenant", config.tenant)
        self._overall = _limits("global", config.overall)
        tiers = config.tenant.tiers if config.tenant is not None else {}
        self._tiers = {tier: _limits("tenant", periods) for tier, periods in tiers.items()}
        counter = env.metrics.counter
        self._refused: dict[str, Counter] = {
            level: counter("tpo_budget_refused_total", "Calls over a budget.", level=level)
            for level in ("request", "session", "tenant", "global")
        }
        text = "Tokens of calls that ended: set aside for them, and used by them."
        self._reserved = counter("tpo_budget_tokens_total", text, what="reserved")
        self._used = counter("tpo_budget_tokens_total", text, what="used")
        self._overrun = counter(
            "tpo_budget_overrun_total", "Tokens that calls used beyond what was set aside."
        )

    def before(self, call: Call) -> None:
        """Set aside the most the call can use; raises ``OverBudget``, having set nothing aside."""
        if call.dialect in COUNTING:
            return
        config = self._config
        prompt = -(-len(call.body) // BYTES_PER_TOKEN)
        amount = prompt + most_output(call.dialect, call.body, config.default_output)
        if config.request and amount > config.request:
            self._refused["request"].inc()
            raise OverBudget(
                f"the request may use {amount} tokens ({prompt} of them its prompt), more than "
                f"the {config.request} that one request may",
                reason="insufficient_quota",
                lines=_lines("request", config.request, 0, None),
            )
        held: list[Held] = []
        try:
            if self._session is not None and call.session:
                self._hold(held, self._session, session_row(call.tenant, call.session), amount)
            for limit in self._tiers.get(call.tier, self._tenant):
                self._hold(held, limit, f"{KEPT}tenant:{limit.period}:{call.tenant}", amount)
            for limit in self._overall:
                self._hold(held, limit, f"{KEPT}global:{limit.period}", amount)
        except TpoError:
            for one in held:
                self._purses.undo(one)
            raise
        if held:
            at_end(call, partial(self._settle, call, prompt, amount, held))

    def _hold(self, held: list[Held], limit: _Limit, name: str, amount: int) -> None:
        window = self._calendar.now(limit.period)
        crowd = limit.level == "session"  # tenants and tiers are the configuration's
        found = self._purses.hold(name, window, limit.limit, amount, crowd=crowd)
        if isinstance(found, Held):
            held.append(found)
            return
        self._refused[limit.level].inc()
        raise _refusal(limit, int(found), amount, window)

    def _settle(
        self, call: Call, prompt: int, amount: int, held: list[Held], ended: Ending
    ) -> None:
        """The call has ended; see above for what it has used."""
        used = _used(call, prompt, amount, ended)
        self._reserved.inc(amount)
        self._used.inc(used)
        if used > amount:
            self._overrun.inc(used - amount)
        for one in held:
            self._purses.settle(one, used)


def _used(call: Call, prompt: int, amount: int, ended: Ending) -> int:
    """Tokens that a call used."""
    error = ended.error
    lost = error is not None and error.code == "worker_lost"
    # Where a session's call is served by another shard, its tries are known once that answers.
    unknown = lost or (ended.terminal in _GIVEN_UP and call.affinity is not None and call.admitted)
    if ended.attempts == 0:
        return amount if unknown else 0
    if ended.prompt >= 0 or ended.completion >= 0:
        into = ended.prompt if ended.prompt >= 0 else prompt
        out = ended.completion if ended.completion >= 0 else max(amount - prompt, 0)
        return into + out
    if error is None or ended.terminal in _GIVEN_UP or lost:
        return amount
    turned_away = error.status < REFUSED_BELOW or error.code in _NOT_REACHED
    return 0 if turned_away and ended.attempts == 1 else amount


def _limits(level: str, periods: Periods | None) -> _Limits:
    """The counts of one level, the longest period first: it is the one that is gone for longest."""
    if periods is None:
        return ()
    each: tuple[tuple[Period, int], ...] = (
        ("month", periods.month), ("day", periods.day), ("hour", periods.hour)
    )  # fmt: skip
    return tuple(_Limit(level, limit, period) for period, limit in each if limit)


def _refusal(limit: _Limit, used: int, amount: int, window: Span) -> OverBudget:
    anew = instant(window.end)
    per = f" per {limit.period}" if limit.period else ""
    when = f"; it starts anew at {anew}" if anew else "; it starts anew when it is reset"
    return OverBudget(
        f"the {limit.level} budget of {limit.limit} tokens{per} has {used} in use, and this "
        f"request may need {amount}{when}",
        reason="insufficient_quota",
        lines=_lines(limit.level, limit.limit, used, anew),
    )


def _lines(level: str, limit: int, used: int, anew: str | None) -> bytes:
    """What a program may want to know of a refusal."""
    lines = f"x-tpo-budget: {level}\r\nx-tpo-budget-limit: {limit}\r\nx-tpo-budget-used: {used}\r\n"
    if anew:
        lines += f"x-tpo-budget-reset: {anew}\r\n"
    return lines.encode()


FEATURE = Feature(Config, TokenBudget)
