"""Accounts for finished calls: metric cells, call records, registry slots.

Work that no client waits for is queued here and done once per turn of the loop.
Records leave in batches; a call's registry slot is released only after its record was pushed, so
a crash can lose neither both nor an unfinished call.

Invariants: one row of cells per (path, model, backend, status), at most 1 024 rows, then "other";
a full ring keeps records here, at most 8 192, then the oldest are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING

import msgspec

from tpo_mp.errors import TpoError
from tpo_mp.ports import Counter, Metrics
from tpo_mp.shm.frames import HEAD, Kind, RecordFrame
from tpo_mp.shm.registry import RegistryWriter, SlotState
from tpo_mp.types import STAGES, Terminal

if TYPE_CHECKING:
    from tpo_mp.pipeline.delivery import Delivery

BATCH = 64
MAX_KEPT = 8192
MAX_ROWS = 1024
DURATION_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
TTFT_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class _Row:
    """The cells of one label tuple."""

    __slots__ = ("calls", "completion", "duration", "prompt", "stream", "ttft", "upstream")

    def __init__(self, m: Metrics, path: str, model: str, backend: str, status: str) -> None:
        self.calls = m.counter("tpo_requests_total", "Requests answered.", path=path, code=status)
        self.duration = m.histogram(
            "tpo_request_duration_seconds", "Request to last byte.", DURATION_S, path=path
        )
        self.upstream = m.histogram(
            "orchestrator_stage_duration_seconds", "Time in a stage.", DURATION_S, stage="inference"
        )
        self.stream = m.histogram(
            "orchestrator_stage_duration_seconds", "Time in a stage.", DURATION_S, stage="stream"
        )
        self.ttft = m.histogram(
            "inference_time_to_first_token_seconds",
            "Request to first upstream byte.",
            TTFT_S,
            worker=backend,
            model=model,
        )
        self.completion = m.counter(
            "orchestrator_tokens_generated_total", "Completion tokens.", worker_type=backend
        )
        self.prompt = m.counter("tpo_prompt_tokens_total", "Prompt tokens.", backend=backend)


class Account:
    """One shard's books."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        registry: RegistryWriter,
        push: Callable[[bytes], bool],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """``push`` sends one RECORDS frame to control; False means its ring is full."""
        self._loop = loop
        self._metrics = metrics
        self._registry = registry
        self._push = push
        self._on_crash = on_crash
        self._queue: list[Delivery] = []
        self._records: list[RecordFrame] = []
        self._slots: list[int] = []
        self._rows: dict[tuple[str, str, str, int], _Row] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._scheduled = False
        self.stages: dict[str, Counter] = {
            s: metrics.counter(
                "orchestrator_requests_total", "Calls that reached a stage.", stage=s
            )
            for s in STAGES
        }
        self._shed = metrics.counter(
            "orchestrator_requests_shed_total", "Calls shed.", stage="inference"
        )
        self._terminal: dict[str, Counter] = {
            t.value: metrics.counter(
                "tpo_calls_total", "Calls by how they ended.", terminal=t.value
            )
            for t in Terminal
        }
        self._errors: dict[str, Counter] = {}
        self._dropped = metrics.counter(
            "tpo_records_dropped_total", "Call records lost to a full ring."
        )
        self.wall_offset = time()
        self.clock_offset = loop.time()

    def add(self, delivery: Delivery) -> None:
        """Queue one finished call."""
        self._queue.append(delivery)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        queue, self._queue = self._queue, []
        for delivery in queue:
            try:
                self._enter(delivery)
            except Exception as e:  # noqa: BLE001 - bookkeeping must not end the shard
                self._on_crash(e)
        if len(self._records) >= BATCH:
            self.flush()

    def _enter(self, delivery: Delivery) -> None:
        call, reply = delivery.call, delivery.reply
        backend, model, status = call.backend or "none", call.model, delivery.status or 499
        row = self._rows.get((delivery.template, model, backend, status))
        if row is None:
            row = self._new_row(delivery.template, model, backend, status)
        duration_s = delivery.finished_at - call.started_at
        row.calls.inc()
        row.duration.observe(duration_s)
        self._terminal[delivery.terminal].inc()
        prompt = completion = -1
        first_s = 0.0
        if call.first_byte_at:
            first_s = call.first_byte_at - call.started_at
            row.ttft.observe(first_s)
            row.upstream.observe(call.first_byte_at - call.upstream_at)
        if reply is not None:
            if reply.stream is not None:
                row.stream.observe(delivery.finished_at - call.first_byte_at)
            if reply.usage is not None:
                prompt, completion = reply.usage.prompt, reply.usage.completion
                if completion > 0:
                    row.completion.inc(completion)
                if prompt > 0:
                    row.prompt.inc(prompt)
        self._count_stages(call.attempts, reply is not None, delivery.terminal)
        error = delivery.error
        if error is not None:
            self._count_error(error)
        exchange = delivery.exchange
        finished = self.wall_offset + delivery.finished_at - self.clock_offset
        self._records.append(
            RecordFrame(
                call.id,
                finished,
                finished - duration_s,
                exchange.head.method,
                delivery.template,
                status,
                delivery.terminal.value,
                model,
                backend,
                call.stream,
                call.tenant,
                call.key_id,
                call.session or "",
                call.client_request_id,
                prompt,
                completion,
                delivery.bytes_in,
                delivery.bytes_out,
                duration_s,
                first_s,
                call.attempts,
                call.shard,
                "" if error is None else error.reason,
                exchange.peer,
            )
        )
        if call.slot >= 0:
            self._slots.append(call.slot)

    def _new_row(self, path: str, model: str, backend: str, status: int) -> _Row:
        if len(self._rows) >= MAX_ROWS:
            model = backend = "other"
            row = self._rows.get((path, model, backend, status))
            if row is not None:
                return row
        row = _Row(self._metrics, path, model, backend, str(status))
        self._rows[path, model, backend, status] = row
        return row

    def _count_stages(self, attempts: int, replied: bool, terminal: Terminal) -> None:
        stages = self.stages
        stages["rag"].inc()
        stages["assemble"].inc()
        if attempts:
            stages["inference"].inc()
        if replied:
            stages["post_process"].inc()
            stages["stream"].inc()
        if terminal is Terminal.SHED:
            self._shed.inc()

    def _count_error(self, error: TpoError) -> None:
        counter = self._errors.get(error.label)
        if counter is None:
            counter = self._errors[error.label] = self._metrics.counter(
                "orchestrator_errors_total",
                "Failed calls.",
                stage="inference",
                error_type=error.label,
            )
        counter.inc()

    def flush(self) -> None:
        """Push what waits to control, then release the slots it accounts for."""
        while self._records:
            batch = self._records[:BATCH]
            if not self._push(HEAD.pack(Kind.RECORDS, 0) + self._encode(batch)):
                break
            del self._records[:BATCH]
        if len(self._records) > MAX_KEPT:
            lost = len(self._records) - MAX_KEPT
            del self._records[:lost]
            self._dropped.inc(lost)
        if not self._records:
            close = self._registry.close
            for slot in self._slots:
                close(slot)
            self._slots.clear()

    def settle_slot(self, slot: int) -> None:
        """Note at once that the call in ``slot`` needs no dead letter any more."""
        self._registry.set_state(slot, SlotState.SETTLED)
