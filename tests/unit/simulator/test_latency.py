"""The operator's choice of timings."""

from __future__ import annotations

from random import Random

from tests.support.fake_env import FakeWorld
from tpo_mp.simulator.distributions import Fixed
from tpo_mp.simulator.latency import LatencyOptions, latency_of, lengths_of
from tpo_mp.simulator.pacing import FixedTiming
from tpo_mp.simulator.profiles import Profile, ProfileTiming
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import Latency

MINE = Profile(first_token_ms=Fixed(value=5), answer_tokens=Fixed(value=77))


def options(**given: object) -> LatencyOptions:
    """Options of a backend."""
    return LatencyOptions(name="sim", kind="simulator", **given)  # type: ignore[arg-type]


def chosen(given: LatencyOptions) -> Latency:
    """Put to work in one worker."""
    world = FakeWorld()
    return latency_of(given, world.env, timer_of(world.env))


def test_models_have_presets_own_profiles_or_the_short_form() -> None:
    """One's own wins over a preset of the same name; nothing said is no latency."""
    latency = chosen(
        options(
            latency={"gpt-4o": "gpt-4o@2026", "mine-*": "fast@design", "quick": "instant"},
            profiles={"fast@design": MINE},
            first_token_ms=5.0,
        )
    )
    own, preset = latency.timing_of("mine-1"), latency.timing_of("gpt-4o")
    assert isinstance(own, ProfileTiming)
    assert own.profile is MINE
    assert isinstance(preset, ProfileTiming)
    assert round(preset.profile.first_token_ms.quantile(0.5)) == 450
    assert latency.timing_of("quick") is None
    assert isinstance(latency.timing_of("other"), FixedTiming)
    assert chosen(options()).timing_of("gpt-4o") is None
    assert chosen(options(first_token_ms=5.0, latency_multiplier=0.0)).timing_of("x") is None


def test_unknown_names_are_problems() -> None:
    """With the nearest name there is."""
    (problem,) = options(latency={"*": "groq-70b@2022"}).problems()
    where, said = problem
    assert where == "latency.*"
    assert said == "no timing is named 'groq-70b@2022'; did you mean 'groq-70b@2023'?"


def test_lengths_come_from_the_models_profile() -> None:
    """Without latency too, so that answers are the same; profiles without one say nothing."""
    given = options(latency={"a": "mine"}, profiles={"mine": MINE}, latency_multiplier=0.0)
    length = lengths_of(given, chosen(given).name_of)
    assert length is not None
    assert length("a", Random(1)) == 77
    assert length("b", Random(1)) is None
    plain = options(latency={"a": "fast@design"})
    assert lengths_of(plain, chosen(plain).name_of) is None
