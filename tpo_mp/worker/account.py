"""Accounts for finished calls: metric cells, call records, registry slots.

Work that no client waits for is queued here and done once per turn of the loop.
Records leave in batches; a call's registry slot is released only after its record was pushed, and
at once then, so a crash can lose neither both nor an unfinished call, and control finds a slot's
record among the last that came.  Only when control takes no records and the slots run out are those
of settled calls released early.

Invariants: one row of cells per (path, model, backend, status), at most 1 024 rows, then "other";
a full ring keeps records here, at most 8 192, then the oldest are dropped and counted; text in
records fits a ring record, and when more than ``MOST_TEXT`` of it waits here, others go without.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tpo_mp.dialects import tags
from tpo_mp.errors import InvalidRequest
from tpo_mp.pipeline.delivery import UnexpectedError, forget_frames
from tpo_mp.pipeline.endings import end_of, tell_ended
from tpo_mp.pipeline.spending import (
    COST,
    PROMPT,
    SAVED_CALLS,
    SAVED_COST,
    SAVED_TOKENS,
    UNPRICED,
)
from tpo_mp.pipeline.stage_times import DURATION_S, NAME, TEXT
from tpo_mp.ports import PriceList, Unpriced
from tpo_mp.shm import failpoints
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.metrics import CellCounter, MetricsBlock
from tpo_mp.shm.registry import RegistryWriter
from tpo_mp.shm.series import NANO
from tpo_mp.types import DONE, STAGES, Call, Terminal, Usage

from .letters import Letters
from .model_labels import ModelLabels

if TYPE_CHECKING:
    from tpo_mp.http.head import Head
    from tpo_mp.pipeline.audited import Said
    from tpo_mp.pipeline.delivery import Delivery
    from tpo_mp.pipeline.kept import ToldAnswer
    from tpo_mp.pipeline.recall import Recalled

BATCH = 64
MAX_KEPT = 8192
MAX_ROWS = 1024
MOST_TEXT = 8 << 20
_NO_TEXTS = (None, None, 0)
_OF_REPEATS = ("rag", "assemble", "post_process", "stream")
"""Stages that a call goes through which no backend was asked for."""
TTFT_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A histogram is its buckets, +Inf, and then the sum in microseconds.
_DURATION_SUM = len(DURATION_S) + 1
_TTFT_SUM = len(TTFT_S) + 1


class _Row:
    """The cells of one label tuple, by index: hot code adds to them in line.

    What is only added up, not put into buckets, is added up here first: a cell costs thrice as much
    as a number, and calls end by the dozen.
    """

    __slots__ = (
        "calls", "completion", "completion_n", "cost", "cost_nano", "duration", "duration_us", "n",
        "prompt", "prompt_n", "stream", "ttft", "ttft_us", "unpriced", "upstream", "upstream_us",
    )  # fmt: skip

    def __init__(self, m: MetricsBlock, path: str, model: str, backend: str, status: str) -> None:
        self.calls = m.counter(
            "tpo_requests_total", "Requests answered.", path=path, code=status
        ).index
        self.duration = m.histogram(
            "tpo_request_duration_seconds", "Request to last byte.", DURATION_S, path=path
        ).index
        self.upstream = m.histogram(NAME, TEXT, DURATION_S, stage="inference").index
        self.stream = m.histogram(NAME, TEXT, DURATION_S, stage="stream").index
        self.ttft = m.histogram(
            "inference_time_to_first_token_seconds",
            "Request to first upstream byte.",
            TTFT_S,
            worker=backend,
            model=model,
        ).index
        self.completion = m.counter(
            "orchestrator_tokens_generated_total", "Completion tokens.", worker_type=backend
        ).index
        self.prompt = m.counter(*PROMPT, backend=backend).index
        self.cost = m.money(*COST, worker=backend, model=model).index
        self.unpriced = m.counter(*UNPRICED, model=model).index
        self._clear()

    def _clear(self) -> None:
        self.n = self.duration_us = self.ttft_us = self.upstream_us = 0
        self.cost_nano = self.completion_n = self.prompt_n = 0

    def pay_in(self, cells: memoryview) -> None:
        """Move to the cells what was added up here."""
        try:
            cells[self.calls] += self.n
            cells[self.duration + _DURATION_SUM] += self.duration_us
            cells[self.ttft + _TTFT_SUM] += self.ttft_us
            cells[self.upstream + _DURATION_SUM] += self.upstream_us
            cells[self.cost] += self.cost_nano
            cells[self.completion] += self.completion_n
            cells[self.prompt] += self.prompt_n
        finally:
            self._clear()


class Repeat(NamedTuple):
    """A request that was answered as one before it, without becoming a call; instants as a call's.

    ``known`` and ``told`` are what it asked and what it was told.
    """

    known: Recalled
    told: ToldAnswer
    call_id: str
    head: Head
    started_at: float
    finished_at: float
    shard: int
    peer: str
    bytes_in: int
    bytes_out: int


class _Books:
    """Where repeats of one request are entered, and what each of them saves."""

    __slots__ = (
        "cached",
        "calls_saved",
        "completion",
        "cost",
        "path",
        "prompt",
        "row",
        "saved_nano",
        "tokens",
        "tokens_saved",
        "told",
    )  # fmt: skip

    def __init__(
        self, told: ToldAnswer, path: str, row: _Row,
        saved: tuple[CellCounter, CellCounter, CellCounter], dollars: float | None,
    ) -> None:  # fmt: skip
        usage = told.usage() or Usage()
        self.told = told
        self.path = path
        self.row = row
        self.prompt, self.completion, self.cached = usage.prompt, usage.completion, usage.cached
        self.calls_saved, self.tokens_saved = saved[0].index, saved[1].index
        self.cost = saved[2].index
        self.tokens = max(usage.prompt, 0) + max(usage.completion, 0)
        self.saved_nano = 0 if dollars is None else round(dollars * NANO)


class Account:
    """One shard's books."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: MetricsBlock,
        registry: RegistryWriter,
        push: Callable[[bytes], bool],
        max_record: int,
        letters: Letters,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """``push`` sends one RECORDS frame to control; False means its ring is full."""
        self._loop = loop
        self._metrics = metrics
        self._cells = metrics.cells
        self._registry = registry
        self._push = push
        self._max_record = max_record
        self._batch = BATCH
        self._letters = letters
        self.on_crash = on_crash
        self._queue: list[Delivery] = []
        self._repeats: list[Repeat] = []
        self.on_entered: Callable[[], None] = lambda: None
        """Told when repeats are in the books: their records were pushed, if there was room."""
        self._records: list[tuple[object, ...]] = []
        self._text = 0  # characters of prompts and answers among them
        self._slots: list[int] = []
        """Of each record's call; -1: none."""
        self.models = ModelLabels()
        self.prices: PriceList = Unpriced()
        """What models cost under the present configuration; its owner sets it."""
        self._rows: dict[tuple[str, str, str, int], _Row] = {}
        self._touched: list[_Row] = []
        """Those with something to pay in."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._scheduled = False
        counter = metrics.counter
        text = "Calls that reached a stage."
        self._stages = {s: counter("orchestrator_requests_total", text, stage=s) for s in STAGES}
        text = "Calls shed."
        self._shed = {s: counter("orchestrator_requests_shed_total", text, stage=s) for s in STAGES}
        text = "Calls by how they ended."
        self._terminal = {t: counter("tpo_calls_total", text, terminal=t.value) for t in Terminal}
        self._hit = counter("orchestrator_cache_hits_total", "Calls answered from the cache.")
        text = "Calls the cache had no answer to."
        self._missed = counter("orchestrator_cache_misses_total", text)
        text = "Calls told again what an equal one before them was told, without being read."
        self._repeated = counter("tpo_repeats_total", text)
        self._saved: dict[tuple[str, str], tuple[CellCounter, CellCounter, CellCounter]] = {}
        self._errors: dict[tuple[str, str], CellCounter] = {}
        self._dropped = counter("tpo_records_dropped_total", "Records lost to a full ring.")
        # Monotonic instants become wall instants by one offset, refreshed by ``tick``.
        self._wall_offset = time() - monotonic()

    def add(self, delivery: Delivery) -> None:
        """Queue one finished call."""
        self._queue.append(delivery)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def add_repeat(self, repeat: Repeat) -> None:
        """Queue one that was answered as a call before it."""
        self._repeats.append(repeat)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._repeats:
            try:
                self._enter_repeats()
            except Exception as e:  # noqa: BLE001 - as below
                self.on_crash(e)
            self.on_entered()
        if self._queue:
            self._enter_calls()
        if len(self._records) >= BATCH:
            self.flush()

    def _enter_repeats(self) -> None:
        """Enter them as ``_enter`` does calls; their records go now: no slots tell of them."""
        if failpoints.ACTIVE:
            failpoints.hit("books.repeats")
        repeats, self._repeats = self._repeats, []
        cells, n = self._cells, len(repeats)
        for repeat in repeats:
            known, told, call_id, head, started_at, finished_at, *rest = repeat
            books: _Books | None = known.books
            if books is None or books.told is not told:
                books = known.books = self._books_of(repeat)
            row, took_s = books.row, finished_at - started_at
            cells[row.calls] += 1
            at = row.duration
            cells[at + bisect_left(DURATION_S, took_s)] += 1
            cells[at + _DURATION_SUM] += int(took_s * 1e6)
            cells[books.calls_saved] += 1
            cells[books.tokens_saved] += books.tokens
            cells[books.cost] += books.saved_nano
            shard, peer, bytes_in, bytes_out = rest
            principal, finished = head.principal, self._wall_offset + finished_at
            request = known.request
            # The fields of ``frames.RecordFrame``, in its order.
            self._records.append((
                call_id, finished, finished - took_s, head.method, books.path, 200, Terminal.DONE,
                request.model, "none", told.stream, principal.tenant, principal.key_id,
                head.session or "", head.request_id, books.prompt, books.completion, bytes_in,
                bytes_out, took_s, 0.0, 0, shard, "", peer, 0.0, books.cached, "hit", "",
            ))  # fmt: skip
            self._slots.append(-1)
        stages = self._stages
        for stage in _OF_REPEATS:
            stages[stage].inc(n)
        self._hit.inc(n)
        self._repeated.inc(n)
        self._terminal[Terminal.DONE].inc(n)
        self.flush()

    def _books_of(self, repeat: Repeat) -> _Books:
        model, usage = repeat.known.request.model, repeat.told.usage() or Usage()
        label = model if model in self.models.known else self.models.label(model, 200)
        path = repeat.head.endpoint.template if repeat.head.endpoint else ""
        row = self._rows.get((path, label, "none", 200))
        if row is None:
            row = self._new_row(path, label, "none", 200)
        dollars = self.prices.saved_usd(model, usage.prompt, usage.completion)
        return _Books(repeat.told, path, row, self._saved_by("hit", label), dollars)

    def _enter_calls(self) -> None:
        if failpoints.ACTIVE:
            failpoints.hit("books.calls")
        queue, self._queue = self._queue, []
        enter = self._enter
        admitted = inferred = replied = done = unassembled = 0
        for delivery in queue:
            call = delivery.call
            try:
                enter(delivery)
            except Exception as e:  # noqa: BLE001 - bookkeeping must not end the shard
                self.on_crash(e)
                if call.slot >= 0:
                    self._registry.close(call.slot)
            if call.endings is not None:
                try:
                    tell_ended(call, end_of(delivery))
                except Exception as e:  # noqa: BLE001 - as above
                    self.on_crash(e)
            if call.admitted:
                admitted += 1
            if call.attempts:
                inferred += 1
            if delivery.reply is not None:
                replied += 1
            if delivery.error is None:
                done += 1
            else:
                unassembled += self._note_error(delivery) == "rag"
        for row in self._touched:
            try:
                row.pay_in(self._cells)
            except Exception as e:  # noqa: BLE001 - as above
                self.on_crash(e)
        self._touched.clear()
        stages = self._stages
        stages["rag"].inc(admitted)
        stages["assemble"].inc(admitted - unassembled)
        stages["inference"].inc(inferred)
        stages["post_process"].inc(replied)
        stages["stream"].inc(replied)
        self._terminal[DONE].inc(done)

    def _enter(self, delivery: Delivery) -> None:
        """Add one call to its row, and its record to the batch."""
        call, reply = delivery.call, delivery.reply
        path, model, status = delivery.template, call.model, delivery.status or 499
        backend = call.backend or "none"
        label = model if model in self.models.known else self.models.label(model, status)
        row = self._rows.get((path, label, backend, status))
        if row is None:
            row = self._new_row(path, label, backend, status)
        cells = self._cells
        finished_at = delivery.finished_at
        duration_s = finished_at - call.started_at
        if not row.n:
            self._touched.append(row)
        row.n += 1
        cells[row.duration + bisect_left(DURATION_S, duration_s)] += 1
        row.duration_us += int(duration_s * 1e6)
        prompt = completion = -1
        cached = 0
        cost: float | None = 0.0 if not call.attempts else None
        first_s = 0.0
        first_byte_at = call.first_byte_at
        if first_byte_at:
            first_s = first_byte_at - call.started_at
            cells[row.ttft + bisect_left(TTFT_S, first_s)] += 1
            row.ttft_us += int(first_s * 1e6)
            waited_s = first_byte_at - call.upstream_at
            cells[row.upstream + bisect_left(DURATION_S, waited_s)] += 1
            row.upstream_us += int(waited_s * 1e6)
        if reply is not None:
            if reply.stream is not None and first_byte_at:
                streamed_s = finished_at - first_byte_at
                at = row.stream
                cells[at + bisect_left(DURATION_S, streamed_s)] += 1
                cells[at + _DURATION_SUM] += int(streamed_s * 1e6)
            usage = reply.usage
            if usage is not None:
                prompt, completion, cached = usage.prompt, usage.completion, usage.cached
                if call.attempts:
                    cost = self.prices.cost_usd(model, prompt, completion, cached)
                    if cost is not None:
                        row.cost_nano += round(cost * NANO)
                    else:
                        cells[row.unpriced] += 1
                    if completion > 0:
                        row.completion_n += completion
                    if prompt > 0:
                        row.prompt_n += prompt
        aside = call.aside
        if aside is not None and cost is not None:
            cost += aside.cost_usd
        if call.cache == "miss":
            self._missed.inc()
        elif call.cache:
            # Who joined a call and was left to pay for it has saved nothing.
            saved = not call.attempts and delivery.error is None
            self._note_cache(call.cache, model, label, prompt, completion, saved=saved)
        error, exchange = delivery.error, delivery.exchange
        finished = self._wall_offset + finished_at
        # The fields of ``frames.RecordFrame``, in its order.
        record = (
            call.id, finished, finished - duration_s, exchange.head.method, path, status,
            delivery.terminal, model, backend, call.stream, call.tenant, call.key_id,
            call.session or "", call.client_request_id, prompt, completion, delivery.bytes_in,
            delivery.bytes_out, duration_s, first_s, call.attempts, call.shard,
            "" if error is None else error.reason, delivery.peer, cost, cached, call.cache,
            call.guard,
        )  # fmt: skip
        more = () if call.audited is None else self._said(call)
        if aside is not None:
            more = (*(more or _NO_TEXTS), aside.tokens)
        head = exchange.head
        if head.special and tags.HEADER in head.headers:
            more = _tagged(more, head.headers[tags.HEADER])
        self._records.append(record + more if more else record)
        self._slots.append(call.slot)

    def _said(self, call: Call) -> tuple[object, ...]:
        """The fields of a record that hold the text of a call, where that is kept."""
        room = self._max_record // 4 if self._text < MOST_TEXT else 0
        try:
            said: Said = call.audited.said(call, room)
        except Exception as e:  # noqa: BLE001 - a record without its text is better than none
            self.on_crash(e)
            return ()
        self._text += len(said.input or "") + len(said.output or "")
        return said

    def _note_cache(
        self, how: str, model: str, label: str, prompt: int, completion: int, *, saved: bool
    ) -> None:
        """Count a call that a cache answered, and what that saved."""
        if how == "hit":
            self._hit.inc()
        if not saved:
            return
        calls, tokens, cost = self._saved_by(how, label)
        calls.inc()
        tokens.inc(max(prompt, 0) + max(completion, 0))
        dollars = self.prices.saved_usd(model, prompt, completion)
        if dollars is not None:
            self._cells[cost.index] += round(dollars * NANO)

    def _saved_by(self, how: str, label: str) -> tuple[CellCounter, CellCounter, CellCounter]:
        """Where calls, tokens and dollars are counted that a cache saved."""
        row = self._saved.get((how, label))
        if row is None:
            money, counter = self._metrics.money, self._metrics.counter
            row = self._saved[how, label] = (
                counter(*SAVED_CALLS, by=how), counter(*SAVED_TOKENS, by=how),
                money(*SAVED_COST, by=how, model=label),
            )  # fmt: skip
        return row

    def _new_row(self, path: str, model: str, backend: str, status: int) -> _Row:
        if len(self._rows) >= MAX_ROWS:
            model = backend = "other"
            row = self._rows.get((path, model, backend, status))
            if row is not None:
                return row
        row = _Row(self._metrics, path, model, backend, str(status))
        self._rows[path, model, backend, status] = row
        return row

    def _note_error(self, delivery: Delivery) -> str:
        """Count one failed call; answers the stage it failed in."""
        self._letters.add(delivery)
        if isinstance(delivery.error, UnexpectedError) and delivery.error.__cause__ is not None:
            self.on_crash(delivery.error.__cause__)
            forget_frames(delivery.error)
        self._terminal[delivery.terminal].inc()
        assert delivery.error is not None
        stage, label = _stage_of(delivery), delivery.error.label
        if delivery.terminal is Terminal.SHED:
            self._shed[stage if stage in self._shed else "inference"].inc()
        counter = self._errors.get((stage, label))
        if counter is None:
            counter = self._errors[stage, label] = self._metrics.counter(
                "orchestrator_errors_total", "Failed calls.", stage=stage, error_type=label
            )
        counter.inc()
        return stage

    def tick(self) -> None:
        """Follow the wall clock, and push what waits."""
        self._wall_offset = time() - monotonic()
        self.flush()

    def flush(self) -> None:
        """Push what waits to control, and release the slots it accounts for.

        Letters go first: to whoever finds its record, a call needs no letter.
        """
        lettered = self._letters.flush()
        while self._records and lettered:
            frame = HEAD.pack(Kind.RECORDS, 0) + self._encode(self._records[: self._batch])
            if len(frame) > self._max_record and self._batch > 1:
                self._batch //= 2  # long names, or the small rings of a host with many seats
                continue
            if len(frame) <= self._max_record and not self._push(frame):
                break
            self._forget(self._batch)
        if len(self._records) > MAX_KEPT:
            lost = len(self._records) - MAX_KEPT
            self._forget(lost)
            self._dropped.inc(lost)
        if not self._records:
            self._text = 0

    def _forget(self, n: int) -> None:
        """Let go of the first records, and of their slots."""
        del self._records[:n]
        slots, self._slots = self._slots[:n], self._slots[n:]
        for slot in slots:
            if slot >= 0:
                self._registry.close(slot)

    def release(self) -> bool:
        """Let go of the slots of settled calls; answers whether there were any.

        Without control nobody takes their records, and new calls need the room.
        """
        slots = [slot for slot in self._slots if slot >= 0]
        self._slots = [-1] * len(self._slots)
        for slot in slots:
            self._registry.close(slot)
        return bool(slots)


def _tagged(more: tuple[object, ...], header: bytes) -> tuple[object, ...]:
    """The last fields of a record, with what its client calls the call."""
    try:
        named = tags.tags_of(header)
    except InvalidRequest:  # the call was refused for it
        return more
    more = more or _NO_TEXTS
    return (*more, *([0] if len(more) == len(_NO_TEXTS) else []), named)


def _stage_of(delivery: Delivery) -> str:
    """Where a call failed: where the chain says, else as far as it is known to have come."""
    assert delivery.error is not None
    if delivery.error.stage:
        return delivery.error.stage
    if not delivery.call.admitted:
        return "admit"
    return "inference" if delivery.reply is None else "stream"
