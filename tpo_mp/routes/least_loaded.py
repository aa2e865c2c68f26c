"""The backend with the fewest tries under way on the whole host, for its weight.

Loads are those of all workers (``pipeline.loads``), exact at every pick.  Equal ones take turns.
Known weakness: a long answer counts as much as a short one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.loads import Loads, T, least, left_for
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options: the weights stand in ``[[backends]]``."""


class LeastLoadedRoute:
    """Picks by load over weight."""

    counts_load: ClassVar[bool] = True

    def __init__(self, config: Config, env: Env) -> None:
        self._loads = Loads(env.shares, EngineLoads(env))
        self._turn = env.peers.here

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose one target."""
        open_ = left_for(call, targets)
        if len(open_) == 1:
            return open_[0]
        self._turn += 1
        loads = self._loads
        return least(open_, lambda t: loads.busy(t.name) / t.weight, self._turn)


FEATURE = Feature(Config, LeastLoadedRoute)
