"""What a key may use in a day and in a month, counted on the whole host.

Periods begin at an hour of the day in UTC, months on their first day.  A quota that is used up is
the provider's 429 with the seconds until it is filled again; nothing of it drains away before.

Invariants: a quota is never exceeded, whatever process answers; a refused request costs nothing.
Known weakness: quotas are forgotten with the host's memory, when the simulator stops.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NamedTuple, TypeAlias

from msgspec import Meta, Struct

from tpo_mp.ports import Cells, Counter, Ledger
from tpo_mp.types import Call

from .failures import refusal
from .keys import hashed_caller
from .limits import Allowance
from .orders import ErrorOrder

Span: TypeAlias = Literal["daily", "monthly"]
_AMOUNT = Meta(ge=1, le=1_000_000_000_000)
_Amount: TypeAlias = Annotated[int, _AMOUNT] | None


class QuotaOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may use in a period."""

    daily_requests: Annotated[_Amount, Meta(description="Requests a day [any number].")] = None
    daily_tokens: Annotated[_Amount, Meta(description="Tokens a day [any number].")] = None
    monthly_requests: Annotated[_Amount, Meta(description="Requests a month [any number].")] = None
    monthly_tokens: Annotated[_Amount, Meta(description="Tokens a month [any number].")] = None
    reset_hour: Annotated[
        int, Meta(ge=0, le=23, description="When days and months begin, an hour of UTC.")
    ] = 0

    def spans(self) -> tuple[tuple[Span, float, float], ...]:
        """Spans that have a quota, with their most requests and tokens."""
        rows: tuple[tuple[Span, int | None, int | None], ...] = (
            ("daily", self.daily_requests, self.daily_tokens),
            ("monthly", self.monthly_requests, self.monthly_tokens),
        )
        endless = float("inf")
        return tuple(
            (span, requests or endless, tokens or endless)
            for span, requests, tokens in rows
            if requests or tokens
        )


class Charged(NamedTuple):
    """What of a quota was used, to be given back."""

    name: str
    began: float
    tokens: int


class KeyQuotas:
    """The quotas of one simulated provider."""

    def __init__(
        self,
        name: str,
        options: QuotaOptions,
        allowance: Allowance,
        *,
        ledger: Ledger,
        wall: Callable[[], float],
        epoch: int,
        exceeded: Counter,
    ) -> None:
        """``wall`` tells seconds since 1970; ``epoch`` another, and all quotas are whole."""
        self._scope = f"quota:{name}:{epoch}:"
        self._spans = options.spans()
        self._hour = options.reset_hour
        self._allowance = allowance
        self._ledger = ledger
        self._wall = wall
        self._exceeded = exceeded

    def charge(self, call: Call, tokens: int) -> list[Charged]:
        """Charge an answer; raises the provider's 429 when a quota is used up, charging nothing."""
        caller, charged = hashed_caller(call), list[Charged]()
        for span, most_requests, most_tokens in self._spans:
            began, ends = period(span, self._wall(), self._hour)
            name = f"{self._scope}{span}:{caller}"
            over = False

            def take(
                cells: Cells,
                began: float = began,
                most: tuple[float, float] = (most_requests, most_tokens),
            ) -> Cells:
                nonlocal over
                requests, used = (cells[1], cells[2]) if cells[0] == began else (0.0, 0.0)
                over = requests + 1 > most[0] or used + tokens > most[1]
                if over:
                    return (began, requests, used, 0.0)
                return (began, requests + 1, used + tokens, 0.0)

            self._ledger.update(name, take, crowd=True)
            if over:
                self.give_back(charged)
                self._exceeded.inc()
                order = ErrorOrder(429, max(ends - self._wall(), 1.0), f"{span}_quota_exceeded")
                raise refusal(order, call, self._allowance)
            charged.append(Charged(name, began, tokens))
        return charged

    def give_back(self, charged: list[Charged]) -> None:
        """Undo a charge, unless its period is over."""
        for name, began, tokens in charged:

            def undo(cells: Cells, began: float = began, tokens: int = tokens) -> Cells:
                if cells[0] != began:
                    return cells
                return (began, max(cells[1] - 1, 0.0), max(cells[2] - tokens, 0.0), 0.0)

            self._ledger.update(name, undo, crowd=True)


def period(span: Span, at: float, hour: int) -> tuple[float, float]:
    """When the period that holds an instant begins and ends, in seconds since 1970."""
    day = datetime.fromtimestamp(at, UTC) - timedelta(hours=hour)
    begins = day.replace(hour=0, minute=0, second=0, microsecond=0)
    if span == "daily":
        ends = begins + timedelta(days=1)
    else:
        begins = begins.replace(day=1)
        ends = (begins + timedelta(days=32)).replace(day=1)
    shift = timedelta(hours=hour)
    return (begins + shift).timestamp(), (ends + shift).timestamp()
