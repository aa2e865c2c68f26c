"""Budgets of tokens: of a request, a session, a tenant, the whole host, by the hour, day or month.

Before a call runs, the most it can use is set aside: its prompt, estimated from its bytes, and the
most output it lets the model make.  When it has ended, what it really used is settled and the rest
given back.  The counts are the host's (see ``pipeline.purses``), so they are exact over all
workers, and a call whose worker dies has used what was set aside for it, once.

What a call that ended has used:

- what its backend reported, the estimate standing in for a count that is missing;
- nothing, when no backend was asked, none was reached, or it refused the request as it was;
- all that was set aside in every other case: nobody knows better.

The levels are asked from the narrowest to the widest; a refusal gives back what those before it
set aside.

Invariants: those of ``pipeline.purses``; a level that is not given is not counted.
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
from tpo_mp.errors import OverBudget, Shed, TpoError
from tpo_mp.pipeline.allowance import FOREVER, NEVER, Calendar, Span, instant
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
from tpo_mp.pipeline.purses import CALLS, FULL, ONE_CALL, TOKENS_AT, Count, Purse, Purses
from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import Call, Ending, Phase, Terminal

BYTES_PER_TOKEN: Final = 4
REFUSED_BELOW: Final = 500
MOST_WAYS: Final = 4096
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
        self._wall = wall
        self._purses = Purses(env.quotas, env.timers, env.clock, wall)
        self._calendar = Calendar(config.time_zone, wall)
        self._prices = env.prices
        self._ways: dict[tuple[str, str, str | None], _Way] = {}
        spend = self._levels.spend
        self._spend = None if spend is None else self._purses.count(
            SPEND_ROW, spend.limit, crowd=False
        )  # fmt: skip
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
        session = call.session if levels.session is not None else None
        key = (call.tenant, call.tier, session)
        way = self._ways.get(key)
        if way is None:
            way = self._find_way(key)
        prompt = -(-len(call.body) // BYTES_PER_TOKEN)
        output = most_output(call.dialect, call.body, levels.default_output)
        amount = prompt + output
        if levels.request and amount > levels.request:
            raise self._too_large(prompt, amount)
        now = self._wall()
        price = amount << TOKENS_AT | ONE_CALL
        purses = way.purses
        for purse in purses:
            word = purse.word
            if word & CALLS and word >> TOKENS_AT >= amount and now < purse.end:
                purse.word = word = word - price
                purse.unspent[0] = word
            else:
                self._ask(way, purses.index(purse), amount)
        cost: tuple[Purse, int] | None = None
        if self._spend is not None:
            try:
                cost = self._hold_cost(call, self._spend, prompt, output)
            except TpoError:
                self._undo(way.purses, amount)
                raise
        if way.purses or self._spend is not None:
            at_end(call, partial(self._settle, call, way.purses, prompt, output, cost))

    def _find_way(self, key: tuple[str, str, str | None]) -> _Way:
        """Where a call counts, from the narrowest level to the widest."""
        tenant, tier, session = key
        levels, count = self._levels, self._purses.count
        found: list[tuple[Limit, Count]] = []
        if levels.session is not None and session:
            # Tenants and tiers are the configuration's, a session is whatever a client says.
            limit = levels.session
            name = session_row(tenant, session)
            found.append((limit, count(name, limit.limit or NEVER, crowd=True)))
        for limit in levels.tenant(tier):
            name, least = tenant_row(tenant, limit.period), levels.least(limit.period)
            found.append((limit, count(name, limit.limit, least, crowd=False)))
        found += [
            (limit, count(overall_row(limit.period), limit.limit, crowd=False))
            for limit in levels.overall
        ]
        if len(self._ways) >= MOST_WAYS:
            self._ways.clear()
        way = self._ways[key] = _Way(tuple(found))
        return way

    def _ask(self, way: _Way, place: int, amount: int) -> None:
        """Set ``amount`` aside where the purse has not as much; what came before is undone."""
        limit, count = way.counts[place]
        span = self._calendar.now(limit.period)
        try:
            used = self._purses.take(count, span, amount)
            if used is not None:
                raise self._refusal(limit, count, amount, span)
        except TpoError:
            self._undo(way.purses[:place], amount)
            raise
        if way.purses[place] is not count.purse:
            way.purses = tuple(count.purse for _, count in way.counts)

    def _refusal(self, limit: Limit, count: Count, amount: int, span: Span) -> OverBudget:
        used = self._in_use(limit.level, count, amount)
        self._refused[limit.level].inc()
        return _refusal(limit, int(used), amount, span)

    def _in_use(self, level: str, count: Count, amount: int) -> float:
        """What is really in use; raises ``Shed`` when others only hold ahead what is missing."""
        used = self._purses.in_use(count)
        if used + amount <= count.limit:
            raise Shed(  # it comes back at once
                f"what is left of the {level} budget is being counted",
                reason="budget_busy",
                retry_after_s=1,
            )
        return used

    def _too_large(self, prompt: int, amount: int) -> OverBudget:
        self._refused["request"].inc()
        request = self._levels.request
        return OverBudget(
            f"the request may use {amount} tokens ({prompt} of them its prompt), more than "
            f"the {request} that one request may",
            reason="insufficient_quota",
            lines=_lines("request", request, 0, None),
        )

    def _hold_cost(
        self, call: Call, count: Count, prompt: int, output: int
    ) -> tuple[Purse, int] | None:
        """Set aside the most the call can cost; ``None``: nobody said its price."""
        cost = self._cost(call, prompt, output)
        if cost is None:
            self._unpriced.inc()
            return None
        purse = count.purse
        word = purse.word
        if word & CALLS and word >> TOKENS_AT >= cost:
            purse.word = purse.unspent[0] = word - (cost << TOKENS_AT | ONE_CALL)
            return purse, cost
        if self._purses.take(count, FOREVER, cost) is None:
            return count.purse, cost
        spent = self._in_use("spending", count, cost)
        self._refused["spend"].inc()
        raise OverBudget(
            f"this gateway may spend ${count.limit / NANO:.2f}, of which ${spent / NANO:.6f} is in "
            f"use, and this request may cost ${cost / NANO:.6f}",
            reason="insufficient_quota",
            lines=b"x-tpo-budget: spend\r\n",
        )

    def _cost(self, call: Call, prompt: int, output: int) -> int | None:
        cost_usd = self._prices.cost_usd(call.model, prompt, output)
        return None if cost_usd is None else round(cost_usd * NANO)

    def _undo(self, purses: tuple[Purse, ...], amount: int) -> None:
        for purse in purses:
            self._purses.undo(purse, amount)

    def _settle(
        self, call: Call, purses: tuple[Purse, ...], prompt: int, output: int,
        cost: tuple[Purse, int] | None, ended: Ending,
    ) -> None:  # fmt: skip
        """The call has ended; see above for what it has used of what was set aside for it."""
        _, asked, made, _, attempts, aside = ended
        if not attempts or asked < 0 or made < 0:
            asked, made = _used(call, Need(prompt, output), ended)
        reserved, used = prompt + output, asked + made
        if aside is not None:
            used += aside.tokens
            if self._spend is not None and aside.cost_usd:
                self._purses.settle(self._spend.purse, -round(aside.cost_usd * NANO))
        self._reserved.inc(reserved)
        self._used.inc(used)
        back = reserved - used
        if back < 0:
            self._overrun.inc(-back)
        more = back << TOKENS_AT
        for purse in purses:
            word = purse.word + more
            if purse.leased and 0 <= word < FULL:
                purse.word = word
                purse.unspent[0] = word
            else:
                self._purses.settle(purse, back)
        if cost is not None:
            spent = self._cost(call, asked, made)
            self._purses.settle(cost[0], 0 if spent is None else cost[1] - spent)


class _Way:
    """Where calls of one tenant, tier and session count, narrowest level first."""

    __slots__ = ("counts", "purses")

    def __init__(self, counts: tuple[tuple[Limit, Count], ...]) -> None:
        self.counts = counts
        self.purses = tuple(count.purse for _, count in counts)
        """Those that each count had when it was asked last."""


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
