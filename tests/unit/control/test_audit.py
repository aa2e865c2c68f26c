"""Questions about call records: compared with asking every record in turn."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.control.host import record
from tpo_mp.control import audit
from tpo_mp.control.audit import AuditReader, block_sizes, entry_of, passes
from tpo_mp.shm.frames import RecordFrame
from tpo_mp.store.audit_questions import AuditQuery, Cursor
from tpo_mp.store.framing import Disk
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.shelf import Shelf, ShelfOptions

encode = msgspec.msgpack.Encoder().encode
ANY = AuditQuery(limit=1000)


def made(n: int, rng: random.Random) -> list[RecordFrame]:
    """Different records, in the order of their ends, more or less."""
    return [
        record(
            f"call-{i}", finished_at=1e9 + i + rng.uniform(-3, 3), model=rng.choice("abc"),
            tenant=rng.choice(["x", "y"]), key_id=rng.choice(["k1", "k2"]),
            session=rng.choice(["", "s1"]), status=rng.choice([200, 429]),
            terminal=rng.choice(["done", "shed"]), duration_s=rng.random(),
            cache=rng.choice(["", "hit", "miss"]), client_request_id=f"mine-{i % 7}",
            cost_usd=rng.choice([None, 0.0, 0.25]), prompt_tokens=rng.choice([-1, 10]),
        )
        for i in range(n)
    ]  # fmt: skip


class Log:
    """A shelf with small files whose records a test knows."""

    def __init__(self, directory: Path, rng: random.Random, n: int = 600) -> None:
        self.disk_full = False
        self.options = ShelfOptions(calls=LogLimits(16_384, 1 << 30, 1e9))
        self.directory = directory
        self.shelf = self.open()
        self.reader = AuditReader(clock=lambda: 0.0)  # a question is never cut short
        self.records = made(n, rng)
        at = 0
        while at < n:
            size = rng.randint(1, 20)
            self.add(self.records[at : at + size])
            at += size

    def open(self) -> Shelf:
        """Open it, as a new process does."""
        import os

        def write(fd: int, data: bytes) -> int:
            if self.disk_full:
                raise OSError(errno.ENOSPC, "no space")
            return os.write(fd, data)

        return Shelf(self.directory, self.options, disk=Disk(write=write))

    def add(self, records: list[RecordFrame]) -> None:
        """One batch."""
        self.shelf.record(encode(records))
        self.shelf.commit()

    def pages(self, query: AuditQuery, reader: AuditReader | None = None) -> list[dict[str, Any]]:
        """Every entry of every page."""
        found: list[dict[str, Any]] = []
        for _ in range(10_000):
            told = json.loads((reader or self.reader).page(self.shelf, query))
            assert len(told["entries"]) == told["count"] <= query.limit
            found += told["entries"]
            if told["next"] is None:
                return found
            query = msgspec.structs.replace(query, after=Cursor.read(told["next"]))
        raise AssertionError("pages without end")


@pytest.fixture
def log(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """600 records in several files and many blocks."""
    monkeypatch.setattr(audit, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(audit, "FEW_BLOCKS", 1 << 20)
    made = Log(tmp_path, rng)
    yield made
    made.shelf.close()


QUERIES = [
    AuditQuery(),
    AuditQuery(model="a", tenant="x"),
    AuditQuery(cache_hit=True, min_latency_s=0.5),
    AuditQuery(cache_hit=False, status=429),
    AuditQuery(since=1e9 + 100, until=1e9 + 420),
    AuditQuery(session="s1", key_id="k2", terminal="shed"),
    AuditQuery(request="mine-3", model="b"),
    AuditQuery(request="call-17"),
    AuditQuery(request="nobody"),
]


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_hold_what_passes_every_filter(log: Log, query: AuditQuery, limit: int) -> None:
    """Newest first, each once, however short the pages; a second reader finds the same."""
    wanted = [entry_of(r) for r in reversed(log.records) if passes(r, query)]
    query = msgspec.structs.replace(query, limit=limit)
    assert log.pages(query) == wanted
    log.reader.stats(log.shelf, query)  # sums that are known let blocks be skipped
    assert log.pages(query) == wanted


def test_a_page_that_takes_too_long_goes_on_from_where_it_was(log: Log) -> None:
    """One block per question, at worst; nothing is left out, and it ends."""
    impatient = AuditReader(clock=iter(range(10**9)).__next__)
    query = AuditQuery(request="call-3")
    assert [e["id"] for e in log.pages(query, impatient)] == ["call-3"]
    assert log.pages(AuditQuery(limit=50), impatient) == log.pages(AuditQuery(limit=1000))


def test_entries_survive_a_restart_and_go_on(log: Log, rng: random.Random) -> None:
    """A page's ``next`` holds for the next process; what came since is on no later page."""
    first = json.loads(log.reader.page(log.shelf, AuditQuery(limit=100)))
    log.shelf.close()
    log.shelf = log.open()
    log.add([record("new")])
    again = AuditReader(clock=lambda: 0.0)
    rest = log.pages(AuditQuery(limit=100, after=Cursor.read(first["next"])), again)
    assert [e["id"] for e in first["entries"] + rest] == [r.call_id for r in log.records[::-1]]
    assert json.loads(again.page(log.shelf, AuditQuery(limit=1)))["entries"][0]["id"] == "new"


@pytest.mark.parametrize(
    "query",
    [
        AuditQuery(), AuditQuery(model="a"), AuditQuery(tenant="y"), AuditQuery(since=1e9 + 333),
        AuditQuery(since=1e9 + 50, until=1e9 + 300, tenant="x", model="c"), AuditQuery(since=2e9),
    ],
    ids=range(6),
)  # fmt: skip
def test_sums_are_those_of_every_record(log: Log, query: AuditQuery) -> None:
    """Twice the same, and a new record counts at once."""
    for _ in range(2):
        told = json.loads(log.reader.stats(log.shelf, query))
        some = [r for r in log.records if passes(r, query)]
        assert told["complete"]
        assert told["total_entries"] == len(some)
        assert told["cost_usd"] == pytest.approx(sum(r.cost_usd or 0 for r in some))
        assert told["unpriced"] == sum(r.cost_usd is None for r in some)
        assert told["prompt_tokens"] == sum(max(r.prompt_tokens, 0) for r in some)
        hits = sum(r.cache == "hit" for r in some)
        assert told["cache_hit_rate"] == pytest.approx(hits / len(some) if some else 0)
        mean = sum(r.duration_s for r in some) / len(some) * 1e3 if some else 0
        assert told["avg_latency_ms"] == pytest.approx(mean)
        assert {m: s["total_entries"] for m, s in told["by_model"].items()} == {
            m: sum(r.model == m for r in some) for m in "abc" if any(r.model == m for r in some)
        }
        fresh = record("fresh", model="a", tenant="x", finished_at=1e9 + 299)
        log.records.append(fresh)
        log.add([fresh])


def test_sums_are_made_in_slices_and_say_when_they_are_whole(log: Log) -> None:
    """Nothing is read twice: each question gets further."""
    impatient = AuditReader(clock=iter(range(10**9)).__next__)
    seen = []
    for _ in range(10_000):
        told = json.loads(impatient.stats(log.shelf, ANY))
        seen.append(told["total_entries"])
        if told["complete"]:
            break
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == len(log.records)


def test_records_that_the_disk_refuses_are_shown_from_memory(log: Log) -> None:
    """They come first; those that do not fit on the first page are counted."""
    log.disk_full = True
    log.add([record(f"kept-{i}") for i in range(12)])
    told = json.loads(log.reader.page(log.shelf, AuditQuery(limit=5)))
    assert [e["id"] for e in told["entries"]] == [f"kept-{i}" for i in range(11, 6, -1)]
    assert told["pending"] == 7
    rest = log.pages(AuditQuery(limit=500, after=Cursor.read(told["next"])))
    assert [e["id"] for e in rest] == [r.call_id for r in log.records[::-1]]
    sums = json.loads(log.reader.stats(log.shelf, AuditQuery()))
    assert sums["total_entries"] == len(log.records) + 12


def test_blocks_of_the_longest_log_are_remembered() -> None:
    """Else its sums would never be whole."""
    for cap in (1 << 20, 1 << 30, 1 << 40):
        step, most = block_sizes(cap)
        assert cap // step < most


def test_an_entry_has_text_only_where_that_was_kept() -> None:
    """What was not asked for is absent, not empty."""
    names = {"input", "output", "truncated"}
    assert not names & entry_of(record("off")).keys()
    entry = entry_of(record("on", input="q", output="a", cut=2))
    assert [entry[name] for name in sorted(names)] == ["q", ["a"], ["output"]]
    entry = entry_of(record("failed", input="q", cut=1))
    assert [entry[name] for name in sorted(names)] == ["q", None, ["input"]]


def test_long_text_makes_pages_short(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends after so much of it, and the next goes on; nothing is left out or told twice."""
    monkeypatch.setattr(audit, "MOST_TEXT", 1000)
    texts = [record(f"text-{i}", input="q" * 300, output="a" * 100) for i in range(20)]
    for at in range(0, 20, 7):
        log.add(texts[at : at + 7])
    page = json.loads(log.reader.page(log.shelf, ANY))
    assert page["count"] == 3
    found = [e["id"] for e in log.pages(ANY)]
    assert found == [r.call_id for r in [*log.records, *texts][::-1]]
