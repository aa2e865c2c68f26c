"""The scenarios that are there without any being written.

Names, rates and times of the first eight and of the shipped ones are those of the original design;
what it leaves open is chosen here and labelled "ours".  Rates are of all requests: a later rule is
asked only by those that no earlier one struck, so its own probability is larger.
"""

from __future__ import annotations

from typing import Final

from .fault_breaker import BreakerRule
from .fault_conditions import Condition
from .fault_pressure import Budget, LoadStep
from .fault_rules import FaultRule
from .fault_schedule import Sequence
from .scenarios import Scenario, ScenarioStep

_DOWN: Final = "service_unavailable"

PRESETS: Final[dict[str, Scenario]] = {
    "none": Scenario(description="Nothing goes wrong."),
    "intermittent_rate_limits": Scenario(
        description="One request in twenty is over a limit.",
        faults=(FaultRule(error="rate_limit", probability=0.05),),
    ),
    "cascading_failures": Scenario(
        description="15 % fail; a breaker that five failures in 10 s open refuses for 120 s.",
        faults=(FaultRule(error=_DOWN, probability=0.15),),
        breaker=BreakerRule(open_s=120.0),
    ),
    "gradual_degradation": Scenario(
        description="Slower and slower from 30 s on, down from 90 s to 120 s, then well again.",
        steps=(
            # The slow minute is the design's; its three delays are ours.
            ScenarioStep(name="slow", start_s=30, lasts_s=20, delay_ms=1000),
            ScenarioStep(name="slower", start_s=50, lasts_s=20, delay_ms=2000),
            ScenarioStep(name="slowest", start_s=70, lasts_s=20, delay_ms=4000),
            ScenarioStep(name="down", start_s=90, lasts_s=30, faults=(FaultRule(error=_DOWN),)),
        ),
    ),
    "quota_exhaustion": Scenario(
        description="100 000 tokens an hour, then the quota is used up.",
        faults=(FaultRule(error="quota_exceeded", budget=Budget(tokens=100_000, per_s=3600)),),
    ),
    "high_load": Scenario(
        description="Over 50 calls at once, each further one makes failing 2 % likelier.",
        faults=(FaultRule(error=_DOWN, load=LoadStep(over=50, slope=0.02)),),
    ),
    "context_length_errors": Scenario(
        description="Prompts of 100 000 tokens and more are too long.",
        faults=(FaultRule(error="context_length_exceeded", when=Condition(min_tokens=100_000)),),
    ),
    "periodic_outages": Scenario(
        description="Every tenth request fails, five in all.",
        faults=(FaultRule(error=_DOWN, sequence=Sequence(every=10), limit=5),),
    ),
    "multi_error_chaos": Scenario(
        description="3 % limits, 2 % server errors, 1 % timeouts.",
        faults=(
            FaultRule(name="limits", error="rate_limit", probability=0.03),
            FaultRule(name="errors", error="internal_server_error", probability=0.02 / 0.97),
            FaultRule(name="timeouts", error="gateway_timeout", probability=0.01 / 0.95),
        ),
    ),
    "intermittent_timeouts": Scenario(
        description="One request in twenty is answered after 30 s, with a timeout.",
        faults=(FaultRule(error="gateway_timeout", probability=0.05, delay_ms=30_000),),
    ),
    "rate_limit_stress": Scenario(
        description="30 % are over a limit, and there are ten answers a minute.",
        faults=(
            FaultRule(name="chance", error="rate_limit", probability=0.3),
            FaultRule(name="minute", error="rate_limit_rpm", budget=Budget(requests=10, per_s=60)),
        ),
    ),
    "high_latency": Scenario(
        description="Everything comes 5 s later.",
        steps=(ScenarioStep(name="late", delay_ms=5000),),
    ),
    "partial_outage": Scenario(
        description="25 % server errors, 10 % unavailable; five failures in 10 s open a breaker.",
        faults=(
            FaultRule(name="errors", error="internal_server_error", probability=0.25),
            FaultRule(name="unavailable", error=_DOWN, probability=0.1 / 0.75),
        ),
        breaker=BreakerRule(),
    ),
    "full_outage": Scenario(description="Everything fails.", faults=(FaultRule(error=_DOWN),)),
}
