"""Profiles that are ready to use, each with where its figures come from.

Labels: *measured*, computed from published raw data; *published*, a figure someone else computed;
*design*, from the simulator's original design alone; *assumed*, nobody published it.
One model differs more between two sources than most models from each other (Claude Sonnet 4.6:
0.74 to 2.12 s to the first token), so a name has its date; a recording of your own provider beats
any of them.

How tokens of one call vary is published nowhere: 0.5 (standard deviation over mean) is assumed
throughout, except in the design's own profiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from .degradation import Degradation
from .distributions import LogNormal, Normal, Uniform
from .profiles import Profile

Label: TypeAlias = Literal["measured", "published", "design", "assumed"]

TOKEN_CV: Final = 0.5
LLMPERF: Final = "ray-project/llmperf-leaderboard, 550 in, 150 out, 5 at a time, n=150"
ANALYSIS: Final = "Artificial Analysis via induwara.lk"
STATS: Final = "modelstats.ai"
ROUTER: Final = "OpenRouter via jonathanwrede.de"
ANALYSIS_2024: Final = "Artificial Analysis via therightstack.com"
COMPANION: Final = "llm-simulator's companion design"
SHIPPED: Final = "llm-simulator's shipped profiles"


@dataclass(frozen=True, slots=True)
class Ground:
    """Where some figures come from."""

    what: str
    label: Label
    source: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Preset:
    """A profile and the grounds of its figures."""

    profile: Profile
    grounds: tuple[Ground, ...]


_SPREAD: Final = Ground("spread of the first token, speed and token variation", "assumed")
_VARIATION: Final = Ground("token variation", "assumed")


def _hosted(
    p50_ms: float, sigma: float, token_ms: float, speed_cv: float,
    chunk: tuple[int, int], *grounds: Ground,
) -> Preset:  # fmt: skip
    profile = Profile(
        first_token_ms=LogNormal(p50=p50_ms, sigma=sigma),
        token_ms=LogNormal(mean=token_ms, sd=token_ms * TOKEN_CV),
        speed_cv=speed_cv,
        tokens_per_chunk=chunk,
    )
    return Preset(profile, grounds)


def _recorded(
    p50_ms: float, sigma: float, token_ms: float, speed_cv: float, chunk: tuple[int, int] = (1, 1),
    *more: Ground,
) -> Preset:  # fmt: skip
    what = "first token p50 and sigma, calls' own token p50, speed cv"
    mean_ms = token_ms * math.hypot(1, speed_cv)  # of log-normal speeds with that median
    return _hosted(
        p50_ms, sigma, mean_ms, speed_cv, chunk,
        Ground(what, "measured", LLMPERF, "2023-12"), _VARIATION, *more,
    )  # fmt: skip


def _designed(
    first_ms: tuple[float, float], token_ms: tuple[float, float], jitter_ms: float,
    degradation: Degradation,
) -> Preset:  # fmt: skip
    (p50, p99), (mean, sd) = first_ms, token_ms
    profile = Profile(
        first_token_ms=LogNormal(p50=p50, p99=p99),
        token_ms=Normal(mean=mean, sd=sd),
        jitter_cv=jitter_ms / mean,
        degradation=degradation,
    )
    return Preset(profile, (Ground("all", "design", COMPANION, "2025-12"),))


def _shipped(
    first: tuple[float, float], token: tuple[float, float], *, log: bool = False
) -> Preset:
    shape = LogNormal if log else Normal
    profile = Profile(
        first_token_ms=shape(mean=first[0], sd=first[1]),
        token_ms=shape(mean=token[0], sd=token[1]),
    )
    return Preset(profile, (Ground("all", "design", SHIPPED, "2025-12"),))


_CHUNKS: Final = Ground("tokens of one event", "assumed")

PRESETS: Final[dict[str, Preset]] = {
    "gpt-4o@2026": _hosted(
        450, 0.40, 7.6, 0.15, (1, 4),
        Ground("first token p50, token mean", "published", ANALYSIS, "2026-06"), _SPREAD, _CHUNKS,
    ),
    "gpt-4-turbo@2024": _hosted(
        800, 0.49, 50, 0.15, (1, 1),
        Ground("token mean", "published", ANALYSIS_2024, "2024"),
        Ground("first token p50 and sigma", "design", COMPANION, "2025-12"),
        Ground("speed and token variation", "assumed"),
    ),
    "gpt-3.5-turbo@2024": _hosted(
        250, 0.50, 13, 0.15, (1, 1),
        Ground("token mean", "published", ANALYSIS_2024, "2024"),
        Ground("first token p50 and sigma", "design", COMPANION, "2025-12"),
        Ground("speed and token variation", "assumed"),
    ),
    "claude-3-opus@2024": _hosted(
        1200, 0.39, 25, 0.15, (1, 3),
        Ground("first token p50 and sigma, token mean", "design", COMPANION, "2025-12"),
        Ground("speed and token variation", "assumed"), _CHUNKS,
    ),
    "claude-sonnet-4.6@2026": _hosted(
        740, 0.40, 9.6, 0.20, (1, 5),
        Ground("first token p50, token mean", "published", ANALYSIS, "2026-06"), _SPREAD, _CHUNKS,
    ),
    "claude-opus-4.6@2026": _hosted(
        1600, 0.40, 14, 0.20, (1, 5),
        Ground("first token p50", "published", STATS, "2026-04"),
        Ground("token mean", "published", ROUTER, "2026"), _SPREAD, _CHUNKS,
    ),
    "gemini-2.5-flash@2026": _hosted(
        490, 0.30, 4.5, 0.15, (5, 20),
        Ground("first token p50, token mean", "published",
               f"{STATS}, Artificial Analysis via benchlm.ai, OpenRouter agree", "2026"),
        _SPREAD, _CHUNKS,
    ),
    "gemini-2.5-pro-thinking@2026": _hosted(
        6100, 0.60, 10, 0.15, (1, 5),
        Ground("first token p50, thinking included", "published", STATS, "2026-04"),
        Ground("first token sigma, token mean, speed and token variation", "assumed"), _CHUNKS,
    ),
    "groq-70b@2023": _recorded(222, 0.19, 5.3, 0.09, (1, 3), _CHUNKS),
    "bedrock-70b@2023": _recorded(388, 0.16, 46.2, 0.04),
    "replicate-70b-coldstart@2023": _recorded(1188, 1.05, 97, 0.76),
    "anyscale-7b@2023": _recorded(203, 0.20, 18.8, 0.05),
    "anyscale-13b@2023": _recorded(202, 0.19, 7.8, 0.13),
    "anyscale-70b@2023": _recorded(213, 0.26, 14.6, 0.28),
    "fireworks-70b@2023": _recorded(517, 0.24, 24.4, 0.07),
    "together-7b@2023": _recorded(519, 0.23, 13.2, 0.12),
    "together-70b@2023": _recorded(635, 0.14, 15.3, 0.17),
    "perplexity-70b@2023": _recorded(366, 0.24, 33, 0.21),
    "gpt-4-turbo@design": _designed(
        (800, 2500), (20, 5), 2, Degradation(curve="exponential", alpha=0.5, base_per_s=10)
    ),
    "gpt-3.5-turbo@design": _designed(
        (250, 800), (10, 3), 1.5, Degradation(curve="linear", slope=0.3, base_per_s=50)
    ),
    "claude-3-opus@design": _designed(
        (1200, 3000), (25, 6), 2.5, Degradation(curve="mm1", capacity_per_s=8, base_per_s=5)
    ),
    "claude-3-sonnet@design": _designed(
        (500, 1500), (15, 4), 2, Degradation(curve="exponential", alpha=0.4, base_per_s=20)
    ),
    "gemini-1.5-pro@design": _designed(
        (600, 1800), (18, 5), 2, Degradation(curve="linear", slope=0.4, base_per_s=15)
    ),
    "fast@design": _shipped((50, 10), (15, 3)),
    "standard@design": _shipped((200, 50), (30, 8)),
    "slow@design": _shipped((500, 100), (60, 15)),
    "gpt4@design": _shipped((300, 150), (40, 15), log=True),
    "claude@design": _shipped((250, 100), (35, 12)),
    "gemini@design": _shipped((200, 80), (25, 10)),
    "embedding@design": Preset(
        Profile(first_token_ms=Uniform(low=50, high=100)),
        (Ground("all", "design", COMPANION, "2025-12"),),
    ),
}  # fmt: skip
"""Presets by name."""


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """The table of presets: name, first token, further tokens, chunk, grounds."""
    for name, preset in PRESETS.items():
        profile = preset.profile
        least, most = profile.tokens_per_chunk
        grounds = "; ".join(
            f"{g.what}: {g.label}" + (f" ({g.source}, {g.date})" if g.source else "")
            for g in preset.grounds
        )
        yield name, _first(profile), _further(profile), _chunk(least, most), grounds


def _first(profile: Profile) -> str:
    first = profile.first_token_ms
    return " / ".join(f"{first.quantile(share):.0f}" for share in (0.5, 0.9, 0.99))


def _further(profile: Profile) -> str:
    if not profile.token_ms.average:
        return "-"
    mean = profile.token_ms.average
    spread = getattr(profile.token_ms, "sd", 0.0) / mean
    return f"{mean:.1f} / {profile.speed_cv:g} / {(spread**2 + profile.jitter_cv**2) ** 0.5:.2f}"


def _chunk(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
