"""What rate limits there are: options, the limits of each level, and the names of their counts.

Used by the stage that holds calls to them and by the surface that shows them.

Invariants: with no level given ``_UNSAID`` holds; a name tells its level, and what it is of.
Known weakness: a count keeps the first 71 bytes of its name, so longer ones are shown cut.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta, Struct

from .buckets import LimitSet, limits_of

LEVELS: Final = ("session", "tenant", "model", "global")
PREFIX: Final = "rate_limit:"
"""What the names of all counts begin with."""
OVERALL_NAME: Final = f"{PREFIX}global"
_MOST: Final = Meta(ge=1, le=1_000_000_000)
_Limit: TypeAlias = Annotated[int, _MOST] | None


class Windows(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is let in; what is not given is not limited."""

    rps: Annotated[_Limit, Meta(description="Requests per second.")] = None
    rpm: Annotated[_Limit, Meta(description="Requests per minute.")] = None
    rph: Annotated[_Limit, Meta(description="Requests per hour.")] = None
    burst: Annotated[
        _Limit,
        Meta(description="Requests at once, by the shortest window given [all of that window]."),
    ] = None
    tpm: Annotated[
        _Limit, Meta(description="Tokens per minute, of prompts and answers together.")
    ] = None
    concurrent: Annotated[_Limit, Meta(description="Calls under way at once.")] = None

    def __post_init__(self) -> None:
        if self.burst and not (self.rps or self.rpm or self.rph):
            raise ValueError("burst needs rps, rpm or rph")
        if not (self.rps or self.rpm or self.rph or self.tpm or self.concurrent):
            raise ValueError("needs rps, rpm, rph, tpm or concurrent")


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


class RateOptions(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"overall": "global"}
):
    """What is let in, exact over all workers; with no level given 100 per second, 20 at once."""

    overall: Annotated[Windows | None, Meta(description="Limits of the whole host.")] = None
    tenant: Annotated[
        TenantWindows | None,
        Meta(description="Limits of each tenant; without keys all callers are one."),
    ] = None
    session: Annotated[
        Windows | None, Meta(description="Limits of each session, as `X-Session-Id` names it.")
    ] = None
    model: Annotated[Windows | None, Meta(description="Limits of each model.")] = None
    answer_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="Tokens reserved for an answer whose request gives no `max_tokens`.",
        ),
    ] = 1024


_UNSAID: Final = Windows(rps=100, burst=20)
"""What holds for the host where the stage runs and nothing is limited."""


class LimitLevels:
    """The limits of each level that some options mean; ``None``: it limits nothing."""

    def __init__(self, options: RateOptions) -> None:
        given = (options.session, options.tenant, options.model, options.overall)
        tiers = options.tenant.tiers if options.tenant is not None else {}
        self.session = _limits(options.session)
        self.tenant = _limits(options.tenant)
        self.tiers = {tier: _limits(windows) for tier, windows in tiers.items()}
        self.model = _limits(options.model)
        self.overall = _limits(options.overall if any(given) else _UNSAID)

    def of(self, level: str, tier: str | None) -> LimitSet | None:
        """The limits of a level; of tenants those of a tier (``None``: it is not known which)."""
        if level == "tenant":
            if tier is None:
                return None if self.tiers else self.tenant
            return self.tiers.get(tier, self.tenant)
        found = {"session": self.session, "model": self.model, "global": self.overall}
        return found[level]


def _limits(windows: Windows | None) -> LimitSet | None:
    if windows is None:
        return None
    w = windows
    found = limits_of((w.rps, w.rpm, w.rph), w.burst, w.tpm, w.concurrent)
    return found if found.buckets or found.concurrent else None


def session_name(tenant: str, session: str) -> str:
    """The name of a session's count."""
    # The length keeps "a:b" of "c" apart from "a" of "b:c".
    return f"{PREFIX}session:{len(tenant)}:{tenant}:{session}"


def tenant_name(tenant: str) -> str:
    """That of a tenant's."""
    return f"{PREFIX}tenant:{tenant}"


def model_name(model: str) -> str:
    """That of a model's."""
    return f"{PREFIX}model:{model}"


class Counted(NamedTuple):
    """What a count is of."""

    level: str
    tenant: str | None
    of: str
    """The session, tenant or model; empty for the host."""


def counted(name: str) -> Counted | None:
    """What the count of a name is of; ``None``: it is no limit's."""
    level, _, rest = name.removeprefix(PREFIX).partition(":")
    if not name.startswith(PREFIX) or level not in LEVELS:
        return None
    if level == "session":
        length, _, rest = rest.partition(":")
        size = int(length) if length.isdigit() else 0
        return Counted(level, rest[:size], rest[size + 1 :])
    return Counted(level, rest if level == "tenant" else None, rest)
