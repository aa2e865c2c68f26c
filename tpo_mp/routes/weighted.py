"""Smooth weighted round-robin over the backends that serve the model (nginx's algorithm).

Each pick adds every target's weight to its running value, takes the largest and subtracts the sum
from it: weights 5, 1, 1 give a a b a c a a.
Weakness: it balances requests, not tokens, and per shard; over many requests the shares hold on
the whole host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call

_REMEMBERED = 1024


class Weighted(Protocol):
    """What this route needs of a target."""

    name: str
    weight: int

    def blocked(self, call: Call) -> bool:
        """Whether it should be left out while another is left."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options: the weights stand in ``[[backends]]``."""


class WeightedRoute:
    """Picks by smooth weighted round-robin.

    Targets that a breaker keeps closed off, and those that were tried, are skipped while another
    is left; their running values stand still meanwhile.
    """

    def __init__(self, config: Config, env: Env) -> None:
        self._current: dict[tuple[str, ...], dict[str, int]] = {}

    def pick(self, call: Call, targets: Sequence[Weighted]) -> Weighted:
        """Choose one target."""
        if call.tried:
            targets = [t for t in targets if t.name not in call.tried] or targets
        if len(targets) > 1:
            targets = [t for t in targets if not t.blocked(call)] or targets
        key = tuple(t.name for t in targets)
        current = self._current.get(key)
        if current is None:
            if len(self._current) >= _REMEMBERED:
                self._current.clear()
            current = self._current[key] = dict.fromkeys(key, 0)
        total, best = 0, targets[0]
        for target in targets:
            current[target.name] += target.weight
            total += target.weight
            if current[target.name] > current[best.name]:
                best = target
        current[best.name] -= total
        return best


FEATURE = Feature(Config, WeightedRoute)
