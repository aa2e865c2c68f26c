"""A hosted model as it is seen from outside: when its first token comes, and each further one.

::

    first token   first_token_ms, or cold_start.first_token_ms when it is cold
    each further  token_ms · a call's own speed · jitter          (both factors are one on average)
                  + once in a while a stall
    all of it     · degradation by load · the call's factor

The first token goes alone, further ones in chunks; a chunk goes when its last token is there, so
that chunks change neither the first token nor the whole.

Invariants: the numbers of a call are drawn in one order from its own key, so the same call has the
same schedule in any process (but for load and idleness, which are the host's).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Ledger

from .degradation import Degradation, HostRate
from .distributions import Distribution, Empirical, Fixed
from .draws import Draws
from .pacing import SchedulePace, Step
from .spreads import Wobble
from .timer import MicroTimer
from .timing import Asked, Offer, Timing

MOST_CHUNK: Final = 256
MOST_ANSWER: Final = 8192

Chance = Annotated[float, Meta(ge=0, le=1)]
ChunkSize = Annotated[int, Meta(ge=1, le=MOST_CHUNK)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Cv = Annotated[float, Meta(ge=0, le=10)]


class ColdStart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls that have to wait for a model that is not loaded."""

    first_token_ms: Annotated[Distribution, Meta(description="Wait of a cold call.")]
    chance: Annotated[Chance, Meta(description="Share of calls that are cold.")] = 0.0
    after_idle_s: Annotated[
        Seconds | None, Meta(description="A call is cold after so long without any.")
    ] = None


class Stalls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that stop for a while in their middle."""

    chance: Annotated[Chance, Meta(description="Share of answers with one, at any token.")]
    ms: Annotated[Distribution, Meta(description="How long.")]


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's timing."""

    first_token_ms: Annotated[Distribution, Meta(description="Wait before the first token.")]
    token_ms: Annotated[
        Distribution, Meta(description="Wait for each further token, drawn for each.")
    ] = field(default_factory=lambda: Fixed(value=0.0))
    speed_cv: Annotated[
        Cv, Meta(description="How calls differ in speed: standard deviation over mean.")
    ] = 0.0
    jitter_cv: Annotated[
        Cv, Meta(description="How tokens of one call differ, besides token_ms.")
    ] = 0.0
    tokens_per_chunk: Annotated[
        tuple[ChunkSize, ChunkSize], Meta(description="Least and most tokens of one event.")
    ] = (1, 1)
    answer_tokens: Annotated[
        Distribution | None, Meta(description="Length of answers; none: min_tokens to max_tokens.")
    ] = None
    cold_start: ColdStart | None = None
    stalls: Stalls | None = None
    degradation: Degradation | None = None

    def __post_init__(self) -> None:
        least, most = self.tokens_per_chunk
        if least > most:
            raise ValueError("tokens_per_chunk must rise")

    def files(self) -> Iterator[tuple[str, Empirical]]:
        """The distributions that read a file, and where they stand."""
        parts = {
            "first_token_ms": self.first_token_ms,
            "token_ms": self.token_ms,
            "answer_tokens": self.answer_tokens,
            "cold_start.first_token_ms": self.cold_start and self.cold_start.first_token_ms,
            "stalls.ms": self.stalls and self.stalls.ms,
        }
        for where, part in parts.items():
            if isinstance(part, Empirical) and part.file is not None:
                yield where, part


class CallTimes:
    """The numbers of one call under a profile, in milliseconds; ``cold``: as it is for the host."""

    def __init__(self, profile: Profile, speed: Wobble, jitter: Wobble, key: bytes) -> None:
        self._profile = profile
        self._jitter = jitter
        self._draws = draws = Draws(key, b"latency")
        chance, first, own, stalls = draws(), draws(), draws(), draws()
        cold, stall = profile.cold_start, profile.stalls
        self.cold = cold is not None and chance < cold.chance
        self._first = first
        self.speed = speed.draw(own) if profile.speed_cv else 1.0
        self.stalls = stall is not None and stalls < stall.chance

    def first_ms(self) -> float:
        """Wait before the first token."""
        profile = self._profile
        if self.cold and profile.cold_start is not None:
            return profile.cold_start.first_token_ms.draw(self._first)
        return profile.first_token_ms.draw(self._first)

    def gap_ms(self) -> float:
        """Wait for a further token."""
        draws = self._draws
        gap = self._profile.token_ms.draw(draws()) * self.speed
        return gap * self._jitter.draw(draws()) if self._profile.jitter_cv else gap

    def stall(self, tokens: int) -> tuple[int, float]:
        """Before which token it stalls (0: none), and for how long."""
        stall = self._profile.stalls
        if not self.stalls or stall is None or tokens < 2:
            return 0, 0.0
        return self._draws.between(1, tokens - 1), stall.ms.draw(self._draws())


class ProfileSchedule:
    """When the tokens of calls under a profile come."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._speed = Wobble(profile.speed_cv)
        self._jitter = Wobble(profile.jitter_cv)

    def drawing(self, key: bytes) -> CallTimes:
        """The numbers of the call with this key."""
        return CallTimes(self.profile, self._speed, self._jitter, key)

    def steps(
        self, drawing: CallTimes, key: bytes, began_at: float, tokens: int, factor: float
    ) -> Iterator[Step]:
        """When how many tokens go; times in seconds."""
        scale = factor / 1e3
        at = began_at + drawing.first_ms() * scale
        yield at, 1
        stalls_before, stall_ms = drawing.stall(tokens)
        sizes = self.chunks(key)
        gone = 1
        if sizes is not None:
            next(sizes)
        while gone < tokens:
            size = 1 if sizes is None else min(next(sizes), tokens - gone)
            wait_ms = sum(drawing.gap_ms() for _ in range(size))
            if gone <= stalls_before < gone + size:
                wait_ms += stall_ms
            gone += size
            at += wait_ms * scale
            yield at, size

    def chunks(self, key: bytes) -> Iterator[int] | None:
        """How many tokens each event has, the first one first; none: one each."""
        least, most = self.profile.tokens_per_chunk
        return None if most == 1 else _sizes(Draws(key, b"chunks"), least, most)


class ProfileTiming(ProfileSchedule):
    """A profile at work in this process."""

    def __init__(self, name: str, profile: Profile, timer: MicroTimer, ledger: Ledger) -> None:
        super().__init__(profile)
        self._timer = timer
        self._ledger = ledger
        self._name = name
        self._rate: HostRate | None = None
        bend = profile.degradation
        if bend is not None and bend.curve != "none":
            self._rate = HostRate(ledger, name, bend.window_s)

    def pace(self, asked: Asked) -> SchedulePace:
        """Its schedule, from its arrival on."""
        drawing = self.drawing(asked.key)
        factor = asked.factor
        bend, cold = self.profile.degradation, self.profile.cold_start
        if self._rate is not None and bend is not None:
            factor *= bend.factor(self._rate.arrived(asked.arrived_at))
        if cold is not None and cold.after_idle_s is not None:
            drawing.cold |= self._idle_s(asked.arrived_at) >= cold.after_idle_s
        steps = self.steps(drawing, asked.key, asked.arrived_at, asked.tokens, factor)
        return SchedulePace(self._timer, steps, self.chunks(asked.key))

    def _idle_s(self, now: float) -> float:
        """How long this host had no call of this profile; for ever before the first."""
        was = 0.0

        def change(cells: Cells) -> Cells:
            nonlocal was
            was = cells[0]
            return max(now, was), 0.0, 0.0, 0.0

        try:
            self._ledger.update(f"latency:used:{self._name}", change)
        except Shed:
            return 0.0
        return now - was if was else math.inf


def _sizes(draws: Draws, least: int, most: int) -> Iterator[int]:
    yield 1
    while True:
        yield draws.between(least, most)


def offer(profiles: Mapping[str, Profile], ledger: Ledger, timer: MicroTimer) -> Offer:
    """The timings of profiles, by name; ``ledger`` counts their calls."""

    def maker(name: str, profile: Profile) -> Timing:
        return ProfileTiming(name, profile, timer, ledger)

    return {name: partial(maker, name, profile) for name, profile in profiles.items()}


def length_of(profile: Profile, random: Random) -> int | None:
    """How long an answer under this profile is, in tokens; none: it does not say."""
    if profile.answer_tokens is None:
        return None
    u = min(max(random.random(), 1e-12), 1 - 1e-12)
    return min(max(round(profile.answer_tokens.draw(u)), 1), MOST_ANSWER)


def problems(profiles: Mapping[str, Profile]) -> Iterable[tuple[str, str]]:
    """Files that cannot be read: where in ``profiles``, and why."""
    for name, profile in profiles.items():
        for where, part in profile.files():
            try:
                part.quantile(0.5)
            except ValueError as error:
                yield f"{name}.{where}.file", str(error)
