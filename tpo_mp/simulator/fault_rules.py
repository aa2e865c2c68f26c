"""Rules that say which requests fail and how: ``[[simulator.faults]]``.

::

    request ──► when? ──► window? ──► number ──► sequence? ──► drawn? ──► limit? ──► error, fault
                                      (of the host)

Rules are asked in their order.  The first that strikes with an error or a fault ends the search;
delays of rules on the way add up.

What a rule counts lives in the host's ledger under its name, so every n-th is every n-th of the
host, and ``limit`` is kept however many processes there are.  A rule that is changed counts anew.

Invariants: chance is drawn from the request's own random stream, so the same seed and requests
meet the same faults whatever the number of workers; a rule that strikes is counted before it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Listed
from random import Random
from typing import Annotated, Literal, Protocol, TypeAlias
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

from tpo_mp.errors import InvalidRequest
from tpo_mp.ports import Cells, Ledger

from .fault_conditions import Condition, Facts, holds
from .fault_pressure import Budget, LoadStep, Spending
from .fault_schedule import ALWAYS, EACH, Sequence, Window
from .orders import ErrorOrder, FaultOrder, Orders, error_of, fault_of
from .seeds import stream_of

LONGEST_BACKOFF_S = 300.0
RetryAfter: TypeAlias = Literal["default", "exponential"]


class FaultRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that fail, and how they do."""

    name: Annotated[
        str, Meta(max_length=64, description="For metrics and the journal [`fault-1`, …].")
    ] = ""
    error: Annotated[
        str, Meta(max_length=256, description="As `X-Sim-Error` has it: `429`, `rate_limit_tpm`.")
    ] = ""
    fault: Annotated[
        str, Meta(max_length=256, description="As `X-Sim-Fault` has it: `disconnect_after=3`.")
    ] = ""
    delay_ms: Annotated[
        float, Meta(ge=0, le=3_600_000, description="Everything comes so much later.")
    ] = 0.0
    probability: Annotated[
        float, Meta(ge=0, le=1, description="How often it strikes, of the requests it could.")
    ] = 1.0
    when: Condition = Condition()
    sequence: Sequence = EACH
    window: Window = ALWAYS
    load: Annotated[LoadStep | None, Meta(description="Strikes by calls under way.")] = None
    budget: Annotated[Budget | None, Meta(description="Strikes once it is spent.")] = None
    limit: Annotated[
        int, Meta(ge=0, le=10**9, description="Strikes at most so often; 0: no limit.")
    ] = 0
    retry_after: Annotated[
        RetryAfter,
        Meta(description="Wait told with an error: its own, or doubled with each try."),
    ] = "default"

    def __post_init__(self) -> None:
        if self.error and self.fault:
            raise ValueError("a rule has an error or a fault, not both")
        if not (self.error or self.fault or self.delay_ms):
            raise ValueError("a rule needs an error, a fault or a delay_ms")
        try:
            if self.error:
                error_of(self.error, "error")
            if self.fault:
                fault_of(self.fault, "fault")
        except InvalidRequest as wrong:
            raise ValueError(wrong.message) from None


class DrawnFacts(Facts, Protocol):
    """Facts about a request that also give it its random numbers."""

    def key(self) -> bytes:
        """The key of its random streams."""

    def tries(self) -> int:
        """How often its client says that it tried before."""


class _Rule:
    """One rule at work."""

    def __init__(
        self, rule: FaultRule, name: str, scope: str, epoch: int, seed: int, ledger: Ledger
    ) -> None:
        self.name = name
        self.rule = rule
        self._ledger = ledger
        self._place = f"fault:{scope}/{name}"
        self._epoch = float(epoch or crc32(msgspec.json.encode(rule)))
        self._holds = holds(rule.when)
        self._counted = rule.sequence != EACH or rule.limit > 0
        self._start = stream_of(b"%d" % seed, "window", scope, name).random()
        self._window = None if rule.window == ALWAYS else rule.window
        self.spending = None
        if rule.budget is not None:
            self.spending = Spending(ledger, self._place + "/used", rule.budget, int(self._epoch))
        self.first: int | None = None
        self.order: ErrorOrder | FaultOrder | None = None
        if rule.fault:
            self.order = fault_of(rule.fault, "fault")
        elif rule.error:
            self.order, self.first = error_of(rule.error, "error")

    def wait_s(self, facts: DrawnFacts, elapsed_s: float, wall_s: float) -> float | None:
        """None: it does not strike; else the wait that load or budget impose, or 0."""
        rule = self.rule
        if self._holds is not None and not self._holds(facts):
            return None
        if self._window is not None and not self._window.open(elapsed_s, wall_s, self._start):
            return None
        if self.first is not None and facts.tries() >= self.first:
            return None
        chance, wait = rule.probability, 0.0
        if rule.load is not None:
            calls = facts.concurrent()
            chance *= rule.load.probability(calls)
            wait = rule.load.wait_s(calls)
        drawn = chance >= 1.0 or (chance > 0.0 and self._random(facts).random() < chance)
        if self._counted:
            if not self._count(drawn):
                return None
        elif not drawn:
            return None
        if self.spending is not None:
            left = self.spending.refused_for(elapsed_s)
            return left or None
        return wait

    def _random(self, facts: DrawnFacts) -> Random:
        return stream_of(facts.key(), "fault", self.name)

    def _count(self, drawn: bool) -> bool:
        """Take the request's number, and with it whether it is struck."""
        rule, struck = self.rule, False

        def count(cells: Cells) -> Cells:
            nonlocal struck
            seen, strikes = cells[1:3] if cells[0] == self._epoch else (0.0, 0.0)
            struck = (
                drawn
                and rule.sequence.strikes(int(seen) + 1)
                and not (rule.limit and strikes >= rule.limit)
            )
            return self._epoch, seen + 1, strikes + struck, 0.0

        self._ledger.update(self._place, count)
        return struck

    def ordered(self, facts: DrawnFacts, wait_s: float) -> ErrorOrder | FaultOrder | None:
        """What the struck request meets."""
        order = self.order
        if not isinstance(order, ErrorOrder):
            return order
        told: float | None = order.retry_after_s
        if self.rule.retry_after == "exponential":
            told = min((told or 1.0) * 2 ** min(facts.tries(), 30), LONGEST_BACKOFF_S)
        elif wait_s and told is None:
            told = wait_s
        return order if told == order.retry_after_s else ErrorOrder(order.status, told, order.name)


class FaultRules:
    """Rules at work in one process; ``scope`` and ``epoch`` tell apart what is counted anew.

    With an epoch of 0 each rule counts on for as long as it is written the same.
    """

    def __init__(
        self,
        rules: Listed[FaultRule],
        ledger: Ledger,
        *,
        scope: str,
        epoch: int = 0,
        seed: int = 0,
    ) -> None:
        names = list(named(rules))
        self._rules = [
            _Rule(rule, name, scope, epoch, seed, ledger)
            for rule, name in zip(rules, names, strict=True)
        ]
        self._spending = [rule.spending for rule in self._rules if rule.spending is not None]
        self.counts_calls = any(r.load is not None or r.when.counts() for r in rules)

    def choose(self, facts: DrawnFacts, elapsed_s: float, wall_s: float) -> Orders | None:
        """What happens to a request ``elapsed_s`` after the rules came into force."""
        delay_s, delayed_by = 0.0, ""
        for rule in self._rules:
            wait = rule.wait_s(facts, elapsed_s, wall_s)
            if wait is None:
                continue
            delay_s += rule.rule.delay_ms / 1e3
            order = rule.ordered(facts, wait)
            if isinstance(order, ErrorOrder):
                return Orders(error=order, delay_s=delay_s, rule=rule.name)
            if order is not None:
                return Orders(fault=order, delay_s=delay_s, rule=rule.name)
            delayed_by = rule.name
        return Orders(delay_s=delay_s, rule=delayed_by) if delayed_by else None

    def spend(self, tokens: int, elapsed_s: float) -> None:
        """Note the tokens of an answer."""
        for spending in self._spending:
            spending.spend(tokens, elapsed_s)


def named(rules: Iterable[FaultRule]) -> Iterator[str]:
    """Names of rules, in order, each once."""
    taken: set[str] = set()
    for number, rule in enumerate(rules, 1):
        name = rule.name or f"fault-{number}"
        while name in taken:
            name += f"-{number}"
        taken.add(name)
        yield name
