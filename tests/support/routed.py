"""Targets and hosts as routes see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.support.fake_env import FakeShares, FakeWorld, make_call
from tpo_mp import registry
from tpo_mp.pipeline.loads import Loads
from tpo_mp.ports import Env
from tpo_mp.types import Call


@dataclass
class RoutedTarget:
    """A backend as a route sees it."""

    name: str
    weight: int = 1
    shut: bool = False

    def blocked(self, call: Call) -> bool:
        """Whether another should be asked."""
        return self.shut


class RoutedHost:
    """A host of several workers, each with a route of its own over the same loads."""

    def __init__(self, strategy: str, workers: int = 2, **options: Any) -> None:
        self.world = FakeWorld()
        self.shares = FakeShares()
        found = registry.find("routes", strategy)
        config = found.Config(**options)
        self.envs: list[Env] = [
            replace(self.world.env, shares=self.shares.other(seat)) for seat in range(workers)
        ]
        self.routes: list[Any] = [found.build(config, env) for env in self.envs]

    def load(self, worker: int, name: str, count: int = 1) -> None:
        """A worker begins so many tries."""
        for _ in range(count):
            Loads(self.envs[worker].shares).of(name).enter()

    def pick(self, worker: int, targets: list[RoutedTarget], **fields: Any) -> str:
        """Who is picked by a worker."""
        chosen = self.routes[worker].pick(make_call(b"{}", **fields), targets)
        assert isinstance(chosen, RoutedTarget)
        return chosen.name
