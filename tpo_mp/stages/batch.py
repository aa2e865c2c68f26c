"""Calls to one backend that come close together are sent together, those that begin alike in a row.

An engine computes what prompts have in common at their start only once, as long as it remembers
it.  Calls that come mixed make it forget; sent in groups of one beginning they do not.

A call waits until ``max_batch_size`` calls of its group wait on the host (``pipeline.grouping``),
or the first of them has waited ``max_wait_s``.  A group is what has one backend, one model and,
with ``group_by_prefix_len``, the same first bytes of prompt (``dialects.prompt_start``).  With
``eager`` a call goes at once while the host has nothing under way at that backend: nobody would
gain by its waiting.

Invariants: a call waits once, and for ``max_wait_s`` at most; one whose client left is not sent; at
most ``MOST_GROUPS`` groups wait in one worker, calls of others go at once.
Known weakness: a call holds its place at the backend (stage ``admission``) while it waits, so
``max_concurrent`` below ``max_batch_size`` makes batches that small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Annotated, ClassVar, Final

from msgspec import Meta, Struct

from tpo_mp.dialects.prompt_start import start_of
from tpo_mp.pipeline.grouping import NAME_BYTES, Later, Timer, Told, grouping_of
from tpo_mp.pipeline.loads import BackendLoad
from tpo_mp.pipeline.placed import Passing, through
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.ports import BackendConfig, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply

MOST_GROUPS: Final = 1024
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent together."""

    backends: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(max_length=256, description="Backends whose calls are collected; none: of all."),
    ] = ()  # fmt: skip
    max_batch_size: Annotated[int, Meta(ge=1, le=1024,
        description="Calls of a group that wait on the host when they go.")] = 8  # fmt: skip
    max_wait_s: Annotated[float, Meta(gt=0, le=60,
        description="Seconds after which a group goes, full or not.")] = 0.05  # fmt: skip
    group_by_prefix_len: Annotated[int, Meta(ge=0, le=65_536,
        description="Bytes of prompt that calls of one group have in common at their start; 0: "
        "any calls of one model, in the order in which they came.")] = 0  # fmt: skip
    eager: Annotated[bool, Meta(
        description="Whether a call goes at once while the host has nothing under way at its "
        "backend.")] = True  # fmt: skip


class Batch:
    """Holds calls back until others come."""

    phase: ClassVar[Phase] = Phase.ATTEMPT

    def __init__(self, config: Config, env: Env, later: Later | None = None) -> None:
        """``later`` is the clock of tests; the loop's own otherwise."""
        self._config = config
        self._env = env
        self._only = frozenset(config.backends)
        self._later = later or _by_the_loop
        self._groups: dict[bytes, _Group] = {}
        self._under_way: dict[str, BackendLoad] = {}
        self._grouping = grouping_of(env.peers, self._later)
        self._grouping.join(self)
        metrics = env.metrics
        self._requests = metrics.counter(
            "orchestrator_batch_requests_total", "Calls that the stage batch has sent."
        )
        self._sizes = metrics.histogram(
            "orchestrator_batch_size", "Calls of a group that one worker sent together.", _SIZES
        )
        self._alone = metrics.counter(
            "orchestrator_batch_solo_total", "Calls that went alone, as nobody else came."
        )
        self._pending = metrics.gauge(
            "orchestrator_batch_pending", "Calls that wait for others to be sent with."
        )

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """Know them; raises ``ConfigError`` when the host knows too many names."""
        for entry in backends:
            if not self._only or entry.name in self._only:
                self._load(entry.name)

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Send it now, or with others."""
        if self._only and call.backend not in self._only:
            return proceed(call)
        load = self._load(call.backend)
        name = self._name(call)
        group = self._groups.get(name)
        if group is None:
            idle = self._config.eager and not load.total()
            if idle or len(self._groups) >= MOST_GROUPS:
                self._sent(1)
                return self.send(call, proceed, load)
            timer = self._later(self._config.max_wait_s, lambda: self._due(name))
            group = self._groups[name] = _Group(self, name, load, timer)
        waiting = _Waiting(group, call, proceed)
        group.waiting.append(waiting)
        self._pending.add(1)
        group.told = self._grouping.came(
            name, len(group.waiting), group.told,
            size=self._config.max_batch_size, wait_s=self._config.max_wait_s,
        )  # fmt: skip
        return waiting.out

    def go(self, name: bytes) -> None:
        """Send what waits here of a group."""
        group = self._groups.pop(name, None)
        if group is None:
            return
        group.timer.cancel()
        waiting, group.waiting = group.waiting, []
        self._pending.add(-len(waiting))
        self._sent(len(waiting))
        for one in waiting:
            one.out.cancel_with = None  # what one does may make another leave
        for one in waiting:
            one.go()

    def send(self, call: Call, proceed: Proceed, load: BackendLoad) -> Awaitable[Reply]:
        """One try that counts as under way until its reply is complete."""
        load.enter()
        return through(load, call, proceed, self._env.clock)

    def _due(self, name: bytes) -> None:
        """A group waited long enough here, whatever is known of it elsewhere."""
        group = self._groups.get(name)
        if group is not None:
            self._grouping.left(name, len(group.waiting))
            self.go(name)

    def left(self, group: _Group) -> None:
        """One of a group wants no more."""
        self._pending.add(-1)
        self._grouping.left(group.name, 1)
        if not group.waiting:
            group.timer.cancel()
            del self._groups[group.name]

    def _sent(self, number: int) -> None:
        self._requests.inc(number)
        self._sizes.observe(number)
        if number == 1:
            self._alone.inc()

    def _load(self, backend: str) -> BackendLoad:
        """How many calls the host has under way there, those not counted that wait here."""
        load = self._under_way.get(backend)
        if load is None:
            load = self._under_way[backend] = BackendLoad(self._env.shares.of(f"batch {backend}"))
        return load

    def _name(self, call: Call) -> bytes:
        most = self._config.group_by_prefix_len
        start = start_of(call.body, most) if most else b""
        # Neither name holds a NUL.
        parts = b"\0".join((call.backend.encode(), call.model.encode("utf-8", "replace"), start))
        return blake2b(parts, digest_size=NAME_BYTES).digest()


class _Group:
    """Calls of one group that wait in this worker."""

    __slots__ = ("load", "name", "stage", "timer", "told", "waiting")

    def __init__(self, stage: Batch, name: bytes, load: BackendLoad, timer: Timer) -> None:
        self.stage = stage
        self.name = name
        self.load = load
        self.timer = timer
        self.told: Told | None = None
        self.waiting: list[_Waiting] = []


class _Waiting:
    """One call that waits; ``out`` is its outcome."""

    __slots__ = ("_call", "_group", "_proceed", "out")

    def __init__(self, group: _Group, call: Call, proceed: Proceed) -> None:
        self._group = group
        self._call = call
        self._proceed = proceed
        self.out: Promise[Reply] = Promise(self._left)

    def go(self) -> None:
        """Send it, unless its client left a moment ago."""
        out, group = self.out, self._group
        if out.done:
            return
        try:
            cancel = run(group.stage.send(self._call, self._proceed, group.load), Passing(out))
        except Exception as e:  # noqa: BLE001 - becomes the call's error
            out.reject(e)
            return
        if not out.done:
            out.cancel_with = cancel

    def _left(self) -> None:
        """The client is gone, or the call's time."""
        group = self._group
        group.waiting.remove(self)
        group.stage.left(group)


def _by_the_loop(seconds: float, do: Callable[[], object]) -> Timer:
    return asyncio.get_running_loop().call_later(seconds, do)


FEATURE = Feature(Config, Batch)
