"""One shard: beat · listen · read rings · obey the command word and the config.

Everything runs on one uvloop; a call needs no task.  The beat is written by the loop itself, so a
blocked loop is a silent one.

Shutdown is a state: RUNNING → DRAINING → STOPPED.  Draining refuses new calls, lets open ones
finish and idle connections go; STOP ends what is left with the dialect's error.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import Enum
from random import Random
from time import monotonic
from typing import Any

import msgspec
from setproctitle import setproctitle

from tpo_mp import registry as features
from tpo_mp.config.blob import from_blob
from tpo_mp.config.certificate import server_context
from tpo_mp.errors import ConfigError, Draining, TpoError
from tpo_mp.http.edge import ClientEdge
from tpo_mp.http.endpoints import EndpointTable
from tpo_mp.http.fast import FastConnection
from tpo_mp.http.full import FullLane
from tpo_mp.http.tally import RequestTally
from tpo_mp.http.wheel import Wheel
from tpo_mp.observe import log
from tpo_mp.pipeline.breaker_board import BreakerSeries
from tpo_mp.pipeline.edges import Edge, make_edges, resize_edges
from tpo_mp.pipeline.poison import Poison
from tpo_mp.pipeline.replay import Replayer
from tpo_mp.ports import Env
from tpo_mp.shm import frames
from tpo_mp.shm.epochs import ConfigBuffer
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.lifeline import last_words
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import NO_SLOT, Command, HostState, Plane, SeatState
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.shares import NAMES_HELD, NAMING_NS
from tpo_mp.simulator.live import VersionLine
from tpo_mp.simulator.read_ahead import ReadAhead
from tpo_mp.store.client import StoreClient

from .account import Account
from .asyncs import Asyncs
from .backgrounds import Backgrounds
from .build import Pipeline, build
from .cancels import Cancels
from .courier import Courier
from .edge_rules import keyring_of, policy_of
from .engine_lines import engine_links, use_lines
from .errors_out import Refusals
from .job_calls import JobCalls
from .letters import Letters
from .links import Links
from .listen import Listening
from .mesh import Mesh
from .owner import Owner
from .peers import ShardPeers
from .placing import Placing
from .progress import Progress
from .replays import ReplayCalls
from .shared_feeds import SharedFeeds
from .shared_state import SharedState
from .sweep import IdleSweep
from .syncs import Syncs
from .tiers import given_back, with_tier
from .tls import Tls

_decode_answer = msgspec.msgpack.Decoder(frames.StoreAnswer).decode
BEAT_S = 0.05
PARKED_BEAT_S = 0.1
PARKED_TURNS = 10
"""Beats per turn of a parked shard, which has little to do and shares a core with one that has."""
RECHECK_S = 0.01
NAMES_AGAIN_S = 0.2
LINGER_S = 1.0
LEAVING_LINGER_S = 0.2
LEAVING_FRESH_S = 1.0
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Life(Enum):
    """Where this process is in its life."""

    RUNNING = 1
    DRAINING = 2
    STOPPED = 3


class Shard:
    """One worker process."""

    def __init__(self, handoff: Handoff, lifeline_fd: int) -> None:
        self.handoff = handoff
        self.loop = asyncio.get_running_loop()
        self.plane = Plane.attach(handoff.plane_fd)
        self.lines = self.plane.seat(handoff.seat)
        self.lines.state = SeatState.BOOTING
        self._words = self.plane.words
        self._beat_at = self.plane.beat_index(handoff.seat)
        self.stage = Life.RUNNING
        self._news = asyncio.Event()
        self._ahead = ReadAhead(self._news.set)
        self._command = -1
        self._rechecking = False
        self._lifeline_fd = lifeline_fd
        self._configs = ConfigBuffer.attach(handoff.config_fd)
        self._epoch_seen = 0
        config, epoch = self._read_config()
        self.log = log.configure(
            config.observability.log_format,
            config.observability.log_level,
            process=f"seat-{handoff.seat}",
        )
        arena = MetricsArena.attach(handoff.metrics_fd, handoff.seats)
        self.metrics = arena.block(handoff.seat, handoff.epoch)
        self.wheel = Wheel()
        self._build_core(config, arena)
        shared = SharedState(handoff, self.plane, self.metrics)
        self.env = Env(
            clock=monotonic,
            random=Random(),  # noqa: S311 - spreads load, guards nothing
            metrics=self.metrics,
            log=self.log,
            store=self.store,
            timers=self.wheel,
            rooms=self._make_edges(config),
            ledger=shared.ledger,
            quotas=shared.quotas,
            live=shared.live,
            journal=shared.journal,
            shares=shared.shares,
            scores=shared.scores,
            prefixes=shared.prefixes,
            peers=self.peers,
            cache=shared.cache,
        )
        self.owner.poison = Poison(self.env.ledger, monotonic, self.metrics)
        self.mesh.on_death = self.owner.died_with
        self.peers.courier = Courier(
            mesh=self.mesh, plane=self.plane, seat=handoff.seat, check=self.owner.poison.check,
            claims=shared.claims,
        )  # fmt: skip
        self.owner.metrics_arena = BreakerSeries(arena, self.env.ledger, monotonic)
        self.replays = ReplayCalls(Replayer(self.owner, self.env))
        self.env = with_tier(self.env, config)
        self.pipeline: Pipeline = build(config, self.env, epoch)
        shared.shares.patience_ns = NAMING_NS
        use_lines(self.engines, self.pipeline)
        self.owner.use(self.pipeline)
        self._build_edge(config)
        self.lines.config_ack = epoch
        self._lag = self.metrics.histogram(
            "tpo_loop_lag_seconds", "How late the loop's beat came.", LAG_S
        )
        self._lag_max = 0
        self._open_gauge = self.metrics.gauge("tpo_open_calls", "Calls open now.")
        self._connections_gauge = self.metrics.gauge(
            "tpo_client_connections", "Client connections open now."
        )

    # -- construction -------------------------------------------------------------------------

    def _read_config(self) -> tuple[Any, int]:
        epoch = self.plane.config_epoch
        blob = self._configs.read(epoch)
        if blob is None:
            raise ConfigError("the supervisor published no config", reason="config_missing")
        self._epoch_seen = epoch
        return from_blob(blob), epoch

    def _build_core(self, config: Any, arena: MetricsArena) -> None:
        handoff = self.handoff
        seat = handoff.seat
        registry = Registry.attach(handoff.registry_fd, handoff.seats, config.server.max_open_calls)
        writer = registry.writer(seat, handoff.epoch)
        self.placing = Placing(self.plane)
        self.links = Links(
            seat=seat,
            epoch=handoff.epoch,
            plane=self.plane,
            mesh=RingMesh.attach(handoff.rings_fd, handoff.seats),
            doorbells=handoff.doorbells,
            loop=self.loop,
            metrics=self.metrics,
            take=self._take,
            rung=self._rung,
        )
        control = handoff.seats - 1
        self.account = Account(
            loop=self.loop,
            metrics=self.metrics,
            registry=writer,
            push=lambda record: self.links.send(control, record, ring=False),
            max_record=self.links.max_record,
            letters=Letters(
                lambda record: self.links.send(control, record),
                self.links.max_record,
                self.metrics,
            ),
            on_crash=self._crashed,
        )
        self.owner = Owner(
            seat=seat,
            epoch=handoff.epoch,
            plane=self.plane,
            metrics_arena=arena,
            placing=self.placing,
            registry=writer,
            account=self.account,
            add_timer=self.wheel.add,
            max_open_calls=config.server.max_open_calls,
        )
        self.peers = ShardPeers(self.links, self.placing, seat)
        self.progress = Progress(self.owner.open, writer.set_sent)
        self.mesh = Mesh(
            links=self.links,
            placing=self.placing,
            registry=registry,
            writer=writer,
            seat=seat,
            serving=self.owner.serving,
            credit_bytes=config.rings.credit_bytes,
            inline_bytes=config.rings.inline_bytes,
            on_busy=self._busy,
            on_crash=self._crashed,
        )
        self.links.damaged = self._damaged
        self.engines = engine_links(handoff, self.loop, self._crashed)
        self.store = StoreClient(
            lambda record: self.links.send(control, record), self.loop.time, frames.store_get,
            frames.store_put, metrics=self.metrics,
        )  # fmt: skip
        self.asyncs = Asyncs(
            owner=self.owner,
            links=self.links,
            plane=self.plane,
            store=self.store,
            metrics=self.metrics,
            seat=seat,
            epoch=handoff.epoch,
            ttl_s=config.store.result_age_s,
        )
        self.backgrounds = Backgrounds(
            owner=self.owner,
            links=self.links,
            plane=self.plane,
            store=self.store,
            metrics=self.metrics,
            seat=seat,
            ttl_s=config.store.result_age_s,
        )
        self.owner.backgrounds = self.backgrounds
        self.syncs = Syncs(lambda record: self.links.send(control, record), self.loop, self.metrics)
        self.cancels = Cancels(
            owner=self.owner, asyncs=self.asyncs, links=self.links, plane=self.plane, seat=seat
        )
        self.owner.cancels = self.cancels
        self.job_calls = JobCalls(self.owner, self.store)
        self.feeds = SharedFeeds(
            links=self.links,
            plane=self.plane,
            seat=seat,
            on_busy=self._busy,
            settings=config.server.streams,
            timers=self.wheel,
            metrics=self.metrics,
        )
        self.owner.mesh, self.owner.asyncs, self.owner.store = self.mesh, self.asyncs, self.store
        self.owner.feeds = self.feeds
        self.owner.syncs = self.syncs
        self.owner.catch_up = self._catch_up

    def _make_edges(self, config: Any) -> dict[str, Edge]:
        lines, plane, seat = self.lines, self.plane, self.handoff.seat

        def publish(n: int) -> None:
            lines.waiting = n

        def others() -> int:
            return sum(plane.seat(s).waiting for s in range(plane.seats) if s != seat)

        capacities = msgspec.structs.asdict(config.pipeline.edges)
        edges = make_edges(capacities, self.metrics, publish, others, plane.workers)
        self._edges = edges
        return edges

    def _build_edge(self, config: Any) -> None:
        m, server = self.metrics, config.server
        text = "Requests by the lane that framed them."
        self.edge = ClientEdge(
            loop=self.loop,
            wheel=self.wheel,
            table=self._endpoints(config),
            render_error=Refusals(self.metrics).answer,
            on_crash=self._crashed,
            limits=server,
            policy=policy_of(server),
            keyring=keyring_of(config.auth),
            count_fast=m.counter("tpo_lane_requests_total", text, lane="fast").inc,
            count_full=m.counter("tpo_lane_requests_total", text, lane="full").inc,
            count_bad=m.counter(
                "tpo_bad_requests_total", "Requests whose framing was refused."
            ).inc,
            tally=RequestTally(m),
        )
        self.owner.table = self.edge.table
        self.edge.stamp = self._stamp(config)
        FullLane(self.edge)
        self.tls = Tls(server.tls) if server.tls.cert_file else None
        self.listening = Listening(
            loop=self.loop,
            plane=self.plane,
            seat=self.handoff.seat,
            listeners=self.handoff.listeners,
            protocol=lambda: FastConnection(self.edge),
            tls=self.tls.context if self.tls is not None else None,
            handshake_s=server.header_timeout_s,
            warn=self.log.warning,
        )

    def _endpoints(self, config: Any) -> EndpointTable:
        found = []
        for name, options in config.surfaces.items():
            surface = features.find("surfaces", name).build(options, self.env)
            found += surface.endpoints(self.owner)
        return EndpointTable(found)

    def _stamp(self, config: Any) -> Callable[[], bytes] | None:
        """Answers of a simulator say which live state they saw."""
        simulates = any(backend.kind == "simulator" for backend in config.backends)
        return VersionLine(self.env.live) if simulates else None

    def _crashed(self, error: BaseException) -> None:
        self.log.error("defect", error=type(error).__name__, exc_info=error)

    # -- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop."""
        now = monotonic()
        self.sweep = IdleSweep(self.metrics, now)
        self.loop.add_reader(self._lifeline_fd, self._orphaned)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(), name="beat")
            tasks.create_task(self._obey(), name="obey")

    def _orphaned(self) -> None:
        os._exit(1)  # the supervisor is gone: nothing here may outlive it

    async def _beat(self) -> None:
        """Beat, and do what is due every 50 ms; one that only waits for a seat has less to do."""
        due, lines, turns = monotonic(), self.lines, 0
        while self.stage is not Life.STOPPED:
            now = monotonic()
            self._words[self._beat_at] += 1
            lag_s = max(now - due, 0.0)
            self._lag.observe(lag_s)
            turns += 1
            if lines.state != SeatState.PARKED or turns % PARKED_TURNS == 0:
                self._tick(now, lag_s)
            elif self._changed():
                self._news.set()
            pause_s = PARKED_BEAT_S if lines.state == SeatState.PARKED else BEAT_S
            due = now + pause_s
            await asyncio.sleep(pause_s)

    def _tick(self, now: float, lag_s: float) -> None:
        self.wheel.tick(now)
        self.edge.tick()
        self.links.poll()
        self.mesh.tick()
        self.engines.tick()
        self.feeds.tick(now)
        self.account.tick()
        self.progress.tick()
        self._count_others()
        open_now = len(self.owner.open)
        lines = self.lines
        lines.open_calls = open_now
        lines.loop_lag_us = int(lag_s * 1e6)
        lines.now_us = int(now * 1e6)
        self._open_gauge.set(open_now)
        self._connections_gauge.set(self.edge.open_connections)
        self.sweep.tick(now, idle=open_now == 0)
        if self.stage is Life.RUNNING:
            self.listening.tick()
        if self._changed():
            self._news.set()

    def _count_others(self) -> None:
        plane, seat = self.plane, self.handoff.seat
        self.owner.others_open = sum(
            plane.seat(s).open_calls for s in range(plane.seats) if s != seat
        )

    def _busy(self) -> None:
        """The mesh has calls under way: a doorbell may be lost, so look again soon."""
        if not self._rechecking:
            self._rechecking = True
            self.loop.call_later(RECHECK_S, self._recheck)

    def _recheck(self) -> None:
        self._rechecking = False
        if self.mesh.busy or self.feeds.busy:
            self.links.republish()
            self.links.poll()
            self.mesh.tick()
            self.feeds.tick(monotonic())
            self._busy()

    def _rung(self) -> None:
        """Somebody rang: a record, or a word of the supervisor's."""
        self.engines.rung()
        if self._changed():
            self._news.set()

    def _changed(self) -> bool:
        plane, lines = self.plane, self.lines
        return (
            lines.command != self._command
            or plane.config_epoch != self._epoch_seen
            or plane.acceptor_version != self.listening.version
            or self.stage is Life.DRAINING
        )

    def _damaged(self, source: int) -> None:
        self.log.warning("ring_damaged", source=source)
        if source != self.handoff.seats - 1:
            self.mesh.damaged(source)
            self.feeds.damaged(source)

    def _take(self, source: int, record: bytes) -> None:
        """Dispatch one record from a ring."""
        try:
            kind, number = HEAD.unpack_from(record)
            payload = memoryview(record)[HEAD.size :]
            if (
                self.mesh.take(source, kind, number, payload)
                or self.asyncs.take(source, kind, payload)
                or self.cancels.take(source, kind, payload)
                or self.backgrounds.take(source, kind, payload)
                or self.job_calls.take(kind, payload)
                or self.replays.take(kind, payload)
                or self.feeds.take(source, kind, number, payload)
                or self.peers.take(source, kind, number, payload)
            ):
                return
            if kind == Kind.STORE_ANSWER:
                self.store.on_answer(_decode_answer(payload))
            elif kind == Kind.SYNCED:
                self.syncs.done(number)
            elif kind == Kind.UNSYNCED:
                self.syncs.refused(number)
        except Exception as e:  # noqa: BLE001 - one bad record must not stop the others
            self._crashed(e)

    # -- command word and config --------------------------------------------------------------

    async def _obey(self) -> None:
        """Act on the command word and the config epoch whenever one of them changed."""
        lines = self.lines
        while not self._stopped():
            self._news.clear()
            self._command = command = lines.command
            if command == Command.STOP:
                await self._stop()
            elif command == Command.DRAIN and self.stage is Life.RUNNING:
                await self._begin_drain()
            elif command == Command.PARK:
                lines.state = SeatState.PARKED
            elif command == Command.RUN and self.stage is Life.RUNNING:
                await self._serve_slot()
            if self.stage is Life.DRAINING and self._empty():
                await self._stop()
            self._catch_up()
            if not self._stopped():
                await self._news.wait()

    def _stopped(self) -> bool:
        return self.stage is Life.STOPPED

    async def _serve_slot(self) -> None:
        slot = self.lines.slot
        if slot != NO_SLOT and slot != self.owner.slot:
            self.owner.slot = slot
            for edge in self._edges.values():
                edge.open()
            _title(slot, self._cpu())
        await self.listening.follow(slot)
        if self.lines.state != SeatState.READY:
            self.lines.state = SeatState.READY

    def _cpu(self) -> int:
        """The CPU this process is bound to, or -1; a spare is bound when it gets its slot."""
        handoff = self.handoff
        if handoff.cpu >= 0 or handoff.portable or not hasattr(os, "sched_getaffinity"):
            return handoff.cpu
        cpus = os.sched_getaffinity(0)
        return next(iter(cpus)) if len(cpus) == 1 else -1

    def _catch_up(self) -> None:
        if self._ahead.ready or self.plane.config_epoch != self._epoch_seen:
            self._adopt_config()

    def _adopt_config(self) -> None:
        """Build the new chain; a failure vetoes the change for the whole host."""
        epoch, before = self.plane.config_epoch, self.env
        try:
            config, epoch = self._read_config()
            if self._ahead.waits(epoch, config.backends):
                return
            self.env = with_tier(before, config, self.pipeline.config)
            built = build(config, self.env, epoch, keep=self.pipeline)
            certificate = server_context(config.server.tls) if self.tls is not None else None
            table = self._endpoints(config)
        except (TpoError, OSError, ValueError) as e:
            self._epoch_seen = epoch
            self.env = given_back(self.env, before)
            if isinstance(e, TpoError) and e.reason == NAMES_HELD:
                self.loop.call_later(NAMES_AGAIN_S, self._adopt_config)
                return
            last_words(self.handoff, str(e))
            self.lines.config_nack = epoch
            return
        given_back(before, self.env)
        use_lines(self.engines, built)
        old, self.pipeline = self.pipeline, built
        self.owner.use(built)
        resize_edges(self._edges, msgspec.structs.asdict(config.pipeline.edges))
        self.feeds.settings = config.server.streams
        self.edge.configure(config.server, policy_of(config.server), keyring_of(config.auth))
        self.edge.stamp = self._stamp(config)
        if self.tls is not None and certificate is not None:
            self.tls.use(certificate)
        self.edge.use(table)
        self.owner.table = table
        for name, backend in old.backends.items():
            if built.backends.get(name) is not backend:
                backend.close()
        self.lines.config_ack = epoch

    async def _begin_drain(self) -> None:
        self.stage = Life.DRAINING
        self.lines.state = SeatState.DRAINING
        leaving = self.plane.host_state >= HostState.DRAINING
        await self.listening.drain(for_all=leaving)
        self.listening.close()
        self.owner.draining = leaving
        self.feeds.drain()
        if leaving:
            self.edge.drain(LEAVING_LINGER_S, fresh_s=LEAVING_FRESH_S)
        else:
            self.edge.drain(LINGER_S)

    def _empty(self) -> bool:
        """Whether nothing is left to do here."""
        jobs = self.job_calls.busy or self.replays.busy
        busy = self.owner.open or self.mesh.busy or self.feeds.busy or jobs
        return not busy and not self.edge.open_connections and not self.listening.handshakes

    async def _stop(self) -> None:
        """End what is open with an error its client can read, account for it, leave."""
        self.owner.draining = True
        self.listening.close()
        self.edge.drain(0.0)
        self.owner.stop_all(
            Draining("this gateway is shutting down", reason="draining", retry_after_s=1)
        )
        given_back(self.env)
        # Two turns: deliveries are accounted, then their bytes leave the transports.
        for _ in range(4):
            await asyncio.sleep(0.01)
            if not self.edge.open_connections:
                break
        self.account.flush()
        self.stage = Life.STOPPED
        self.lines.state = SeatState.STOPPED


def _title(slot: int, cpu: int) -> None:
    setproctitle(f"tpo: shard-{slot:02d}" + (f"@cpu{cpu}" if cpu >= 0 else ""))


async def main(handoff: Handoff, lifeline_fd: int) -> None:
    """Build and run the shard."""
    shard = Shard(handoff, lifeline_fd)
    await shard.run()
