"""The same session always to the same backend, on a hash ring with a bounded load.

The key is what names the session or the user (it also chose the worker), else the request itself.
A session leaves its backend while that has more than ``spill`` times its fair share of the host's
load, for the next on the ring, and comes back afterwards (``pipeline.hash_ring``,
``pipeline.loads``).
Known weakness: of requests without a session only those of one length and with the same first
64 KiB meet; ``prefix`` looks for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.hash_ring import HashRings, session_key
from tpo_mp.pipeline.loads import Loads, T, left_for, within_bound
from tpo_mp.ports import BackendConfig, Env, Feature
from tpo_mp.types import Call


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a session keeps to its backend."""

    spill: Annotated[float, Meta(ge=0, le=100,
        description="Times its fair share of the load that a backend may have before a session "
        "goes to the next; 0: it never leaves.")] = 1.25  # fmt: skip

    def __post_init__(self) -> None:
        """A bound below the fair share would never hold."""
        if 0 < self.spill < 1:
            raise ValueError(f"spill = {self.spill} is below 1, the fair share itself; 0 is off")


class ConsistentHashRoute:
    """Picks by a hash of the call's key."""

    counts_load: ClassVar[bool] = True

    def __init__(self, config: Config, env: Env) -> None:
        self._spill = config.spill
        self._loads = Loads(env.shares, EngineLoads(env))
        self._rings = HashRings()

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Put all of them on the ring: one that is away moves nobody else's sessions."""
        self._rings.meet(backends)

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose one target."""
        open_ = left_for(call, targets)
        if len(open_) == 1:
            return open_[0]
        return within_bound(self._rings.order(session_key(call), open_), self._loads, self._spill)


FEATURE = Feature(Config, ConsistentHashRoute)
