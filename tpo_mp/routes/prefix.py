"""A prompt to the backend that has seen its beginning, so that its cache is used again.

All workers keep one index of the beginnings that were sent where (``shm.prefixes``); the backends
that were sent the longest part of a prompt come first, the least loaded of them before the others.
Where less than ``min_match`` of it is known, a call with a session goes to that session's backend
on the hash ring, and one without to the least loaded.  A backend with more than ``spill`` times its
fair share of the host's load is left for the next, which then has the beginning too.

Known weakness: the index knows what was sent, not what a backend still has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.hash_ring import HashRings, session_key
from tpo_mp.pipeline.loads import Loads, T, left_for, within_bound
from tpo_mp.pipeline.prompt_blocks import blocks_of
from tpo_mp.ports import BackendConfig, Counter, Env, Feature
from tpo_mp.types import Call


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as known, and how far a prompt keeps to a backend."""

    min_match: Annotated[float, Meta(ge=0, le=1,
        description="Share of a prompt's blocks that must be known for it to go where they are."),
    ] = 0.3  # fmt: skip
    spill: Annotated[float, Meta(ge=0, le=100,
        description="Times its fair share of the load that a backend may have before a call goes "
        "to the next; 0: it never does.")] = 1.25  # fmt: skip

    def __post_init__(self) -> None:
        """A bound below the fair share would never hold."""
        if 0 < self.spill < 1:
            raise ValueError(f"spill = {self.spill} is below 1, the fair share itself; 0 is off")


class PrefixRoute:
    """Picks by what backends were sent before."""

    counts_load: ClassVar[bool] = True

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._index = env.prefixes
        self._loads = Loads(env.shares, EngineLoads(env))
        self._rings = HashRings()
        self._metrics = env.metrics
        self._counters: dict[str, Counter] = {}
        self._turn = env.peers.here

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Put all of them on the ring: one that is away moves nobody else's sessions."""
        self._rings.meet(backends)
        for entry in backends:
            self._index.number(entry.name)  # rather now than in a call's way

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose one target, and record what it is sent."""
        open_ = left_for(call, targets)
        blocks = blocks_of(call)
        known, holders = self._index.find(blocks)
        had = {t.name for t in open_ if holders and self._index.number(t.name) in holders}
        if not had or known < self._config.min_match * len(blocks):
            had = set()
        ordered = self._ordered(call, open_, had)
        chosen = within_bound(ordered, self._loads, self._config.spill)
        number = self._index.number(chosen.name)
        self._index.record(blocks, number, known if number in holders else 0)
        self._count("hit" if chosen.name in had else "spilled" if had else "miss")
        return chosen

    def _ordered(self, call: Call, open_: Sequence[T], had: set[str]) -> list[T]:
        """Who has the beginning, by load; then the session's ring, or the others by load."""
        if len(open_) == 1:
            return list(open_)
        loads = {t.name: self._loads.busy(t.name) / t.weight for t in open_}
        if call.affinity:
            ordered = self._rings.order(session_key(call), open_)
            return sorted(
                ordered, key=lambda t: (t.name not in had, (t.name in had) * loads[t.name])
            )
        self._turn = (self._turn + 1) % len(open_)
        turned = [*open_[self._turn :], *open_[: self._turn]]  # among equals they take turns
        return sorted(turned, key=lambda t: (t.name not in had, loads[t.name]))

    def _count(self, found: str) -> None:
        counter = self._counters.get(found)
        if counter is None:
            counter = self._counters[found] = self._metrics.counter(
                "tpo_prefix_route_total",
                "Picks of a prefix route: a backend that has the beginning, another because those "
                "are too busy, or nobody has it.",
                found=found,
            )
        counter.inc()


FEATURE = Feature(Config, PrefixRoute)
