"""Limits that run out: requests and tokens per minute of each key, model and endpoint.

What was used drains away evenly, a minute's worth in a minute; a request passes when it and its
tokens still fit.  OpenAI and Google count the tokens of both directions together, Anthropic each
direction by itself.  A caller without a key is known by its address.

A request that does not fit is refused, or waits in line until it does (what those before it will
use is charged already, so the line is served in order), or is refused by chance only and costs
nothing when it passes.  One that never fits is refused whatever is said.

The numbers are the ledger's, so they are exact over all workers of the host.  They are charged once
the answer is made and before it is sent, by what it really uses.

Source: OpenAI and Anthropic API references, rate limits.
Known weakness: at the ledger's cap the caller that was quiet for longest begins with a full
allowance again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

import orjson
from msgspec import Meta, Struct

from tpo_mp.errors import TpoError
from tpo_mp.ports import Cells, Counter, Ledger
from tpo_mp.types import Call

from .failures import refusal
from .keys import hashed_caller
from .limits import Allowance, Standing, is_anthropic
from .orders import ErrorOrder
from .seeds import stream_of
from .waiting_line import WaitingLine

EXCEEDED: Final = "llm_rate_limit_exceeded_total"
NEVER_S: Final = 60.0
"""What a caller is told to wait whose request alone is over the limit."""
_ALMOST: Final = 1e-6
_WHAT: Final = ("requests", "tokens", "output tokens")
_REQUESTS = Meta(ge=1, le=1_000_000_000)
_TOKENS = Meta(ge=1, le=1_000_000_000_000)


class ModelLimit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Other numbers for some models."""

    match: Annotated[str, Meta(min_length=1, max_length=128, description="A model, or a glob.")]
    requests_per_minute: Annotated[
        Annotated[int, _REQUESTS] | None,
        Meta(description="Requests a minute [those of all models]."),
    ] = None
    tokens_per_minute: Annotated[
        Annotated[int, _TOKENS] | None, Meta(description="Tokens a minute [those of all models].")
    ] = None


class LimitOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the limits of ``requests_per_minute`` and ``tokens_per_minute`` run out."""

    enforce: Annotated[
        bool, Meta(description="Count on the whole host, and answer 429 beyond.")
    ] = False
    exceed: Annotated[
        Literal["reject", "queue", "chance"],
        Meta(description="Beyond: refused, kept waiting until they fit, or refused by `chance`."),
    ] = "reject"
    queue: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Most requests of a caller waiting, others are 429."),
    ] = 100
    chance: Annotated[
        float, Meta(ge=0, le=1, description="Share of what does not fit that is refused.")
    ] = 0.5
    models: Annotated[
        tuple[ModelLimit, ...],
        Meta(max_length=256, description="Models with other numbers; the first that matches."),
    ] = ()


class RateLimits:
    """The limits of one simulated provider."""

    def __init__(
        self,
        name: str,
        options: LimitOptions,
        allowance: Allowance,
        *,
        ledger: Ledger,
        clock: Callable[[], float],
        epoch: int,
        exceeded: Counter,
    ) -> None:
        """``epoch`` another, and all callers begin with a full allowance."""
        self._scope = f"limit:{name}:{epoch}:"
        self._models = _by_model(options.models, allowance)
        self._allowance = allowance
        self._ledger = ledger
        self._clock = clock
        self._exceeded = exceeded
        self._line = WaitingLine(ledger, options.queue) if options.exceed == "queue" else None
        self._chance = options.chance if options.exceed == "chance" else 1.0

    def charge(
        self, call: Call, prompt: int, completion: int, key: Callable[[], bytes] = bytes
    ) -> Standing:
        """Charge an answer; raises ``RateLimited`` in the call's dialect, charging nothing.

        ``key`` is that of the request's chances.  Whoever gets a standing with a wait calls
        ``leave`` when the wait is over, whatever ended it.
        """
        allowance = self._of(call.model)
        limits = (allowance.requests, allowance.tokens, allowance.tokens)
        apart = is_anthropic(call.dialect)
        wanted = (1, prompt, completion) if apart else (1, prompt + completion, 0)
        now, over = self._clock(), False

        def take(cells: Cells) -> Cells:
            nonlocal over
            used = _drained(cells, limits, now)
            after = [had + more for had, more in zip(used, wanted, strict=True)]
            over = any(n > most + _ALMOST for n, most in zip(after, limits, strict=True))
            kept = used if over else after
            return (kept[0], kept[1], kept[2], now)

        name = self._name(call)
        used = self._ledger.update(name, take, crowd=True)[:3]
        standing = Standing(limits, used)
        if not over:
            return standing
        self._exceeded.inc()
        excess = _excess(standing, wanted)
        if all(n <= most for n, most in zip(wanted, limits, strict=True)):
            if self._line is not None and self._line.join(name, now, excess.wait_s):
                return self._in_line(name, limits, wanted, now)
            if self._chance < 1 and stream_of(key(), "limit").random() >= self._chance:
                return standing
        raise _exceeded(call, allowance, standing, wanted, excess)

    def leave(self, call: Call) -> None:
        """The wait of a call is over."""
        if self._line is not None:
            self._line.leave(self._name(call))

    def _in_line(
        self, name: str, limits: tuple[int, int, int], wanted: tuple[int, int, int], now: float
    ) -> Standing:
        """Charge what does not fit yet, and tell when it will."""

        def take(cells: Cells) -> Cells:
            used = _drained(cells, limits, now)
            after = [had + more for had, more in zip(used, wanted, strict=True)]
            return (after[0], after[1], after[2], max(now, cells[3]))

        charged = self._ledger.update(name, take, crowd=True)[:3]
        wait_s = max((n - most) * 60 / most for n, most in zip(charged, limits, strict=True))
        wait_s = max(wait_s, 0.0)
        assert self._line is not None
        self._line.stay(name, now + wait_s)
        requests, tokens, more = _drained((*charged, now), limits, now + wait_s)
        return Standing(limits, (requests, tokens, more), wait_s)

    def _of(self, model: str) -> Allowance:
        for pattern, allowance in self._models:
            if fnmatchcase(model, pattern):
                return allowance
        return self._allowance

    def _name(self, call: Call) -> str:
        return f"{self._scope}{call.dialect}:{call.model}:{hashed_caller(call)}"


@dataclass(frozen=True, slots=True)
class _Excess:
    """The limit that a request is furthest over."""

    place: int
    wait_s: float


def _by_model(models: tuple[ModelLimit, ...], otherwise: Allowance) -> list[tuple[str, Allowance]]:
    return [
        (
            limit.match,
            Allowance(
                limit.requests_per_minute or otherwise.requests,
                limit.tokens_per_minute or otherwise.tokens,
            ),
        )
        for limit in models
    ]


def _drained(cells: Cells, limits: tuple[int, ...], now: float) -> list[float]:
    """What of each is still used; cells are three amounts and when they held."""
    passed_s = max(now - cells[3], 0.0) if cells[3] else 0.0
    return [
        max(used - passed_s * most / 60, 0.0) for used, most in zip(cells[:3], limits, strict=True)
    ]


def _excess(standing: Standing, wanted: tuple[int, ...]) -> _Excess:
    waits = []
    for used, more, most in zip(standing.used, wanted, standing.limits, strict=True):
        over = used + more - most
        waits.append(NEVER_S if more > most else over * 60 / most if over > _ALMOST else 0.0)
    longest = max(waits)
    return _Excess(waits.index(longest), longest)


def _exceeded(
    call: Call,
    allowance: Allowance,
    standing: Standing,
    wanted: tuple[int, ...],
    excess: _Excess,
) -> TpoError:
    """The provider's 429, with true numbers in words and header lines."""
    place = excess.place
    error = refusal(ErrorOrder(429, retry_after_s=excess.wait_s), call, allowance)
    error.message = (
        f"Rate limit reached for {call.model} on {_WHAT[place]} per minute: "
        f"limit {standing.limits[place]}, used {round(standing.used[place])}, "
        f"requested {wanted[place]}. Try again in {excess.wait_s:.3g} s."
    )
    told: dict[str, Any] = orjson.loads(error.body or b"{}")
    shape = told["error"]
    shape["message"] = error.message
    if shape.get("type") == "requests":
        shape["type"] = _WHAT[place]
    error.body = orjson.dumps(told)
    error.lines = standing.lines(call.dialect, 0.0)
    return error
