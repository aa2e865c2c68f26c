"""The backend with the most resources left, by its calls under way and its response time.

A backend's score is a weighted mean of shares of what it can bear, the lowest wins::

    0.4  tries under way on the whole host, and what others sent its engine / those it answers at
         a time
    0.4  share of its engine's KV cache in use, where the engine's metrics are read
    0.2  median seconds to the first byte, of all workers lately, at most 1

A term that nobody knows of a backend drops out, and the others weigh more for it; it is not 0,
which would make an unknown backend the best one.  Equal scores take turns.
Known weakness: response times are looked at once a second, and tell of up to twenty minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.loads import Loads, T, least, left_for
from tpo_mp.pipeline.scoring import Scoreboard, sum_up
from tpo_mp.ports import BackendConfig, Env, Feature
from tpo_mp.types import Call

_LOOK_S = 1.0
_SLICES = 2
_MEDIAN = 0.5


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the shares are of, and how much each weighs."""

    max_connections: Annotated[int, Meta(ge=1, le=1_000_000,
        description="Calls at a time of a backend whose `max_concurrent` says no number.")
    ] = 100  # fmt: skip
    slow_s: Annotated[float, Meta(gt=0, le=600,
        description="Seconds to the first byte that are as bad as can be.")] = 1.0  # fmt: skip
    connections: Annotated[float, Meta(ge=0, le=1,
        description="Weight of the calls under way.")] = 0.4  # fmt: skip
    memory: Annotated[float, Meta(ge=0, le=1,
        description="Weight of the share of the engine's KV cache in use.")] = 0.4  # fmt: skip
    response: Annotated[float, Meta(ge=0, le=1,
        description="Weight of the response time.")] = 0.2  # fmt: skip

    def __post_init__(self) -> None:
        """Calls under way are all that is always known."""
        if not self.connections:
            raise ValueError("connections = 0 leaves nothing to go by where no more is known")


class ResourceAwareRoute:
    """Picks by a score of resources."""

    counts_load: ClassVar[bool] = True

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._env = env
        self._engines = EngineLoads(env)
        self._loads = Loads(env.shares, self._engines)
        self._most: dict[str, int] = {}
        self._board = Scoreboard(env.scores, ())
        self._slow: dict[str, float | None] = {}
        self._looked_at = float("-inf")
        self._turn = env.peers.here

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Learn what each can bear."""
        default = self._config.max_connections
        for entry in backends:
            most = entry.max_concurrent
            self._most[entry.name] = most if isinstance(most, int) and most else default
        self._board = Scoreboard(self._env.scores, backends)

    def pick(self, call: Call, targets: Sequence[T]) -> T:
        """Choose one target."""
        open_ = left_for(call, targets)
        if len(open_) == 1:
            return open_[0]
        now = self._env.clock()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._slow = {name: self._response(name, now) for name in self._most}
        self._turn += 1
        return least(open_, self._score, self._turn)

    def _score(self, target: T) -> float:
        config, name = self._config, target.name
        most = self._most.get(name, config.max_connections)
        weight = config.connections
        score = weight * self._loads.busy(name) / most
        said = self._engines.of(name)
        if said is not None and said.kv is not None:
            score += config.memory * said.kv
            weight += config.memory
        slow = self._slow.get(name)
        if slow is not None:
            score += config.response * slow
            weight += config.response
        return score / weight

    def _response(self, name: str, now: float) -> float | None:
        lately = sum_up(score.recent(now, _SLICES) for _, score in self._board.of(name))
        median_s = lately.quantile_s(_MEDIAN)
        return None if median_s is None else min(median_s / self._config.slow_s, 1.0)


FEATURE = Feature(Config, ResourceAwareRoute)
