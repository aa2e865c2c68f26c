"""Accuracy of simulated times: what is right passes, what is not does not."""

from __future__ import annotations

from random import Random

import pytest

from tpo_mp.simulator.accuracy import (
    first_token,
    further_token,
    kolmogorov,
    quantile_of,
    quantiles,
    sampler,
)
from tpo_mp.simulator.distributions import Bimodal, Fixed, LogNormal, Normal
from tpo_mp.simulator.presets import PRESETS
from tpo_mp.simulator.profiles import ColdStart, Profile

MINE = Profile(
    first_token_ms=LogNormal(p50=100, sigma=0.3), token_ms=Normal(mean=10, sd=2), speed_cv=0.2,
    cold_start=ColdStart(chance=0.3, first_token_ms=Fixed(value=900)),
)  # fmt: skip


@pytest.mark.parametrize("name", ["gpt-4o@2026", "replicate-70b-coldstart@2023", "fast@design"])
def test_presets_draw_what_they_say(name: str) -> None:
    """A hundredth of the draws, three times the tolerance; the command does a million."""
    seen: list[int] = []
    findings = sampler(name, PRESETS[name].profile, 10_000, seen.append)
    assert len(findings) == 6
    assert max(finding.off for finding in findings) < 0.03 or all(f.right for f in findings)


def test_mixtures_are_compared_as_a_whole() -> None:
    """Cold starts are part of the first token, a call's own speed of the further ones."""
    assert first_token(MINE).quantile(0.9) == pytest.approx(900)
    assert further_token(MINE).quantile(0.99) > Normal(mean=10, sd=2).quantile(0.99)
    assert all(finding.right for finding in sampler("mine", MINE, 20_000) if "p50" in finding.what)


def test_sample_of_another_distribution_is_found_out() -> None:
    """By quantiles and as a whole; its own passes."""
    random, own = Random(4), LogNormal(p50=100, sigma=0.3)
    drawn = [own.draw(random.random()) for _ in range(20_000)]
    slower = LogNormal(p50=105, sigma=0.3)
    assert kolmogorov("x", "y", drawn, own).right
    assert not kolmogorov("x", "y", drawn, slower).right
    assert not quantiles("x", "y", drawn, slower)[0].right
    assert quantiles("x", "y", drawn, slower)[0].off == pytest.approx(0.05, abs=0.01)


def test_quantile_in_a_gap_is_judged_by_its_share() -> None:
    """Between two bells a value says little."""
    bells = Bimodal(fast_mean=100, fast_sd=1, slow_mean=900, slow_sd=1, fast_share=0.9)
    random = Random(9)
    drawn = [bells.draw(random.random()) for _ in range(20_000)]
    at_gap = quantiles("x", "y", drawn, bells)[1]
    assert at_gap.right


def test_quantiles_of_a_sample_lie_between_its_values() -> None:
    """Both ends included."""
    assert [quantile_of([1.0, 2.0, 4.0], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 4]
