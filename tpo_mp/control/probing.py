"""Asks backends whether they are well, how busy and with how many slots, and tells the whole host.

What it tells is described in ``shm.standing`` and ``shm.engine_load``.

Each of these has a task of its own for each backend, so one that hangs delays no other.  A status
below 500 is a good answer, whatever it says: who refuses a key is there.  503 is that of a server
that loads.  Each question has a connection of its own, so that a server that takes no connections
is noticed.

Invariants: control alone asks, so a host asks once, however many workers it has, and no call waits
for it; a time-out is no bad answer while calls are answered well: who is busy is not down.
Known weakness: a server that answers its health page and nothing else is ready; breakers notice.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import aiohttp

from tpo_mp.errors import Shed
from tpo_mp.observe.health import STATE_GAUGE
from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.pipeline.scoring import Scoreboard
from tpo_mp.ports import Cells, Ledger, Metrics, Probe, Scores, Shares, Watch
from tpo_mp.shm.engine_load import (
    NONE_KEPT,
    EngineLoad,
    engine_cells,
    load_row,
    slots_cells,
    slots_row,
)
from tpo_mp.shm.standing import Fitness, drain_row, health_cells, health_row, read_standing

from .engine_metrics_page import Reading, read_emptied, read_metrics, read_props
from .verdicts import LOADING, Judgement

_STATE_HELP: Final = "How a backend stands: 0 unknown, 1 starting, 2 ready, 3 draining, 4 down."
_LAPSE: Final = 3
"""Rounds without an answer of control's after which nobody believes what it found."""
_EMPTIED_S: Final = 600.0
"""So long a server is believed to empty its slots after it was seen to."""
_EMPTIES: Final = (
    "it empties an idle slot when another begins (one context for all), so it chooses the slot; "
    "with a number of slots (-np N) each would keep what it read"
)
_JITTER: Final = 0.1
_MOST_BYTES: Final = 4 << 20
_OK: Final = 200
_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503


class Probing:
    """All backends of one configuration after the other."""

    def __init__(
        self,
        ledger: Ledger,
        scores: Scores,
        shares: Shares,
        metrics: Metrics,
        clock: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self.log = log
        self._ledger = ledger
        self._scores = scores
        self._shares = shares
        self._metrics = metrics
        self._clock = clock
        self._plan: tuple[Probe, ...] = ()
        self._names: tuple[str, ...] = ()
        self._shown: set[str] = set()
        self._watch: Watch | None = None
        self._seen: tuple[Cells, ...] = ()
        self._changed = asyncio.Event()

    def configure(self, probes: Sequence[Probe], names: Sequence[str]) -> None:
        """Ask these from now on; ``names`` are all backends, the others may still be drained."""
        if (tuple(probes), tuple(names)) == (self._plan, self._names):
            return
        self._plan, self._names = tuple(probes), tuple(names)
        self._watch = None
        self._changed.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self._changed.clear()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keep_on(probe, work), name=probe.name)
                    for probe in self._plan
                    for work in self._works(probe)
                ]
                await self._changed.wait()
                for task in tasks:
                    task.cancel()

    def show(self) -> None:
        """Bring the gauges to what the host believes."""
        now, names = self._clock(), self._names
        if self._watch is None:
            rows = (*map(health_row, names), *map(drain_row, names))
            self._watch = self._ledger.watch(*rows)
            for gone in self._shown.difference(names):
                self._gauge(gone, Fitness.UNKNOWN)
            self._shown = set(names)
        seen = self._watch.peek()
        for at, name in enumerate(names):
            row = read_standing(seen[at], seen[at + len(names)])
            self._gauge(name, row.standing(now))

    def _gauge(self, name: str, state: Fitness) -> None:
        self._metrics.gauge(STATE_GAUGE, _STATE_HELP, backend=name).set(int(state))

    def _works(self, probe: Probe) -> Iterator[Callable[[Probe], Awaitable[None]]]:
        if probe.url:
            yield self._ask_on
        if probe.metrics_url:
            yield self._read_on
        if probe.slots_url:
            yield self._count_on

    async def _keep_on(self, probe: Probe, work: Callable[[Probe], Awaitable[None]]) -> None:
        while True:
            try:
                await work(probe)
            except Exception as error:  # noqa: BLE001 - one backend's files must not end control
                self.log.error("backend_not_asked", backend=probe.name, why=repr(error)[:200])
            await asyncio.sleep(probe.interval_s)

    async def _ask_on(self, probe: Probe) -> None:
        judgement = Judgement(probe.rise, probe.fall)
        found = read_standing(self._ledger.look(health_row(probe.name)), (0.0, 0.0, 0.0, 0.0))
        if found.state:  # also when it is too old to be believed: the first answer will tell
            judgement.resume(found.state, found.since, found.why)
        board = Scoreboard(self._scores, [probe])
        async with _session(probe, await _trust(probe), keep=False) as session:
            while True:
                asked_at = self._clock()
                why = await _ask(session, probe.url)
                if why == "timeout" and board.last_good_at(probe.name) >= asked_at:
                    why = ""
                self._heard(probe, judgement, why)
                stray = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads questions
                await asyncio.sleep(probe.interval_s * stray)

    async def _read_on(self, probe: Probe) -> None:
        """Look at its metrics again and again; what it had of ours then is no load of others."""
        ours = self._shares.of(f"load:{probe.name}")
        labels = {"backend": probe.name}
        async with _session(probe, await _trust(probe), keep=True) as session:
            while True:
                before = ours.total()
                reading = await _read(session, probe.metrics_url)
                if reading is None:
                    self._metrics.counter(
                        "tpo_engine_metrics_failed_total",
                        "Looks at an engine's metrics that told nothing.", **labels,
                    ).inc()  # fmt: skip
                else:
                    sent = max(before, ours.total())
                    others = max(reading.running + reading.waiting - sent, 0.0)
                    self._tell(probe, EngineLoad(others, reading.waiting, reading.kv))
                    self._level("running", reading.running, labels)
                    self._level("waiting", reading.waiting, labels)
                    self._level("others", others, labels)
                await asyncio.sleep(probe.metrics_every_s)

    async def _count_on(self, probe: Probe) -> None:
        """Look again and again how many slots it has, and whether they keep what they read.

        Another server may be started in its place.
        """
        last, emptied_until = 0, 0.0
        async with _session(probe, await _trust(probe), keep=False) as session:
            while True:
                slots = read_props(await _page(session, probe.slots_url) or b"")
                if not slots:
                    emptied_until = 0.0
                elif probe.held_url and read_emptied(await _page(session, probe.held_url) or b""):
                    emptied_until = self._clock() + _EMPTIED_S
                if slots:
                    slots = NONE_KEPT if self._clock() < emptied_until else slots
                    until = self._clock() + _LAPSE * (probe.interval_s + probe.timeout_s)
                    cells = slots_cells(slots, until)
                    try:
                        self._ledger.update(slots_row(probe.name), lambda _, new=cells: new)  # type: ignore[misc]
                    except Shed as error:
                        self.log.warning("slots_not_told", backend=probe.name, why=str(error))
                    if slots != last and slots == NONE_KEPT:
                        self.log.warning("slots_not_kept", backend=probe.name, why=_EMPTIES)
                    elif slots != last:
                        self.log.info("backend_slots", backend=probe.name, slots=slots)
                    last = slots
                await asyncio.sleep(probe.interval_s)

    def _tell(self, probe: Probe, load: EngineLoad) -> None:
        until = self._clock() + _LAPSE * (probe.metrics_every_s + probe.timeout_s)
        cells = engine_cells(load, until)
        try:
            self._ledger.update(load_row(probe.name), lambda _: cells)
        except Shed as error:
            self.log.warning("engine_load_not_told", backend=probe.name, why=str(error))
        if load.kv is not None:
            self._metrics.gauge(
                "tpo_engine_kv_usage", "Share of an engine's KV cache in use.", backend=probe.name
            ).set(load.kv)

    def _level(self, state: str, value: float, labels: dict[str, str]) -> None:
        text = "Requests an engine says it has: running, waiting, and those not of this host."
        self._metrics.gauge("tpo_engine_requests", text, state=state, **labels).set(value)

    def _heard(self, probe: Probe, judgement: Judgement, why: str) -> None:
        now, before = self._clock(), judgement.state
        if judgement.heard(why, now):
            tell = self.log.info if judgement.state is Fitness.READY else self.log.warning
            tell(
                "backend_state", backend=probe.name, state=judgement.state.name.lower(),
                before=before.name.lower(), why=judgement.why or None,
            )  # fmt: skip
        until = now + _LAPSE * (probe.interval_s + probe.timeout_s)
        cells = health_cells(judgement.state, judgement.since, until, judgement.why)
        try:
            self._ledger.update(health_row(probe.name), lambda _: cells)
        except Shed as error:  # another process was stopped in the same row: next time
            self.log.warning("backend_state_not_told", backend=probe.name, why=str(error))
        self._metrics.counter(
            "tpo_backend_probes_total", "Questions to backends whether they are well, by outcome.",
            backend=probe.name, outcome=why or "good",
        ).inc()  # fmt: skip


async def _ask(session: aiohttp.ClientSession, url: str) -> str:
    """Ask once; answers why it is not well, empty when it is."""
    try:
        async with session.get(url, allow_redirects=False) as reply:
            status = reply.status
    except TimeoutError:
        return "timeout"
    except aiohttp.ClientConnectionError:
        return "connect"
    except (aiohttp.ClientError, OSError, ValueError):
        return "bad_answer"
    if status == _UNAVAILABLE:
        return LOADING
    return "status" if status >= _SERVER_ERROR else ""


async def _read(session: aiohttp.ClientSession, url: str) -> Reading | None:
    page = await _page(session, url)
    return None if page is None else read_metrics(page.decode("utf-8", "replace"))


async def _page(session: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as reply:
            if reply.status != _OK:
                return None
            page = bytearray()
            async for part in reply.content.iter_any():
                page += part
                if len(page) > _MOST_BYTES:
                    return None
            return bytes(page)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def _session(probe: Probe, trust: ssl.SSLContext | bool, *, keep: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=not keep, ssl=trust, limit=2),
        timeout=aiohttp.ClientTimeout(total=probe.timeout_s),
        headers=dict(probe.headers),
        trust_env=False,
    )


async def _trust(probe: Probe) -> ssl.SSLContext | bool:
    if not probe.url.startswith("https:"):
        return True
    return await asyncio.to_thread(ssl.create_default_context, cafile=probe.ca_file)
