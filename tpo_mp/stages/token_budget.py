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
from functools import partial
from typing import ClassVar, Final, NamedTuple

from tpo_mp.dialects.most_output import COUNTING, most_output
from tpo_mp.errors import OverBudget, TpoError
from tpo_mp.pipeline.allowance import FOREVER, NEVER, Calendar, Held, Purses, Span, instant
from tpo_mp.pipeline.budgets import (
    NANO,
    SPEND_ROW,
    BudgetOptions,
    Levels,
    Limit,
    overall_row,
    session_row,
    tenant_row,
)
from tpo_mp.pipeline.endings import at_end
from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import Call, Ending, Phase, Terminal

BYTES_PER_TOKEN: Final = 4
REFUSED_BELOW: Final = 500
_NOT_REACHED: Final = frozenset({"backend_refused", "circuit_open", "shed", "draining"})
_GIVEN_UP: Final = frozenset({Terminal.CANCELLED, Terminal.EXPIRED})


class Config(BudgetOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of tokens; with nothing given 4096 per request and 100 000 per hour on this host."""


class Need(NamedTuple):
    """Tokens of prompt and output."""

    prompt: int
    output: int


class TokenBudget:
    """Lets a call in when each of its budgets has room for the most it can use."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env, wall: Callable[[], float] = time.time) -> None:
        """``wall`` is the clock on the wall, in epoch seconds."""
        self._levels = Levels(config)
        self._purses = Purses(env.ledger, env.timers, env.clock, wall)
        self._calendar = Calendar(config.time_zone, wall)
        self._prices = env.prices
        counter = env.metrics.counter
        self._refused: dict[str, Counter] = {
            level: counter("tpo_budget_refused_total", "Calls over a budget.", level=level)
            for level in ("request", "session", "tenant", "global", "spend")
        }
        text = "Tokens of calls that ended: set aside for them, and used by them."
        self._reserved = counter("tpo_budget_tokens_total", text, what="reserved")
        self._used = counter("tpo_budget_tokens_total", text, what="used")
        self._overrun = counter(
            "tpo_budget_overrun_total", "Tokens that calls used beyond what was set aside."
        )
        self._unpriced = counter(
            "tpo_budget_unpriced_total", "Calls that a spending cap let in: nobody said their price"
        )

    def before(self, call: Call) -> None:
        """Set aside the most the call can use; raises ``OverBudget``, having set nothing aside."""
        if call.dialect in COUNTING:
            return
        levels = self._levels
        prompt = -(-len(call.body) // BYTES_PER_TOKEN)
        need = Need(prompt, most_output(call.dialect, call.body, levels.default_output))
        amount = prompt + need.output
        if levels.request and amount > levels.request:
            self._refused["request"].inc()
            raise OverBudget(
                f"the request may use {amount} tokens ({prompt} of them its prompt), more than "
                f"the {levels.request} that one request may",
                reason="insufficient_quota",
                lines=_lines("request", levels.request, 0, None),
            )
        held: list[Held] = []
        cost: Held | None = None
        try:
            if levels.session is not None and call.session:
                self._hold(held, levels.session, session_row(call.tenant, call.session), amount)
            for limit in levels.tenant(call.tier):
                self._hold(held, limit, tenant_row(call.tenant, limit.period), amount)
            for limit in levels.overall:
                self._hold(held, limit, overall_row(limit.period), amount)
            if levels.spend is not None:
                cost = self._hold_cost(call, levels.spend, need)
        except TpoError:
            for one in held:
                self._purses.undo(one)
            raise
        if held or cost is not None:
            at_end(call, partial(self._settle, call, need, held, cost))

    def _hold(self, held: list[Held], limit: Limit, name: str, amount: int) -> None:
        span = self._calendar.now(limit.period)
        crowd = limit.level == "session"  # tenants and tiers are the configuration's
        found = self._purses.hold(name, span, limit.limit or NEVER, amount, crowd=crowd)
        if isinstance(found, Held):
            held.append(found)
            return
        self._refused[limit.level].inc()
        raise _refusal(limit, int(found), amount, span)

    def _hold_cost(self, call: Call, limit: Limit, need: Need) -> Held | None:
        """Set aside the most the call can cost; ``None``: nobody said its price."""
        cost = self._cost(call, need)
        if cost is None:
            self._unpriced.inc()
            return None
        found = self._purses.hold(SPEND_ROW, FOREVER, limit.limit, cost, crowd=False)
        if isinstance(found, Held):
            return found
        self._refused["spend"].inc()
        raise OverBudget(
            f"this gateway may spend ${limit.limit / NANO:.2f}, of which ${found / NANO:.6f} is in "
            f"use, and this request may cost ${cost / NANO:.6f}",
            reason="insufficient_quota",
            lines=b"x-tpo-budget: spend\r\n",
        )

    def _cost(self, call: Call, need: Need) -> int | None:
        cost_usd = self._prices.cost_usd(call.model, need.prompt, need.output)
        return None if cost_usd is None else round(cost_usd * NANO)

    def _settle(
        self, call: Call, need: Need, held: list[Held], cost: Held | None, ended: Ending
    ) -> None:
        """The call has ended; see above for what it has used."""
        used = _used(call, need, ended)
        reserved, total = sum(need), sum(used)
        self._reserved.inc(reserved)
        self._used.inc(total)
        if total > reserved:
            self._overrun.inc(total - reserved)
        for one in held:
            self._purses.settle(one, total)
        if cost is not None:
            spent = self._cost(call, used)
            self._purses.settle(cost, cost.amount if spent is None else spent)


def _used(call: Call, need: Need, ended: Ending) -> Need:
    """Tokens that a call used."""
    error = ended.error
    lost = error is not None and error.code == "worker_lost"
    # Where a session's call is served by another shard, its tries are known once that answers.
    unknown = lost or (ended.terminal in _GIVEN_UP and call.affinity is not None and call.admitted)
    if ended.attempts == 0:
        return need if unknown else Need(0, 0)
    if ended.prompt >= 0 or ended.completion >= 0:
        return Need(
            ended.prompt if ended.prompt >= 0 else need.prompt,
            ended.completion if ended.completion >= 0 else need.output,
        )
    if error is None or ended.terminal in _GIVEN_UP or lost:
        return need
    turned_away = error.status < REFUSED_BELOW or error.code in _NOT_REACHED
    return Need(0, 0) if turned_away and ended.attempts == 1 else need


def _refusal(limit: Limit, used: int, amount: int, span: Span) -> OverBudget:
    anew = instant(span.end)
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
