"""What models cost: one table of dollars per million tokens, which the operator may override.

``TABLE`` is part of the package and nothing is ever fetched at run time.
Each row names the page its numbers are from and the month they were on it; ``VERSION`` changes with
every change of a row, and a test holds the two together.

A row fits its name, and the name with a snapshot behind it (``-2024-08-06``, ``-20250514``,
``-0125``, ``-latest``); one whose name ends in ``*`` fits whatever begins with it.
The operator's own names and globs come first, in their order.

Invariants: a model without a row has no cost, and ``None`` says so: 0 is a price somebody set.
Cached tokens are a part of the prompt's, at their own price.
Known weakness: steps by the length of a prompt, the price of writing to a cache, batch discounts
and tokens of images or sound are not in it.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct, field

from .values import Section

VERSION: Final = "2026.11.1"
MOST_REMEMBERED: Final = 1024
_PER: Final = 1_000_000
_SNAPSHOT: Final = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|[01]\d[0-3]\d|latest)$")


class TokenPrice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars per million tokens."""

    input: Annotated[float, Meta(ge=0, le=1e6, description="Per million tokens of prompts.")]
    output: Annotated[float, Meta(ge=0, le=1e6, description="Per million tokens of answers.")]
    cached: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)] | None,
        Meta(
            description="Per million tokens of prompts that the backend had in its cache; "
            "omitted, they cost what others do."
        ),
    ] = None

    def cost_usd(self, prompt: int, completion: int, cached: int = 0) -> float:
        """Dollars for these tokens; what is not known (-1) counts as none."""
        prompt, completion = max(prompt, 0), max(completion, 0)
        cached = min(max(cached, 0), prompt)
        of_cached = self.input if self.cached is None else self.cached
        dear = (prompt - cached) * self.input + cached * of_cached + completion * self.output
        return dear / _PER


class PricesSection(Section, frozen=True, kw_only=True):
    """What models cost, for the cost of calls, budgets and savings."""

    builtin: Annotated[
        bool, Meta(description="Use the table that comes with this version; see docs/prices.md.")
    ] = True
    models: Annotated[
        dict[str, TokenPrice],
        Meta(description="Dollars per million tokens by model or glob; the first that fits wins."),
    ] = field(default_factory=dict)


class PriceRow(NamedTuple):
    """One row of the table: prices of a model, and where and when they were so."""

    model: str
    input: float
    output: float
    cached: float | None
    source: str
    date: str


_OPENAI: Final = "https://openai.com/api/pricing"
_CLAUDE: Final = "https://platform.claude.com/docs/en/about-claude/pricing"
_GEMINI: Final = "https://ai.google.dev/gemini-api/docs/pricing"

TABLE: Final = (
    PriceRow("gpt-5.4", 2.5, 15, 0.25, _OPENAI, "2026-03"),
    PriceRow("gpt-5.4-mini", 0.75, 4.5, 0.075, _OPENAI, "2026-03"),
    PriceRow("gpt-5", 1.25, 10, 0.125, _OPENAI, "2026-05"),
    PriceRow("gpt-5-mini", 0.25, 2, 0.025, _OPENAI, "2026-05"),
    PriceRow("gpt-5-nano", 0.05, 0.4, 0.005, _OPENAI, "2026-05"),
    PriceRow("gpt-4.1", 2, 8, 0.5, _OPENAI, "2026-05"),
    PriceRow("gpt-4.1-mini", 0.4, 1.6, 0.1, _OPENAI, "2026-05"),
    PriceRow("gpt-4.1-nano", 0.1, 0.4, 0.025, _OPENAI, "2026-05"),
    PriceRow("gpt-4o", 2.5, 10, 1.25, _OPENAI, "2026-05"),
    PriceRow("gpt-4o-mini", 0.15, 0.6, 0.075, _OPENAI, "2026-05"),
    PriceRow("o1", 15, 60, 7.5, _OPENAI, "2026-05"),
    PriceRow("o3", 2, 8, 0.5, _OPENAI, "2026-05"),
    PriceRow("o3-mini", 1.1, 4.4, 0.55, _OPENAI, "2026-05"),
    PriceRow("o4-mini", 1.1, 4.4, 0.275, _OPENAI, "2026-05"),
    PriceRow("gpt-4-turbo*", 10, 30, None, _OPENAI, "2024-04"),
    PriceRow("gpt-4", 30, 60, None, _OPENAI, "2024-04"),
    PriceRow("gpt-3.5-turbo*", 0.5, 1.5, None, _OPENAI, "2024-04"),
    PriceRow("text-embedding-3-small", 0.02, 0, None, _OPENAI, "2024-04"),
    PriceRow("text-embedding-3-large", 0.13, 0, None, _OPENAI, "2024-04"),
    PriceRow("text-embedding-ada-002", 0.1, 0, None, _OPENAI, "2024-04"),
    PriceRow("claude-opus-5", 5, 25, 0.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4-8", 5, 25, 0.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4-7", 5, 25, 0.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4-6", 5, 25, 0.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4-5", 5, 25, 0.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4-1", 15, 75, 1.5, _CLAUDE, "2026-11"),
    PriceRow("claude-opus-4", 15, 75, 1.5, _CLAUDE, "2026-11"),
    PriceRow("claude-sonnet-5", 2, 10, 0.2, _CLAUDE, "2026-10"),
    PriceRow("claude-sonnet-4-6", 3, 15, 0.3, _CLAUDE, "2026-10"),
    PriceRow("claude-sonnet-4-5", 3, 15, 0.3, _CLAUDE, "2025-11"),
    PriceRow("claude-sonnet-4", 3, 15, 0.3, _CLAUDE, "2025-11"),
    PriceRow("claude-haiku-4-5", 1, 5, 0.1, _CLAUDE, "2025-11"),
    PriceRow("claude-3-7-sonnet", 3, 15, 0.3, _CLAUDE, "2025-11"),
    PriceRow("claude-3-5-sonnet", 3, 15, 0.3, _CLAUDE, "2024-11"),
    PriceRow("claude-3-5-haiku", 0.8, 4, 0.08, _CLAUDE, "2025-11"),
    PriceRow("claude-3-opus*", 15, 75, 1.5, _CLAUDE, "2024-11"),
    PriceRow("claude-3-haiku", 0.25, 1.25, 0.03, _CLAUDE, "2024-11"),
    PriceRow("gemini-2.5-pro", 1.25, 10, 0.125, _GEMINI, "2026-05"),
    PriceRow("gemini-2.5-flash", 0.3, 2.5, 0.03, _GEMINI, "2026-05"),
    PriceRow("gemini-2.5-flash-lite", 0.1, 0.4, 0.01, _GEMINI, "2026-05"),
)


def _builtin() -> tuple[dict[str, TokenPrice], dict[str, TokenPrice]]:
    named: dict[str, TokenPrice] = {}
    begun: dict[str, TokenPrice] = {}
    for row in TABLE:
        price = TokenPrice(input=float(row.input), output=float(row.output), cached=row.cached)
        (begun if row.model.endswith("*") else named)[row.model.rstrip("*")] = price
    return named, begun


_NAMED, _BEGUN = _builtin()


class Prices:
    """Finds prices by model; implements ``ports.PriceList``."""

    def __init__(self, section: PricesSection | None = None) -> None:
        section = section or PricesSection()
        self._chosen = section.models
        self._builtin = section.builtin
        self._known: dict[str, TokenPrice | None] = {}

    @property
    def version(self) -> str:
        """Of the table in use; empty when only the operator's own prices are."""
        return VERSION if self._builtin else ""

    def of(self, model: str) -> TokenPrice | None:
        """The price of a model; ``None`` when nobody said one."""
        try:
            return self._known[model]
        except KeyError:
            pass
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        price = self._known[model] = self._find(model)
        return price

    def cost_usd(self, model: str, prompt: int, completion: int, cached: int = 0) -> float | None:
        """Dollars for a call; ``None`` without a price, or when no tokens were reported (-1)."""
        if prompt < 0 and completion < 0:
            return None
        price = self.of(model)
        return None if price is None else price.cost_usd(prompt, completion, cached)

    def saved_usd(self, model: str, prompt: int, completion: int) -> float | None:
        """Dollars that an answer did not cost; see ``ports.PriceList``."""
        return self.cost_usd(model, prompt, completion)

    def _find(self, model: str) -> TokenPrice | None:
        if model in self._chosen:
            return self._chosen[model]
        for glob, price in self._chosen.items():
            if fnmatchcase(model, glob):
                return price
        if not self._builtin:
            return None
        named = _NAMED.get(model) or _NAMED.get(_SNAPSHOT.sub("", model))
        if named is not None:
            return named
        return next((p for begun, p in _BEGUN.items() if model.startswith(begun)), None)
