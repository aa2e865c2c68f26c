"""Answers questions about finished calls from the log of their records.

There is no second copy: a page reads the log backwards, a block at a time, and stops at its limit
or when its time is over; the next question goes on from there.
A block that is full is summed up once, so that sums over a long log need not read it again; what
was summed up is forgotten with the process and found again by reading.

Invariants: a question holds the store's thread for ``SLICE_S`` and one block at most; a record is
on exactly one page of a series; sums are exact, or say that they are not ``complete``.
Records that only memory has, because the disk refuses, come first and on the first page only;
``pending`` says how many more there are.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import orjson

from tpo_mp.shm.frames import RecordFrame
from tpo_mp.store.audit_questions import AuditQuery, Cursor
from tpo_mp.store.blocks import BLOCK_BYTES, Block, BlockReader
from tpo_mp.store.sealing import UNSEALED, Seals
from tpo_mp.store.shelf import Shelf

from .sealed_records import opened

SLICE_S: Final = 0.03
FEW_BLOCKS: Final = 8192
MOST_BLOCK_BYTES: Final = 4 << 20
MOST_MODELS: Final = 1000
MOST_TEXT: Final = 1 << 20
"""Characters of prompts and answers after which a page ends."""
_TEXTS: Final = ((1, "input"), (2, "output"))
HITS: Final = frozenset({"hit", "coalesced", "semantic"})

_decode = msgspec.msgpack.Decoder(list[RecordFrame]).decode


@dataclass(slots=True)
class Sums:
    """What some calls come to."""

    calls: int = 0
    hits: int = 0
    latency_s: float = 0.0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    aside: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0

    def add(self, record: RecordFrame) -> None:
        """Count one call."""
        self.calls += 1
        self.hits += record.cache in HITS
        self.latency_s += record.duration_s
        self.prompt += max(record.prompt_tokens, 0)
        self.completion += max(record.completion_tokens, 0)
        self.cached += record.cached_tokens
        self.aside += record.aside_tokens
        self.cost_usd += record.cost_usd or 0.0
        self.unpriced += record.cost_usd is None

    def merge(self, other: Sums) -> None:
        """Count the calls of another."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def told(self) -> dict[str, Any]:
        """As the statistics show it."""
        calls = self.calls
        return {
            "total_entries": calls,
            "cache_hit_rate": self.hits / calls if calls else 0.0,
            "avg_latency_ms": self.latency_s * 1e3 / calls if calls else 0.0,
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "cached_tokens": self.cached,
            "aside_tokens": self.aside,
            "cost_usd": round(self.cost_usd, 9),
            "unpriced": self.unpriced,
        }


@dataclass(slots=True)
class _Summary:
    """A full block: when its calls ended, and their sums by tenant and model."""

    first_at: float = float("inf")
    last_at: float = float("-inf")
    by: dict[tuple[str, str], Sums] = field(default_factory=dict)

    def add(self, record: RecordFrame) -> None:
        self.first_at = min(self.first_at, record.finished_at)
        self.last_at = max(self.last_at, record.finished_at)
        key = record.tenant, record.model
        sums = self.by.get(key)
        if sums is None:
            sums = self.by[key] = Sums()
        sums.add(record)


class AuditReader:
    """Reads one shelf's call records; used by the keeper's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._blocks: BlockReader | None = None
        self._summed: OrderedDict[tuple[int, int], _Summary] = OrderedDict()
        self._most_summed = FEW_BLOCKS

    def page(self, shelf: Shelf, query: AuditQuery) -> bytes:
        """One page, newest first; short, or empty, when looking for more would take long."""
        until = self._clock() + SLICE_S
        entries: list[dict[str, Any]] = []
        pending = 0
        if query.after is None:
            kept = [r for r in _of(shelf.records_in_memory()) if passes(r, query)]
            entries = [entry_of(r, shelf.seals) for r in reversed(kept)][: query.limit]
            pending = len(kept) - len(entries)
        last = query.after
        needles = _needles(query)
        segment, before = (None, None) if last is None else (last.segment, last.before)
        more, room = False, MOST_TEXT
        for looked, block in enumerate(self._reader(shelf).backwards(segment, before)):
            if len(entries) >= query.limit or room <= 0 or (looked and self._clock() >= until):
                more = True
                break
            for place, record in self._matching(block, query, needles):
                if last is not None and (place.segment, place.offset, place.index) >= (
                    last.segment,
                    last.offset,
                    last.index,
                ):
                    continue
                if len(entries) >= query.limit or room <= 0:
                    more = True
                    break
                entries.append(entry_of(record, shelf.seals))
                room -= len(record.input or "") + len(record.output or "")
                room -= sum(len(text or b"") for text in record.sealed)
                last = place
            else:
                last = Cursor(block.segment, block.start, 0)
                continue
            break
        told: dict[str, Any] = {"entries": entries, "count": len(entries)}
        if pending:
            told["pending"] = pending
        if more and last is None:
            last = Cursor(*shelf.records_end, 0)  # memory alone filled the page
        told["next"] = last.text() if more and last is not None else None
        return orjson.dumps(told)

    def stats(self, shelf: Shelf, query: AuditQuery) -> bytes:
        """Sums by model; of ``query`` the model, the tenant and the two instants count."""
        until = self._clock() + SLICE_S
        total: dict[str, Sums] = {}
        for record in _of(shelf.records_in_memory()):
            if passes(record, query):
                _sums_of(total, record.model).add(record)
        complete, fresh = True, 0
        for block in self._reader(shelf).backwards():
            known = (block.segment, block.start) in self._summed
            if fresh and not known and self._clock() >= until:
                complete = False
                break
            fresh += not known and block.closed
            self._add_block(block, query, total)
        everything = Sums()
        for sums in total.values():
            everything.merge(sums)
        by_model = {model: sums.told() for model, sums in sorted(total.items())}
        return orjson.dumps(everything.told() | {"by_model": by_model, "complete": complete})

    # -- inside ---------------------------------------------------------------------------------

    def _reader(self, shelf: Shelf) -> BlockReader:
        if self._blocks is None:
            step, self._most_summed = block_sizes(shelf.records_cap)
            self._blocks = BlockReader(shelf.record_files, step)
        return self._blocks

    def _matching(
        self, block: Block, query: AuditQuery, needles: list[bytes]
    ) -> Iterator[tuple[Cursor, RecordFrame]]:
        """A block's records that pass, newest first."""
        summary = self._summed.get((block.segment, block.start))
        if summary is not None and _outside(summary, query):
            return
        assert self._blocks is not None
        data = self._blocks.read(block)
        if not all(needle in data for needle in needles):
            return
        for offset, payload in reversed(self._blocks.records(block, data)):
            records = _decoded(payload)
            for index in range(len(records) - 1, -1, -1):
                if passes(records[index], query):
                    yield Cursor(block.segment, offset, index), records[index]

    def _add_block(self, block: Block, query: AuditQuery, total: dict[str, Sums]) -> None:
        summary = self._summary(block)
        if _outside(summary, query):
            return
        if _inside(summary, query):
            for (tenant, model), sums in summary.by.items():
                if query.tenant in (None, tenant) and query.model in (None, model):
                    _sums_of(total, model).merge(sums)
            return
        for _, record in self._matching(block, query, []):
            _sums_of(total, record.model).add(record)

    def _summary(self, block: Block) -> _Summary:
        place = block.segment, block.start
        known = self._summed.get(place)
        if known is not None:
            return known
        assert self._blocks is not None
        made = _Summary()
        for _, payload in self._blocks.records(block, self._blocks.read(block)):
            for record in _decoded(payload):
                made.add(record)
        if block.closed:
            self._summed[place] = made
            if len(self._summed) > self._most_summed:
                self._summed.popitem(last=False)
        return made


def block_sizes(cap_bytes: int) -> tuple[int, int]:
    """How long the blocks of a log of so many bytes are, and how many are remembered: all."""
    step = min(max(BLOCK_BYTES, 2 * cap_bytes // FEW_BLOCKS), MOST_BLOCK_BYTES)
    return step, max(FEW_BLOCKS, 2 * cap_bytes // step)


def passes(record: RecordFrame, query: AuditQuery) -> bool:
    """Whether a record is one that is asked for."""
    return (
        (query.model is None or record.model == query.model)
        and (query.tenant is None or record.tenant == query.tenant)
        and (query.key_id is None or record.key_id == query.key_id)
        and (query.session is None or record.session == query.session)
        and (query.request is None or query.request in (record.call_id, record.client_request_id))
        and (query.terminal is None or record.terminal == query.terminal)
        and (query.status is None or record.status == query.status)
        and (query.tag is None or query.tag in record.tags)
        and (query.cache_hit is None or (record.cache in HITS) == query.cache_hit)
        and (query.min_latency_s is None or record.duration_s >= query.min_latency_s)
        and (query.since is None or record.finished_at >= query.since)
        and (query.until is None or record.finished_at < query.until)
    )


def entry_of(record: RecordFrame, seals: Seals = UNSEALED) -> dict[str, Any]:
    """A record as the API shows it; without what was said when that was not kept."""
    entry: dict[str, Any] = {
        "id": record.call_id,
        "client_request_id": record.client_request_id or None,
        "session_id": record.session or None,
        "timestamp": record.finished_at,
        "started_at": record.started_at,
        "model_id": record.model,
        "backend": record.backend,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "terminal": record.terminal,
        "error": record.error or None,
        "stream": record.stream,
        "latency_ms": record.duration_s * 1e3,
        "first_byte_ms": record.first_byte_s * 1e3 if record.first_byte_s > 0 else None,
        "cache_hit": record.cache in HITS,
        "cache": record.cache or None,
        "guard": record.guard or None,
        "prompt_tokens": record.prompt_tokens if record.prompt_tokens >= 0 else None,
        "completion_tokens": record.completion_tokens if record.completion_tokens >= 0 else None,
        "cached_tokens": record.cached_tokens,
        "aside_tokens": record.aside_tokens,
        "cost_usd": record.cost_usd,
        "attempts": record.attempts,
        "shard": record.shard,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "peer": record.peer,
        "tags": record.tags,
    }
    if record.input is not None or record.output is not None or record.sealed:
        said, answered, locked = opened(record, seals)
        entry |= {
            "input": said,
            "output": None if answered is None else [answered],
            "locked": locked,
            "truncated": [name for bit, name in _TEXTS if record.cut & bit],
        }
    return entry


def _decoded(payload: bytes) -> list[RecordFrame]:
    with contextlib.suppress(msgspec.MsgspecError):
        return _decode(payload)
    return []


def _of(batches: Iterable[bytes]) -> Iterator[RecordFrame]:
    return (record for batch in batches for record in _decoded(batch))


def _needles(query: AuditQuery) -> list[bytes]:
    """What must stand in a block's bytes for one of its records to pass."""
    texts = (query.model, query.tenant, query.key_id, query.session, query.request, query.tag,
             query.terminal)  # fmt: skip
    return [text.encode() for text in texts if text]


def _outside(summary: _Summary, query: AuditQuery) -> bool:
    """Whether none of its calls ended between the two instants."""
    return (query.since is not None and summary.last_at < query.since) or (
        query.until is not None and summary.first_at >= query.until
    )


def _inside(summary: _Summary, query: AuditQuery) -> bool:
    """Whether all of them did."""
    return (query.since is None or summary.first_at >= query.since) and (
        query.until is None or summary.last_at < query.until
    )


def _sums_of(total: dict[str, Sums], model: str) -> Sums:
    if model not in total and len(total) >= MOST_MODELS:
        model = "other"
    sums = total.get(model)
    if sums is None:
        sums = total[model] = Sums()
    return sums
