"""What an answer costs: dollars per million tokens, by model.

Sources: the three models of ``DESIGN`` carry the prices of the simulator's first design, which are
those of early 2024; all others are the operator's, in ``[simulator] prices``.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Final

from msgspec import Meta, Struct

MOST_REMEMBERED: Final = 1024
_PER: Final = 1_000_000


class TokenPrice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars per million tokens."""

    input: Annotated[float, Meta(ge=0, le=1e6, description="Per million tokens of prompts.")]
    output: Annotated[float, Meta(ge=0, le=1e6, description="Per million tokens of answers.")]


DESIGN: Final[dict[str, TokenPrice]] = {
    "gpt-4-turbo*": TokenPrice(input=10, output=30),
    "gpt-3.5-turbo*": TokenPrice(input=0.5, output=1.5),
    "claude-3-opus*": TokenPrice(input=15, output=75),
}


class Prices:
    """The price of each model; the operator's globs come first."""

    def __init__(self, chosen: Mapping[str, TokenPrice]) -> None:
        self._listed = {**chosen, **{g: p for g, p in DESIGN.items() if g not in chosen}}
        self._known: dict[str, TokenPrice | None] = {}

    def line(self, model: str, prompt: int, completion: int) -> bytes:
        """The header line that tells a call's cost; empty for a model without a price."""
        price = self.of(model)
        if price is None:
            return b""
        cost = (max(prompt, 0) * price.input + max(completion, 0) * price.output) / _PER
        return b"x-sim-cost-usd: %.8f\r\n" % cost

    def of(self, model: str) -> TokenPrice | None:
        """A model's price; None: it has none."""
        if model not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            fits = (price for glob, price in self._listed.items() if fnmatchcase(model, glob))
            self._known[model] = next(fits, None)
        return self._known[model]
