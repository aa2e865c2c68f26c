"""The control process: rings, store, harvest and ops port on one loop.

Tasks, by name:
**beat** (the liveness counter, command word, config epoch, and a look at the rings besides their
doorbell; every 50 ms, every 20 while a batch runs),
**harvest** (calls of dead workers, the copy of the open ones and the counts on disk; every 250 ms),
**folders** (documents in configured folders, looked at on a thread of its own),
**probing** (backends are asked whether they are well, each in its own time).
They end together when ``ending`` is set: by the command STOP, by DRAIN once no worker is left, by
the lifeline, or by an error nobody expected.

Invariants: nothing on the loop blocks; the disk belongs to the keeper.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

from tpo_mp.errors import TpoError
from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.observe.log import configure as configure_log
from tpo_mp.pipeline.breaker_board import BreakerSeries
from tpo_mp.pipeline.poison import DEATHS, Poison
from tpo_mp.pipeline.scoring import BackendTally, Scoreboard
from tpo_mp.shm import failpoints
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.epochs import ConfigBuffer
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.ledger import LEDGER_ROWS, SharedLedger
from tpo_mp.shm.lifeline import last_words
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import Command, HostState, Plane, SeatState
from tpo_mp.shm.quotas import SharedQuotas
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import SharedScores
from tpo_mp.shm.shares import SharedShares
from tpo_mp.store.shelf import Shelf

from .accesslog import AccessLog
from .copies import Copies
from .counts import Counts
from .desk import Desk
from .engine_series import EngineSeries
from .faults import faulty_disk
from .folders import Folders
from .gauges import ControlGauges
from .harvest import Harvest, Suspect
from .idempotency import KeyDesk
from .jobs import JobRunner
from .keeper import Keeper
from .mail import Mail
from .ops import OpsPort
from .options import ControlOptions, read_options
from .probing import Probing
from .replays import Replays
from .reruns import Reruns

BEAT_S = 0.05
"""Between beats, and looks at the mail: once for both, for it shares a core, and a bell rings."""
BUSY_BEAT_S = 0.02
"""While a batch runs."""
RETRY_S = 0.001
HARVEST_S = 0.25
MOST_ROUNDS = 64
FLUSH_S = 3.0
LAST_ROUNDS = 64
SUSPECT_S = 1.0
"""A beat later than this is on the way to counting as a hang."""
HUSH_S = 0.25
SETTLE_S = 2.0
"""Without getting on; it is over as soon as nothing is left to write down."""


class ControlProcess:
    """One occupation of the control seat."""

    def __init__(self, handoff: Handoff, loop: asyncio.AbstractEventLoop) -> None:
        """Attach everything; raises ``Fault`` when memory is not laid out as we know it."""
        self.handoff = handoff
        self.plane = Plane.attach(handoff.plane_fd)
        self.line = self.plane.seat(handoff.seat)
        self.line.state = SeatState.BOOTING
        self._loop = loop
        self._config = ConfigBuffer.attach(handoff.config_fd)
        self._config_epoch = 0
        self.options = self._first_options()
        self.log = self._configure_log()
        self._arena = MetricsArena.attach(handoff.metrics_fd, handoff.seats)
        metrics = self._arena.block(handoff.seat, handoff.epoch)
        self._gauges = ControlGauges(metrics)
        self._bells = [Doorbell.attach(r, w) for r, w in handoff.doorbells]
        self._bell = self._bells[handoff.seat]
        self._access = AccessLog()
        self.keeper = Keeper(self._open_shelf, loop, self.log, on_crash=self._crashed)
        table = RowTable.attach(handoff.ledger_fd, handoff.locks_fd, LEDGER_ROWS)
        ledger = SharedLedger(table, metrics)
        quotas = SharedQuotas.of_host(handoff.quotas_fd, table, self.plane, handoff.seat, metrics)
        self.counts = Counts(quotas, ledger, self.keeper, self.log)
        self._poison = Poison(ledger, time.monotonic, metrics)
        series = BreakerSeries(self._arena, ledger, time.monotonic)
        self.desk = Desk(self.plane, self.keeper, self._on_records)
        self.mail = Mail(
            RingMesh.attach(handoff.rings_fd, handoff.seats), self.plane, handoff.seat,
            handoff.epoch, self._bells, self.desk.handle,
        )  # fmt: skip
        self.desk.mail = self.mail
        registry = Registry.attach(handoff.registry_fd, handoff.seats, self.options.max_open_calls)
        self.reruns = Reruns(self.plane, registry, self.mail, time.monotonic)
        self.harvest = Harvest(
            self.plane, registry, self.keeper, self.reruns, self.log, self._read_rings,
            suspect=self._suspect, on_records=self._access.offer,
        )  # fmt: skip
        self.copies = self.desk.copies = Copies(
            self.plane, registry, self.keeper, self.mail, Path(handoff.state_dir),
            faulty_disk() if failpoints.ACTIVE else None,
        )  # fmt: skip
        self.jobs = self.desk.jobs = JobRunner(self.plane, self.keeper, self.mail, registry.run)
        self.replays = self.desk.replays = Replays(self.plane, self.keeper, self.mail, registry.run)
        self.desk.keys = KeyDesk(registry.run, self._lives)
        self.folders = Folders(self.keeper, self.log, metrics)
        scores = SharedScores.of_host(handoff.scores_fd, table, self.plane, handoff.seat)
        shares = SharedShares.of_host(handoff.shares_fd, table, self.plane, handoff.seat)
        self._scores = scores
        self.probing = Probing(ledger, scores, shares, metrics, time.monotonic, self.log)
        self._engines = EngineSeries(ledger, metrics, self._arena)
        self._ops = OpsPort(self.plane, series, lambda: self.options.places,
                            lambda: self.options.models, self._tries)  # fmt: skip
        self._turn_booked = False
        self._beat_at = loop.time()
        self._hushed_until = 0.0
        self.ending = asyncio.Event()
        self.exit_code = 0

    def _tries(self) -> dict[str, BackendTally]:
        return Scoreboard(self._scores, self.options.served).tallies(time.monotonic())

    async def run(self) -> int:
        """Serve until told to end; answers the exit code."""
        self.keeper.start()
        seals = self.options.shelf.letter_caps.seals
        previous = self.harvest.add_previous(Path(self.handoff.state_dir), seals)
        if self.handoff.ops_listener >= 0:
            await self._ops.start(socket.socket(fileno=self.handoff.ops_listener))
        await self.counts.restore()
        self._loop.add_reader(self._bell.fileno(), self._rung)
        self._loop.add_reader(self.handoff.lifeline_fd, self._orphaned)
        self._apply(self.options)
        self.line.config_ack = self._config_epoch
        self.line.state = SeatState.READY
        self.log.info("control_ready", pid=os.getpid(), previous_registries=previous)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._beat(), name="beat"),
                group.create_task(self._harvest(), name="harvest"),
                group.create_task(self.folders.run(), name="folders"),
                group.create_task(self.probing.run(), name="probing"),
            ]
            await self.ending.wait()
            for task in tasks:
                task.cancel()
        beating = self._loop.create_task(self._beat_on(), name="last beats")
        await self._end()
        beating.cancel()
        return self.exit_code

    # -- tasks ------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        words, beat = self.plane.words, self.plane.beat_index(self.handoff.seat)
        due = self._loop.time()
        while True:
            now = self._loop.time()
            if now - self._beat_at > SUSPECT_S:
                self._hushed_until = now + HUSH_S
            self._beat_at = now
            words[beat] += 1
            self.line.loop_lag_us = max(0, int((now - due) * 1e6))
            self.line.now_us = int(now * 1e6)
            self.harvest.look()
            self._obey(self.line.command)
            if self.plane.config_epoch != self._config_epoch:
                self._reconfigure(self.plane.config_epoch)
            self._turn()
            self.desk.flush()
            self.jobs.tick()
            pause_s = BUSY_BEAT_S if self.jobs.busy else BEAT_S
            due = now + pause_s
            await asyncio.sleep(pause_s)

    async def _beat_on(self) -> None:
        """While it ends, which may take longer than the silence that counts as a hang."""
        words, beat = self.plane.words, self.plane.beat_index(self.handoff.seat)
        while True:
            words[beat] += 1
            await asyncio.sleep(BEAT_S)

    async def _harvest(self) -> None:
        while True:
            self.harvest.tick()
            self.copies.tick()
            self.replays.tick()
            self.counts.tick()
            self._show()
            await asyncio.sleep(HARVEST_S)

    def _lives(self, seat: int, epoch: int) -> bool:
        """Whether this occupant of a worker's seat is there; asked on the store's thread."""
        if seat >= self.plane.seats:
            return False
        line = self.plane.seat(seat)
        return line.epoch == epoch and line.pid != 0

    def _suspect(self, suspects: list[Suspect]) -> None:
        for one in suspects:
            deaths = self._poison.mark(one.digest, one.began_at, one.died_by)
            if deaths >= DEATHS:
                self.log.warning("poison_request", deaths=deaths, digest=f"{one.digest:013x}")

    # -- what happens ---------------------------------------------------------------------------

    def _rung(self) -> None:
        self._bell.clear()
        self._turn()

    def _turn(self) -> None:
        """Take what has arrived, push what waits; come back soon while either is not done."""
        try:
            more = not self.keeper.full and not self._condemned() and self.mail.drain()
            waiting = self.mail.flush()
        except Exception as error:  # noqa: BLE001 - the loop would only log it and limp on
            self._crashed(error)
            return
        if (more or waiting) and not self._turn_booked and not self.ending.is_set():
            self._turn_booked = True
            self._loop.call_later(0 if more else RETRY_S, self._booked_turn)

    def _read_rings(self) -> bool:
        """Handle all that has arrived; false when it may not be taken now, or does not end."""
        if self._condemned() or self.keeper.full:
            return False
        return not all(self.mail.drain() for _ in range(MOST_ROUNDS))

    def _condemned(self) -> bool:
        """Whether this process stood still for so long that its end may be under way.

        What it took off a ring now would die with it; on the ring it waits for the next occupant.
        At its own end it takes all it can: where nobody comes next, what is left there is lost.
        """
        if self.ending.is_set():
            return False
        now = self._loop.time()
        return now < self._hushed_until or now - self._beat_at > SUSPECT_S

    def _booked_turn(self) -> None:
        self._turn_booked = False
        self._turn()

    def _orphaned(self) -> None:
        """The supervisor is gone: write down what there is, and go."""
        self._loop.remove_reader(self.handoff.lifeline_fd)
        self.exit_code = 1
        self._stop()

    def _crashed(self, error: BaseException) -> None:
        """Better a new process than a limping one."""
        self.log.error("control_crashed", error=type(error).__name__, exc_info=error)
        last_words(self.handoff, type(error).__name__)
        self.exit_code = 1
        self._stop()

    def _stop(self) -> None:
        self.ending.set()

    def _obey(self, command: int) -> None:
        if command == Command.STOP:
            self._stop()
        elif command == Command.DRAIN:
            self.line.state = SeatState.DRAINING
            idle = (SeatState.EMPTY, SeatState.STOPPED)
            if all(self.plane.seat(n).state in idle for n in range(self.handoff.seats - 1)):
                self._stop()

    def _on_records(self, seat: int, batch: bytes) -> None:
        self.harvest.note_records(seat, batch)
        self._access.offer(batch)

    async def _end(self) -> None:
        self._loop.remove_reader(self._bell.fileno())
        for _ in range(LAST_ROUNDS):
            if not self.mail.drain():
                break
        self.desk.flush()
        if self.plane.host_state > HostState.RUNNING:
            # No successor comes: what the workers left is written down now.
            await self.harvest.settle(SETTLE_S)
            self.copies.end()
        self.counts.end()
        await self._ops.close()
        self._access.close(timeout_s=0.5)
        kept = await self._loop.run_in_executor(None, self.keeper.close, FLUSH_S)
        if not kept:
            self.log.error("store_not_flushed")
            self.exit_code = self.exit_code or 1
        self.line.state = SeatState.STOPPED

    # -- configuration --------------------------------------------------------------------------

    def _first_options(self) -> ControlOptions:
        epoch = self.plane.config_epoch
        blob = self._config.read(epoch) if epoch else None
        self._config_epoch = epoch if blob is not None else 0
        return read_options(blob)

    def _reconfigure(self, epoch: int) -> None:
        blob = self._config.read(epoch)
        if blob is None:
            return
        self._config_epoch = epoch
        try:
            options = read_options(blob)
        except (TpoError, ValueError) as error:
            last_words(self.handoff, f"config: {error}")
            self.line.config_nack = epoch
            return
        self._apply(options)
        self.line.config_ack = epoch

    def _apply(self, options: ControlOptions) -> None:
        self.options = options
        self.log = self._configure_log()
        observability = options.observability
        self._access.configure(
            observability.access_log, "json" if observability.log_format == "json" else "text"
        )
        self._gauges.set_limit(options.max_open_calls)
        self._gauges.set_certificate(options.certificate_expires_at)
        self.keeper.submit(lambda shelf: shelf.configure(options.shelf))
        self.jobs.concurrency = options.job_concurrency
        self.replays.options = options.replay
        self.folders.configure(options.rag)
        self.probing.log = self.log
        self.probing.configure(options.probes, options.backends)
        self._engines.configure(options.engines)
        self.jobs.age_s = options.shelf.jobs.age_s
        self.jobs.max_open_calls = options.max_open_calls
        shelf = options.shelf
        letters = shelf.letter_caps
        self.copies.configure(
            shelf.durability, options.open_copy_bytes, bodies=not letters.redact,
            seals=letters.seals,
        )  # fmt: skip

    def _configure_log(self) -> FilteringBoundLogger:
        observability = self.options.observability
        return configure_log(observability.log_format, observability.log_level, process="control")

    def _open_shelf(self) -> Shelf:
        directory = Path(self.handoff.state_dir) / "store"
        return Shelf(
            directory, self.options.shelf, disk=faulty_disk() if failpoints.ACTIVE else None
        )

    # -- numbers --------------------------------------------------------------------------------

    def _show(self) -> None:
        if self.keeper.state is not None:
            self._gauges.show(self.keeper.state)
        self.probing.show()
        self._engines.show()
        copy = self.copies.copyist
        self._gauges.show_copy(calls=copy.calls, file_bytes=copy.file_bytes, broken=copy.broken)
        self._gauges.show_jobs(open=self.jobs.open, running=self.jobs.running)
        self._gauges.count(
            {
                "tpo_open_copy_errors_total": copy.errors,
                "tpo_open_copy_cut_total": copy.cut,
                "tpo_control_batches_total": self.desk.batches,
                "tpo_control_malformed_total": self.desk.malformed + self.desk.given_up,
                "tpo_control_ring_corrupt_total": self.mail.corrupt,
                "tpo_control_ring_stale_total": self.mail.stale,
                "tpo_control_answers_refused_total": self.mail.refused,
                "tpo_control_letters_total": self.desk.letters,
                "tpo_harvest_letters_total": self.harvest.letters,
                "tpo_harvest_reruns_total": self.reruns.started,
                "tpo_job_prompts_ended_total": self.jobs.ended,
                "tpo_job_prompts_put_back_total": self.jobs.put_back,
                "tpo_access_lines_dropped_total": self._access.dropped,
                "tpo_dlq_replays_total": self.replays.sent,
                "tpo_dlq_replays_repeated_total": self.replays.repeated,
                "orchestrator_dlq_aged_out_total": self.replays.aged_out,
                "tpo_counts_restored_total": self.counts.restored,
                "tpo_counts_written_total": self.counts.written,
            }
        )
