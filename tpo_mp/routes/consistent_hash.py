"""The same session always to the same backend, on a hash ring with a bounded load.

The key is what names the session or the user (it also chose the worker), else the request itself.
A session leaves its backend while that has more than ``spill`` times its fair share of the host's
load, for the next on the ring, and comes back afterwards (``pipeline.hash_ring``,
``pipeline.loads``).
Known weakness: of requests without a session only equal ones meet; ``prefix`` looks for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.hash_ring import HashRing
from tpo_mp.pipeline.loads import REMEMBERED, Loads, T, left_for, within_bound
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call

_ORDERS = 4096


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
        self._loads = Loads(env.shares)
        self._rings: dict[tuple[tuple[str, int], ...], HashRing] = {}
        self._orders: dict[tuple[bytes, HashRing], list[str]] = {}

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose one target."""
        open_ = left_for(call, targets)
        if len(open_) == 1:
            return open_[0]
        by_name = {target.name: target for target in open_}
        # Of all targets: one that is away for a moment moves nobody else's sessions.
        ordered = [by_name[n] for n in self._order(session_key(call), targets) if n in by_name]
        return within_bound(ordered, self._loads, self._spill)

    def _order(self, key: bytes, targets: Sequence[T]) -> list[str]:
        among = tuple((target.name, target.weight) for target in targets)
        ring = self._rings.get(among)
        if ring is None:
            if len(self._rings) >= REMEMBERED:
                self._rings.clear()
                self._orders.clear()
            ring = self._rings[among] = HashRing(targets)
        order = self._orders.get((key, ring))
        if order is None:
            if len(self._orders) >= _ORDERS:
                self._orders.clear()
            order = self._orders[key, ring] = ring.order(key)
        return order


def session_key(call: Call) -> bytes:
    """What calls of one session have in common; sessions of two tenants are two."""
    if call.affinity:
        text = f"{call.tenant}\0{call.affinity}".encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16).digest()
    return blake2b(call.body, digest_size=16).digest()


FEATURE = Feature(Config, ConsistentHashRoute)
