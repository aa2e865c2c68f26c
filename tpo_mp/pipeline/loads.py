"""How many tries each backend has under way, of all workers together, and who may be picked.

A try counts from the moment a route picked its backend until its reply is complete, the time that
it waits for a place included.  Each process keeps its part in a word of its own (``shm.shares``),
so counting costs no lock, and what a process that died had under way is forgotten with it.
Only configs with a route that asks for loads count them, and then every try of every backend.

Invariants: a try is counted and forgotten once, however it ends.
Known weakness: two workers that pick in the same microsecond do not see each other yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from tpo_mp.ports import Env, Feature, Share, Shares
from tpo_mp.types import Call

from .chain import Serve
from .engine_loads import EngineLoads
from .placed import through

REMEMBERED: Final = 1024
"""Sets of targets that a route keeps something about."""


class Pickable(Protocol):
    """What routes need of a target."""

    name: str
    weight: int

    def blocked(self, call: Call) -> bool:
        """Whether it should be left out while another is left."""


T = TypeVar("T", bound=Pickable)


class BackendLoad:
    """One backend's tries that are under way."""

    __slots__ = ("_share",)
    auto = None

    def __init__(self, share: Share) -> None:
        self._share = share

    def enter(self) -> None:
        """One begins."""
        self._share.add(1)

    def leave(self) -> None:
        """One is over."""
        self._share.give(1)

    def total(self) -> int:
        """All of the host."""
        return self._share.total()


class Loads:
    """The loads of backends, by name."""

    def __init__(self, shares: Shares, engines: EngineLoads | None = None) -> None:
        self._shares = shares
        self._engines = engines
        self._known: dict[str, BackendLoad] = {}

    def busy(self, name: str) -> float:
        """What it has to do: our calls, exactly, and what its engine said others sent it."""
        ours = self.of(name).total()
        said = None if self._engines is None else self._engines.of(name)
        return ours if said is None else ours + said.others

    def of(self, name: str) -> BackendLoad:
        """One of them; raises ``ConfigError`` when the host knows too many names."""
        load = self._known.get(name)
        if load is None:
            load = self._known[name] = BackendLoad(self._shares.of(f"load:{name}"))
        return load


def counted(serve: Serve, name: str, env: Env) -> Serve:
    """``serve``, whose tries count as load of a backend."""
    load, clock = Loads(env.shares).of(name), env.clock

    def attempt(call: Call) -> object:
        load.enter()
        return through(load, call, serve, clock)

    return attempt  # type: ignore[return-value]  # a promise is what is awaited


def counts_load(route: Feature) -> bool:
    """Whether a kind of route goes by load."""
    return bool(getattr(route.build, "counts_load", False))


def left_for(call: Call, targets: Sequence[T]) -> Sequence[T]:
    """Those that were not tried and are not blocked, while there are such."""
    if call.tried:
        targets = [t for t in targets if t.name not in call.tried] or targets
    if len(targets) > 1:
        targets = [t for t in targets if not t.blocked(call)] or targets
    return targets


def least(targets: Sequence[T], score: Callable[[T], float], turn: int) -> T:
    """The target with the least score; among equals they take turns."""
    scores = [score(target) for target in targets]
    low = min(scores)
    equal = [t for t, s in zip(targets, scores, strict=True) if s == low]
    return equal[turn % len(equal)]


def within_bound(ordered: Sequence[T], loads: Loads, spill: float) -> T:
    """The first in order whose load would stay within ``spill`` times its fair share.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016); shares are by
    weight, and ``spill`` 0 never leaves the first.
    """
    if not spill or len(ordered) == 1:
        return ordered[0]
    now = [loads.busy(target.name) for target in ordered]
    whole = (sum(now) + 1) * spill / sum(target.weight for target in ordered)
    for target, load in zip(ordered, now, strict=True):
        # At least one: a host with a single call does not move it about.
        if load < max(whole * target.weight, 1.0):
            return target
    return ordered[min(range(len(now)), key=lambda n: now[n] / ordered[n].weight)]
