"""The operator's choice of timings: the options of ``[simulator]`` about time, put to work.

What a name in ``latency`` may mean: ``instant``, a profile of the operator's own, a
preset, a simulated engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Annotated

from msgspec import Meta, field

from tpo_mp.ports import BackendConfig, Env

from . import profiles
from .engine_options import EngineOptions, all_engines, engine_problems
from .own_ledger import OwnLedger
from .pacing import FixedTiming
from .presets import PRESETS
from .profiles import Profile
from .timer import MicroTimer
from .timing import Latency, Offer, unknown


class LatencyOptions(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the tokens of simulated answers come."""

    latency: Annotated[
        dict[str, str],
        Meta(description="Models (globs, the first that matches) to the name of their timing."),
    ] = field(default_factory=dict)
    profiles: Annotated[dict[str, Profile], Meta(description="Timings of your own, by name.")] = (
        field(default_factory=dict)
    )
    engines: Annotated[
        dict[str, EngineOptions], Meta(description="Simulated engines of your own, by name.")
    ] = field(default_factory=dict)
    latency_multiplier: Annotated[
        float, Meta(ge=0, le=1000, description="Every wait takes so many times as long; 0: none.")
    ] = 1.0
    first_token_ms: Annotated[
        float,
        Meta(ge=0, le=600_000, description="Wait before the first token, for models without one."),
    ] = 0.0
    token_ms: Annotated[
        float,
        Meta(ge=0, le=60_000, description="Wait for each further token, for models without one."),
    ] = 0.0

    def known_profiles(self) -> dict[str, Profile]:
        """The presets, and the operator's own, which win."""
        return {name: preset.profile for name, preset in PRESETS.items()} | self.profiles

    def problems(self) -> Iterator[tuple[str, str]]:
        """Timings nobody offers, and recordings that cannot be read."""
        yield from unknown(self.latency, [*self.known_profiles(), *all_engines(self.engines)])
        for name in self.engines.keys() & self.profiles.keys():
            yield f"engines.{name}", "a profile has this name too"
        yield from engine_problems(self.engines)
        for where, said in profiles.problems(self.profiles):
            yield f"profiles.{where}", said


def latency_of(
    options: LatencyOptions, env: Env, timer: MicroTimer, engines: Offer | None = None
) -> Latency:
    """When the tokens of each model come; the operator's own names win over presets.

    Load and idleness are the host's, but of this simulator: another may use the same profile.
    """
    layer = {name: make for name, make in (engines or {}).items() if name not in options.profiles}
    ledger = OwnLedger(env.ledger, options.name)
    first_s, gap_s = options.first_token_ms / 1e3, options.token_ms / 1e3
    return Latency(
        options.latency,
        [layer, profiles.offer(options.known_profiles(), ledger, timer)],
        otherwise=FixedTiming(timer, first_s, gap_s) if first_s or gap_s else None,
        factor=options.latency_multiplier,
    )


def lengths_of(
    options: LatencyOptions, name_of: Callable[[str], str]
) -> Callable[[str, Random], int | None] | None:
    """How long a model's answers are by its profile; None: no profile says.

    ``name_of`` tells the name of a model's timing.
    """
    known = options.known_profiles()
    if not any(known[n].answer_tokens for n in options.latency.values() if n in known):
        return None

    def length(model: str, random: Random) -> int | None:
        profile = known.get(name_of(model))
        return None if profile is None else profiles.length_of(profile, random)

    return length
