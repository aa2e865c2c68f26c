"""Leaves a backend out of its routes' choice for a while when it is worse than the others there.

A breaker opens when a backend fails so often in a row; one that fails every third call, or has
become slow, never opens it.  Here each backend is compared with those it shares a route with: by
its share of failures, and by its median time to the first byte, of all workers in the same time
(``pipeline.ejection`` has the rules, ``shm.scores`` the numbers).  The routes that choose
(``weighted``, ``failover``, ``hedge``) then take another; nobody is refused.

Invariants: one process judges an interval, whichever comes first, and an ejection holds for all of
them; at least one backend of each route takes part, and at most ``max_share`` of it is left out; a
pick costs one look without a lock.
Known weakness: a backend is judged as a whole, not by model, and only while there are calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Protocol

from msgspec import Meta, Struct

from tpo_mp.errors import Shed
from tpo_mp.pipeline.ejection import (
    SWEEP_ROW,
    Ejection,
    ejected,
    forgiven,
    has_room,
    pack_ejection,
    row_of,
    stands_out,
    unpack_ejection,
    worst_first,
)
from tpo_mp.pipeline.scoring import Scoreboard
from tpo_mp.ports import BackendConfig, Cells, Env, Feature, Watch
from tpo_mp.types import Call, Phase, TryTally

_STALE: float = 2.5
"""Numbers that span more than so many intervals are not judged: they tell of long ago."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a backend stands out, and for how long it is left out."""

    interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds of calls that are compared.")
    ] = 10.0
    min_tries: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Tries in an interval below which nobody is judged."),
    ] = 20
    failure_share: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of failed tries that stands out, if it is also twice "
             "that of the others."),
    ] = 0.3  # fmt: skip
    slow_factor: Annotated[
        float,
        Meta(ge=0, le=1000, description="Times the others' median time to the first byte that "
             "stands out; 0: slowness is not judged."),
    ] = 5.0  # fmt: skip
    slow_floor_s: Annotated[
        float, Meta(ge=0, le=600, description="A shorter median time is never slow.")
    ] = 0.5
    eject_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Seconds that it is left out, times how often it was "
             "lately."),
    ] = 30.0  # fmt: skip
    max_eject_s: Annotated[
        float, Meta(gt=0, le=86_400, description="It is not left out for longer.")
    ] = 300.0
    max_share: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of a route's backends that may be left out at a time "
             "(one always may, and one always stays)."),
    ] = 0.5  # fmt: skip


class Routed(Protocol):
    """What is needed of a route's entry."""

    @property
    def backends(self) -> Sequence[str]: ...


class Outlier:
    """Judges backends against each other."""

    phase: ClassVar[Phase] = Phase.ATTEMPT
    advises: ClassVar[bool] = True
    """What it blocks may still be asked, when nothing else is left."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._env = env
        self._clock = env.clock
        self._entries: Sequence[BackendConfig] = ()
        self._groups: list[tuple[str, ...]] = []
        self._places: dict[str, int] = {}
        self._watch: Watch = env.ledger.watch(SWEEP_ROW)
        self._board = Scoreboard(env.scores, ())
        self._seen: tuple[float, Mapping[str, TryTally]] | None = None
        self._due_at = 0.0
        self._calm: tuple[Cells, ...] | None = None

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Learn which backends there are; see ``ports.Stage``."""
        self._entries = backends

    def meet_routes(self, routes: Sequence[Routed]) -> None:
        """Learn who is to be compared with whom; see ``ports.Stage``."""
        groups = (tuple(dict.fromkeys(route.backends)) for route in routes)
        self._groups = [group for group in groups if len(group) > 1]
        judged = {name for group in self._groups for name in group}
        self._board = Scoreboard(
            self._env.scores, [entry for entry in self._entries if entry.name in judged]
        )
        self._places = {name: place for place, name in enumerate(sorted(judged))}
        self._watch = self._env.ledger.watch(*map(row_of, self._places))

    def blocked(self, call: Call, backend: str) -> bool:
        """Whether a route should rather ask another backend."""
        place = self._places.get(backend)
        if place is None:
            return False
        now = self._clock()
        if now >= self._due_at:
            self._read(now)
        seen = self._watch.peek()
        if seen is self._calm:
            return False
        if all(cells[0] <= now for cells in seen):
            self._calm = seen
        return seen[place][0] > now

    # -- judging --------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        """Have the scores read beside the loop: with many workers that is milliseconds."""
        self._due_at = now + self._config.interval_s
        read = asyncio.get_running_loop().run_in_executor(None, self.totals)
        read.add_done_callback(partial(self._have_read, now))

    def _have_read(self, now: float, read: asyncio.Future[Mapping[str, TryTally]]) -> None:
        if not read.cancelled() and read.exception() is None:
            self.judge(read.result(), now)

    def totals(self) -> Mapping[str, TryTally]:
        """What each backend has done since the host started."""
        return {name: self._board.total(name) for name in self._places}

    def judge(self, totals: Mapping[str, TryTally], now: float) -> None:
        """Compare what came since the last time, if no other process does."""
        before, self._seen = self._seen, (now, totals)
        interval_s = self._config.interval_s
        if before is None or now - before[0] > _STALE * interval_s:
            return
        try:
            if self._is_mine(now):
                self._sweep({n: t.less(before[1][n]) for n, t in totals.items()}, now)
        except Shed as error:  # another process was stopped in the same row: next time
            self._env.log.warning("outliers_not_judged", why=str(error))

    def _is_mine(self, now: float) -> bool:
        won = False

        def claim(cells: Cells) -> Cells:
            nonlocal won
            won = now - cells[0] >= self._config.interval_s * 0.8
            return (now, *cells[1:]) if won else cells

        self._env.ledger.update(SWEEP_ROW, claim)
        return won

    def _sweep(self, fresh: Mapping[str, TryTally], now: float) -> None:
        look, options = self._env.ledger.look, self._config
        rows = {name: unpack_ejection(look(row_of(name))) for name in fresh}
        out = {name for name, row in rows.items() if row.until > now}
        for name in worst_first(fresh):
            if name in out:
                continue
            peers = {n for group in self._groups if name in group for n in group} - {name}
            why = stands_out(fresh[name], [fresh[n] for n in peers - out], options)
            if why and has_room(name, self._groups, out, options):
                out.add(name)
                self._eject(name, why, now)
            elif not why and rows[name].times and fresh[name].good:
                self._change(name, forgiven(rows[name], now))

    def _eject(self, name: str, why: str, now: float) -> None:
        env = self._env
        row = unpack_ejection(env.ledger.look(row_of(name)))
        after = ejected(row, why, self._config, now, env.random.random())
        self._change(name, after)
        text = "Times that a backend was left out of its routes' choice, by why."
        env.metrics.counter(
            "tpo_outlier_ejections_total", text, backend=name, why=why
        ).inc()  # fmt: skip
        env.log.warning(
            "backend_ejected", backend=name, why=why, for_s=round(after.left_s(now), 1),
            times=after.times,
        )  # fmt: skip

    def _change(self, name: str, after: Ejection) -> None:
        cells = pack_ejection(after)

        def put(_: Cells) -> Cells:
            return cells

        self._env.ledger.update(row_of(name), put)


FEATURE = Feature(Config, Outlier)
