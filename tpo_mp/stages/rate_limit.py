"""Limits of requests per second, minute and hour: of the host, a tenant, a session, a model.

Each limit is a bucket: a request puts one in, and the window's number drains out evenly over the
window, so that a caller is never let in twice as often round the edge of a minute.  The buckets
are the ledger's, so they are exact over all workers of the host and outlive any of them::

    cells    used of rps | used of rpm | used of rph | when that held (CLOCK_MONOTONIC)

The levels are asked from the narrowest to the widest, and a refusal gives back what the levels
before it took.  So whoever is over a limit of its own takes nothing from what others share.

Invariants: of one level all windows let a call in or none does, in one update; a call that is
refused leaves every bucket as it was; no interval holds more calls than what a bucket holds and
what drained in it, but for what is drained while a taken place is given back (microseconds).
Known weakness: in those microseconds another call of the same tenant or session may be refused;
a worker that dies in them keeps the places taken, until they drain.  At the ledger's cap the
tenant, session or model not seen for longest begins with an empty bucket.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, TypeAlias

from msgspec import Meta, Struct

from tpo_mp.dialects.limit_lines import request_lines
from tpo_mp.errors import RateLimited, Shed, TpoError
from tpo_mp.ports import Cells, Counter, Env, Feature
from tpo_mp.types import Call, Phase

_PERIODS: Final = ((1, "second"), (60, "minute"), (3600, "hour"))
_ALMOST: Final = 1e-6
_MOST: Final = Meta(ge=1, le=1_000_000_000)


class Windows(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests are let in; what is not given is not limited."""

    rps: Annotated[Annotated[int, _MOST] | None, Meta(description="Requests per second.")] = None
    rpm: Annotated[Annotated[int, _MOST] | None, Meta(description="Requests per minute.")] = None
    rph: Annotated[Annotated[int, _MOST] | None, Meta(description="Requests per hour.")] = None
    burst: Annotated[
        Annotated[int, _MOST] | None,
        Meta(description="Requests at once, by the shortest window given [all of that window]."),
    ] = None

    def __post_init__(self) -> None:
        if not (self.rps or self.rpm or self.rph):
            raise ValueError("needs rps, rpm or rph")


class TenantWindows(Windows, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of each tenant, and other ones of some tiers."""

    tiers: Annotated[
        dict[str, Windows],
        Meta(max_length=256, description="Limits by a key's tier, in place of the others."),
    ] = {}

    def __post_init__(self) -> None:
        if not self.tiers:
            Windows.__post_init__(self)
        elif self.burst and not (self.rps or self.rpm or self.rph):
            raise ValueError("burst needs rps, rpm or rph")


class Config(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"overall": "global"}
):
    """Requests let in, exact over all workers; with no level given 100 per second, 20 at once."""

    overall: Annotated[Windows | None, Meta(description="Limits of the whole host.")] = None
    tenant: Annotated[
        TenantWindows | None,
        Meta(description="Limits of each tenant; without keys all callers are one."),
    ] = None
    session: Annotated[
        Windows | None, Meta(description="Limits of each session, as `X-Session-Id` names it.")
    ] = None
    model: Annotated[Windows | None, Meta(description="Limits of each model.")] = None


UNSAID: Final = Config(overall=Windows(rps=100, burst=20))
"""What holds where the stage runs and nothing is limited."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One window: ``limit`` a ``period``, of which ``room`` at once; drained by ``per_s``."""

    limit: int
    period: str
    per_s: float
    room: int


_Buckets: TypeAlias = tuple[_Bucket | None, _Bucket | None, _Bucket | None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a call is counted."""

    level: str
    name: str
    buckets: _Buckets


@dataclass(frozen=True, slots=True)
class _Excess:
    """The bucket that makes a call wait longest."""

    bucket: _Bucket
    used: float
    wait_s: float


class RateLimit:
    """Lets a call in when each of its limits has room."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env) -> None:
        if config == Config():
            config = UNSAID
        self._ledger = env.ledger
        self._clock = env.clock
        self._session = _buckets(config.session)
        self._tenant = _buckets(config.tenant)
        self._model = _buckets(config.model)
        self._overall = _buckets(config.overall)
        tiers = config.tenant.tiers if config.tenant is not None else {}
        self._tiers = {tier: _buckets(windows) for tier, windows in tiers.items()}
        self._refused: dict[str, Counter] = {
            level: env.metrics.counter(
                "tpo_rate_limited_total", "Calls refused by a limit, by its level.", level=level
            )
            for level in ("session", "tenant", "model", "global")
        }

    def before(self, call: Call) -> None:
        """Count the call; raises ``RateLimited``, having counted it nowhere."""
        now = self._clock()
        taken: list[_Place] = []
        try:
            for place in self._places(call):
                excess = self._take(place, now)
                if excess is not None:
                    self._refused[place.level].inc()
                    raise _refusal(place.level, excess, call)
                taken.append(place)
        except TpoError:
            for place in taken:
                with suppress(Shed):  # what cannot be given back drains
                    self._give_back(place, now)
            raise

    def _places(self, call: Call) -> list[_Place]:
        """Where a call counts, from the narrowest level to the widest."""
        tenant = call.tenant
        found: list[_Place] = []
        if self._session is not None and call.session:
            # The length keeps "a:b" of "c" apart from "a" of "b:c".
            name = f"rate_limit:session:{len(tenant)}:{tenant}:{call.session}"
            found.append(_Place("session", name, self._session))
        buckets = self._tiers.get(call.tier, self._tenant)
        if buckets is not None:
            found.append(_Place("tenant", f"rate_limit:tenant:{tenant}", buckets))
        if self._model is not None:
            found.append(_Place("model", f"rate_limit:model:{call.model}", self._model))
        if self._overall is not None:
            found.append(_Place("global", "rate_limit:global", self._overall))
        return found

    def _take(self, place: _Place, now: float) -> _Excess | None:
        """Put one in each bucket of a level, or in none and answer why."""
        buckets = place.buckets
        excess: _Excess | None = None

        def take(cells: Cells) -> Cells:
            nonlocal excess
            used = _drained(cells, buckets, now)
            excess = _excess(used, buckets)
            return _cells(used, buckets, 0 if excess else 1, max(now, cells[3]))

        self._ledger.update(place.name, take, crowd=place.level != "global")
        return excess

    def _give_back(self, place: _Place, now: float) -> None:
        """Take one out of each bucket again."""
        buckets = place.buckets

        def give(cells: Cells) -> Cells:
            return _cells(_drained(cells, buckets, now), buckets, -1, max(now, cells[3]))

        self._ledger.update(place.name, give, crowd=place.level != "global")


def _buckets(windows: Windows | None) -> _Buckets | None:
    """The three buckets of a level; ``None``: it limits nothing."""
    if windows is None:
        return None
    burst = windows.burst
    found: list[_Bucket | None] = []
    for limit, (seconds, period) in zip(
        (windows.rps, windows.rpm, windows.rph), _PERIODS, strict=True
    ):
        if limit is None:
            found.append(None)
            continue
        found.append(_Bucket(limit, period, limit / seconds, burst or limit))
        burst = None
    first, second, third = found
    return (first, second, third) if first or second or third else None


def _drained(cells: Cells, buckets: _Buckets, now: float) -> list[float]:
    """What each bucket holds now; one that is not there holds nothing."""
    passed_s = max(now - cells[3], 0.0)  # another worker's clock may have been read later
    return [
        max(used - passed_s * bucket.per_s, 0.0) if bucket is not None else 0.0
        for used, bucket in zip(cells, buckets, strict=False)
    ]


def _cells(used: list[float], buckets: _Buckets, more: int, at: float) -> Cells:
    """The ledger's numbers after ``more`` went into each bucket there is."""
    after = [
        max(n + more, 0.0) if bucket is not None else 0.0
        for n, bucket in zip(used, buckets, strict=True)
    ]
    return (after[0], after[1], after[2], at)


def _excess(used: list[float], buckets: _Buckets) -> _Excess | None:
    longest: _Excess | None = None
    for n, bucket in zip(used, buckets, strict=True):
        if bucket is None or n + 1 <= bucket.room + _ALMOST:
            continue
        wait_s = (n + 1 - bucket.room) / bucket.per_s
        if longest is None or wait_s > longest.wait_s:
            longest = _Excess(bucket, n, wait_s)
    return longest


def _refusal(level: str, excess: _Excess, call: Call) -> RateLimited:
    bucket, wait_s = excess.bucket, excess.wait_s
    burst = f", {bucket.room} at once," if bucket.room != bucket.limit else ""
    return RateLimited(
        f"the {level} limit of {bucket.limit} requests per {bucket.period}{burst} is reached; "
        f"try again in {math.ceil(wait_s * 10) / 10:g} s",
        reason="rate_limited",
        retry_after_s=wait_s,
        lines=request_lines(call.dialect, bucket.limit, 0, excess.used / bucket.per_s),
    )


FEATURE = Feature(Config, RateLimit)
