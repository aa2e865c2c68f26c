"""What an operator says of a simulated provider: ``[simulator]``, and what follows from it.

What concerns time is in ``latency``, what goes wrong in ``troubles``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from tpo_mp.config.prices import TokenPrice
from tpo_mp.config.values import Secret

from . import adapters, dataset
from .answers import Speech
from .call_journal import JournalOptions
from .catalog import MODELS
from .key_quotas import QuotaOptions
from .latency import LatencyOptions, lengths_of
from .rate_limits import LimitOptions
from .replay import problems as replay_problems
from .rules import MOST_RULES, AnswerRule
from .rules import problems as rule_problems
from .seeds import Repeats
from .texts import DEFAULT_TEXT, Strategy
from .timing import Latency
from .troubles import FaultList, ScenarioName, ScenarioTable, problems_of


class SimulatorOptions(LatencyOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a simulated provider."""

    models: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Model names or globs it serves.")
    ] = MODELS
    adapters: Annotated[
        dict[str, adapters.StaticAdapter],
        Meta(
            max_length=adapters.MOST_ADAPTERS,
            description="LoRA adapters, each a model of its own name from the start.",
        ),
    ] = field(default_factory=dict)
    seed: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="Another seed, other answers; same seed, same.")
    ] = 0
    strategy: Annotated[
        Strategy,
        Meta(
            description="What it says: sentences about the prompt, Latin, the prompt itself, "
            "`text`, invented words, or words in the manner of `text`."
        ),
    ] = "template"
    text: Annotated[
        str,
        Meta(max_length=1 << 20, description="What `fixed` says, and what `markov` learns from."),
    ] = DEFAULT_TEXT
    repeats: Annotated[
        Repeats,
        Meta(
            description="A request that comes again: same words at another time and with other "
            "faults, other words too, or the same in everything."
        ),
    ] = "same_text"
    min_tokens: Annotated[
        int, Meta(ge=1, le=8192, description="Shortest answer it makes up, in tokens.")
    ] = 10
    max_tokens: Annotated[
        int, Meta(ge=1, le=8192, description="Longest answer it makes up, in tokens.")
    ] = 500
    request_timeout_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="An answer that would take longer is a 504 by then."),
    ] = 300.0
    rules: Annotated[
        tuple[AnswerRule, ...],
        Meta(max_length=MOST_RULES, description="Answers for requests of a kind, first match."),
    ] = ()
    strict: Annotated[
        bool, Meta(description="Refuse generation requests that no rule matches.")
    ] = False
    faults: FaultList = ()
    scenario: ScenarioName = ""
    scenarios: ScenarioTable = field(default_factory=dict)
    dataset: Annotated[
        str, Meta(max_length=4096, description="File of prompts and answers, as JSON lines.")
    ] = ""
    cost: Annotated[bool, Meta(description="Say in x-sim-cost-usd what an answer costs.")] = False
    prices: Annotated[
        dict[str, TokenPrice],
        Meta(description="Dollars per million tokens by model or glob, before those of [prices]."),
    ] = field(default_factory=dict)
    replay: Annotated[
        str, Meta(max_length=4096, description="File of recorded answers to play again.")
    ] = ""
    replay_speed: Annotated[
        float, Meta(ge=0, le=1e6, description="2 plays twice as fast, 0 does not wait.")
    ] = 1.0
    requests_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000, description="Limit that rate limit headers name.")
    ] = 10_000
    tokens_per_minute: Annotated[
        int, Meta(ge=1, le=1_000_000_000_000, description="Limit that rate limit headers name.")
    ] = 2_000_000

    limits: Annotated[
        LimitOptions, Meta(description="Whether the limits of these two run out.")
    ] = LimitOptions()
    quotas: Annotated[
        QuotaOptions, Meta(description="What a key may use in a day and in a month.")
    ] = QuotaOptions()
    journal: Annotated[JournalOptions, Meta(description="What is written down of requests.")] = (
        JournalOptions()
    )
    api_keys: Annotated[
        tuple[Secret, ...], Meta(description="Keys it knows, any other is 401; none: any passes.")
    ] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Bounds the wrong way round, and timings nobody offers."""
        if self.min_tokens > self.max_tokens:
            yield "min_tokens", "over max_tokens"
        yield from super().problems()
        yield from adapters.problems(self.adapters, (*self.models, *self.model_map))
        yield from rule_problems(self.rules)
        yield from problems_of(self.scenario, self.scenarios)
        yield from replay_problems(self.replay)
        yield from dataset.problems(self.dataset)


def speech_of(options: SimulatorOptions) -> Speech:
    """What its models say; reads its data set, which raises ``ConfigError``."""
    return Speech(
        seed=options.seed,
        strategy=options.strategy,
        text=options.text,
        least_tokens=options.min_tokens,
        most_tokens=options.max_tokens,
        lengths=lengths_of(options, Latency(options.latency, []).name_of),
        answers=dataset.read(Path(options.dataset)) if options.dataset else None,
    )
