"""Scenarios: what goes wrong at a provider over some minutes, as a timeline anybody can switch on.

::

    activated ─┬─ 0 s ──────── 30 s ──────────── 90 s ──────── 120 s
               │  (well)       slow: +1 s … +4 s  down: 503     (well)
               └─ faults of the scenario itself hold throughout

A step holds from its start for as long as it lasts; steps may overlap.  A scenario may include
others, which run beside it from the same beginning.  Time is that of the host's clock since the
activation, so every process is in the same step.

Invariants: including goes in no circle; a scenario that is activated again counts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from tpo_mp.config.problems import suggestion
from tpo_mp.errors import ConfigError
from tpo_mp.ports import Ledger

from .fault_breaker import BreakerRule, SimulatedBreaker
from .fault_rules import DrawnFacts, FaultRule, FaultRules
from .orders import ErrorOrder, FaultOrder, Orders

OPEN: Final = "circuit_breaker_open"
_BREAKS: Final = ("refuse", "disconnect", "reset", "hang", "error")
"""Faults that are failures to a breaker."""
_SECONDS: Final = Meta(ge=0, le=31_536_000)


class ScenarioStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scenario's timeline."""

    name: Annotated[str, Meta(max_length=64, description="For people [`step-1`, …].")] = ""
    start_s: Annotated[float, _SECONDS, Meta(description="Seconds after the activation.")] = 0.0
    lasts_s: Annotated[float, _SECONDS, Meta(description="So long; 0: to the end.")] = 0.0
    faults: Annotated[
        tuple[FaultRule, ...], Meta(max_length=64, description="What fails meanwhile.")
    ] = ()
    delay_ms: Annotated[
        float, Meta(ge=0, le=3_600_000, description="Everything comes so much later.")
    ] = 0.0
    slowdown: Annotated[
        float, Meta(gt=0, le=1000, description="All latency is so many times as long.")
    ] = 1.0

    def holds(self, at_s: float) -> bool:
        """Whether the timeline is in this step."""
        return self.start_s <= at_s and (not self.lasts_s or at_s < self.start_s + self.lasts_s)


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong, and when."""

    description: Annotated[str, Meta(max_length=256, description="For people.")] = ""
    faults: Annotated[
        tuple[FaultRule, ...], Meta(max_length=64, description="What fails throughout.")
    ] = ()
    steps: Annotated[
        tuple[ScenarioStep, ...], Meta(max_length=64, description="What happens when.")
    ] = ()
    repeat_s: Annotated[
        float, _SECONDS, Meta(description="The steps begin again after so long; 0: never.")
    ] = 0.0
    include: Annotated[
        tuple[str, ...], Meta(max_length=16, description="Scenarios that run beside it.")
    ] = ()
    breaker: Annotated[
        BreakerRule | None, Meta(description="A circuit breaker that its failures open.")
    ] = None

    def __post_init__(self) -> None:
        for step in self.steps:
            if self.repeat_s and step.start_s >= self.repeat_s:
                said = f"a step that starts at {step.start_s:g} s never comes: repeat_s is"
                raise ValueError(f"{said} {self.repeat_s:g}")


def included(name: str, known: Mapping[str, Scenario]) -> list[str]:
    """A scenario and all that it includes, each once; raises ``ConfigError`` with the path."""
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(
                f"scenarios.{path[-1]}.include: {name!r} goes in a circle: "
                + " > ".join([*path[path.index(name) :], name])
            )
        if name not in known:
            where = f"scenarios.{path[-1]}.include" if path else "scenario"
            raise ConfigError(f"{where}: {name!r} is no scenario; {suggestion(name, known)}")
        if name not in found:
            found.append(name)
        for other in known[name].include:
            visit(other, (*path, name))

    visit(name, ())
    return found


class _Track:
    """One scenario's own timeline at work."""

    def __init__(self, name: str, scenario: Scenario, epoch: int, made: _Made) -> None:
        self.name = name
        self._scenario = scenario
        self._always = made.rules(scenario.faults, name, epoch)
        self._steps = [
            (step, made.rules(step.faults, f"{name}/{label}", epoch))
            for step, label in zip(scenario.steps, labels(scenario), strict=True)
        ]
        self._breaker = None
        if scenario.breaker is not None:
            place = f"breaker:{name}"
            self._breaker = SimulatedBreaker(made.ledger, place, scenario.breaker, epoch)
        every = [rules for rules in (self._always, *(r for _, r in self._steps)) if rules]
        self.rules = every

    def at(self, elapsed_s: float) -> float:
        """Where on the timeline it is."""
        repeat = self._scenario.repeat_s
        return elapsed_s % repeat if repeat else elapsed_s

    def choose(
        self, facts: DrawnFacts, elapsed_s: float, wall_s: float, now: float
    ) -> Orders | None:
        """What happens to a request."""
        breaker = self._breaker
        if breaker is not None:
            left = breaker.refused_for(now)
            if left:
                return Orders(error=ErrorOrder(503, left, OPEN), rule=OPEN)
        chosen = self._chosen(facts, elapsed_s, wall_s)
        if breaker is not None:
            if chosen is not None and _fails(chosen):
                breaker.failed(now)
            else:
                breaker.succeeded()
        return chosen

    def _chosen(self, facts: DrawnFacts, elapsed_s: float, wall_s: float) -> Orders | None:
        at, delay_s, chosen = self.at(elapsed_s), 0.0, None
        if self._always is not None:
            chosen = self._always.choose(facts, elapsed_s, wall_s)
            delay_s += chosen.delay_s if chosen is not None else 0.0
        for step, rules in self._steps:
            if not step.holds(at):
                continue
            delay_s += step.delay_ms / 1e3
            if rules is None or (chosen is not None and (chosen.error or chosen.fault)):
                continue
            chosen = rules.choose(facts, at - step.start_s, wall_s)
            delay_s += chosen.delay_s if chosen is not None else 0.0
        if chosen is None:
            return Orders(delay_s=delay_s) if delay_s else None
        return replace(chosen, delay_s=delay_s)

    def slowdown(self, elapsed_s: float) -> float:
        """How many times as long everything takes."""
        at, factor = self.at(elapsed_s), 1.0
        for step, _ in self._steps:
            if step.holds(at):
                factor *= step.slowdown
        return factor

    def status(self, elapsed_s: float, now: float) -> dict[str, Any]:
        """Which of its steps it is in, for people and programs."""
        at, scenario = self.at(elapsed_s), self._scenario
        steps = [
            {
                "name": label,
                "start_s": step.start_s,
                "lasts_s": step.lasts_s or None,
                "active": step.holds(at),
            }
            for step, label in zip(scenario.steps, labels(scenario), strict=True)
        ]
        told: dict[str, Any] = {
            "scenario": self.name,
            "at_s": round(at, 3),
            "steps": steps,
            "active": [step["name"] for step in steps if step["active"]],
        }
        if self._breaker is not None:
            told["breaker"] = self._breaker.state(now)
        return told


class _Made:
    """Makes the rules of one run."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self._seed = seed

    def rules(self, rules: tuple[FaultRule, ...], scope: str, epoch: int) -> FaultRules | None:
        if not rules:
            return None
        return FaultRules(rules, self.ledger, scope=scope, epoch=epoch, seed=self._seed)


class ScenarioRun:
    """A scenario that is active; ``epoch`` is the number of its activation on this host."""

    def __init__(
        self,
        name: str,
        known: Mapping[str, Scenario],
        ledger: Ledger,
        *,
        began_at: float,
        epoch: int,
        seed: int = 0,
    ) -> None:
        """Raises ``ConfigError`` for a name that is not known."""
        made = _Made(ledger, seed)
        self.name = name
        self.began_at = began_at
        self._tracks = [_Track(one, known[one], epoch, made) for one in included(name, known)]
        rules = [rules for track in self._tracks for rules in track.rules]
        self._rules = rules
        self.counts_calls = any(one.counts_calls for one in rules)

    def choose(self, facts: DrawnFacts, now: float, wall_s: float) -> Orders | None:
        """What happens to a request at ``now`` of the host's clock."""
        elapsed_s, delay_s = max(now - self.began_at, 0.0), 0.0
        for track in self._tracks:
            chosen = track.choose(facts, elapsed_s, wall_s, now)
            if chosen is None:
                continue
            delay_s += chosen.delay_s
            if chosen.error is not None or chosen.fault is not None:
                return replace(chosen, delay_s=delay_s)
        return Orders(delay_s=delay_s) if delay_s else None

    def spend(self, tokens: int, now: float) -> None:
        """Note the tokens of an answer."""
        for rules in self._rules:
            rules.spend(tokens, max(now - self.began_at, 0.0))

    def slowdown(self, now: float) -> float:
        """How many times as long everything takes."""
        factor = 1.0
        for track in self._tracks:
            factor *= track.slowdown(max(now - self.began_at, 0.0))
        return factor

    def status(self, now: float) -> dict[str, Any]:
        """Which steps are active, for people and programs."""
        elapsed_s = max(now - self.began_at, 0.0)
        return {
            "name": self.name,
            "elapsed_s": round(elapsed_s, 3),
            "timelines": [track.status(elapsed_s, now) for track in self._tracks],
        }


def rules_of(scenario: Scenario) -> Iterator[FaultRule]:
    """All its rules, those of its steps included."""
    yield from scenario.faults
    for step in scenario.steps:
        yield from step.faults


def labels(scenario: Scenario) -> Iterator[str]:
    """Names of its steps, in order, each once."""
    taken: set[str] = set()
    for number, step in enumerate(scenario.steps, 1):
        label = step.name or f"step-{number}"
        while label in taken:
            label += f"-{number}"
        taken.add(label)
        yield label


def _fails(chosen: Orders) -> bool:
    if chosen.error is not None:
        return chosen.error.status >= 500
    return isinstance(chosen.fault, FaultOrder) and chosen.fault.kind in _BREAKS
