"""Each backend in turn, whatever its weight.

Known weakness: it balances requests, not work, and each worker counts its own turns; workers begin
at different backends, so that few calls are spread too.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from tpo_mp.pipeline.loads import REMEMBERED, T, left_for
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options: the order is that of the route's ``backends``."""


class RoundRobinRoute:
    """Picks in turn; a target that is left out does not save up turns."""

    def __init__(self, config: Config, env: Env) -> None:
        self._first = env.peers.here
        self._last: dict[tuple[str, ...], str] = {}

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose the one after the last in the configured order that may be asked."""
        key = tuple(target.name for target in targets)
        last = self._last.get(key)
        if last is None and len(self._last) >= REMEMBERED:
            self._last.clear()
        start = self._first if last is None else key.index(last) + 1
        open_ = left_for(call, targets)
        names = {target.name for target in open_}
        chosen = open_[0]
        for step in range(len(targets)):
            target = targets[(start + step) % len(targets)]
            if target.name in names:
                chosen = target
                break
        self._last[key] = chosen.name
        return chosen


FEATURE = Feature(Config, RoundRobinRoute)
