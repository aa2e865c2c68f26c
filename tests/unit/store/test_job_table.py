"""Jobs in the database: claimed in order, ended once, counted, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.store import job_table as module
from tpo_mp.store.job_table import JobCaps, JobRow, JobTable
from tpo_mp.store.sealing import Seals
from tpo_mp.store.tables import TableCaps, Tables

RUN = "run-1"


class Store:
    """A table with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.tables = Tables(folder / "t.sqlite", TableCaps())
        self.jobs = JobTable(self.tables, JobCaps(jobs=3, bytes=1000), lambda: self.now)

    def add(self, name: str, prompts: int = 3, size: int = 10) -> bool:
        """Keep a job."""
        row = JobRow(0, name, "t", "s", "m", 4, 256, 0.5, "", 0, 0, 0, 0, 0.0, 0.0)
        return self.jobs.add(row, [(f"{name}-{n}", f"prompt {n}") for n in range(prompts)], size)

    def row(self, name: str) -> JobRow:
        """A job that is there."""
        found = self.jobs.find(name)
        assert found is not None
        return found

    def claim(self, name: str, n: int, run: str = RUN) -> list[str]:
        """Claim for seat 0; ids."""
        return [p.call_id for p in self.jobs.claim(self.row(name), [(0, 1)] * n, run)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    made = Store(tmp_path)
    yield made
    made.tables.close()


def test_prompts_are_claimed_in_order_and_once(store: Store) -> None:
    """Until none waits; what is put back is claimed again, before what follows it."""
    assert store.add("a")
    assert store.claim("a", 2) == ["a-0", "a-1"]
    assert store.claim("a", 2) == ["a-2"]
    assert store.claim("a", 1) == []
    assert store.jobs.put_back("a-1", lost=True) == 1
    assert store.claim("a", 2) == ["a-1"]
    assert store.jobs.put_back("a-1", lost=True) == 2
    assert store.jobs.put_back("a-1", lost=True) == 2, "it waits already"
    store.claim("a", 1)
    assert store.jobs.put_back("a-1", lost=False) == 1


def test_prompt_ends_once_and_closes_its_job_with_the_last(store: Store) -> None:
    """A second end changes neither record nor counts."""
    store.add("a", 2)
    store.claim("a", 2)
    first = store.jobs.end("a-0", "completed", b"one")
    assert first is not None
    assert (first.state, first.completed) == ("in_progress", 1)
    again = store.jobs.end("a-0", "failed", b"other")
    assert again is not None
    assert (again.completed, again.failed) == (1, 0)
    found = store.jobs.prompt("a-0")
    assert found is not None
    assert found[2] == b"one"
    last = store.jobs.end("a-1", "failed", b"two")
    assert last is not None
    assert (last.state, last.ended_at) == ("completed", 1000.0)
    assert store.row("a").state == "completed"
    assert [row[:3] for row in store.jobs.ended(last, -1)] == [
        (0, "a-0", "completed"), (1, "a-1", "failed"),
    ]  # fmt: skip
    assert [row[0] for row in store.jobs.ended(last, 0)] == [1]
    assert store.jobs.end("nobody", "failed", b"") is None


@pytest.mark.parametrize(
    ("ends", "state"),
    [(("failed", "failed"), "failed"), (("cancelled", "cancelled"), "cancelled"),
     (("failed", "completed"), "completed")],
)  # fmt: skip
def test_job_is_called_by_how_its_prompts_ended(
    store: Store, ends: tuple[module.Ended, ...], state: str
) -> None:
    """All failed is failed, all cancelled cancelled, else completed."""
    store.add("a", 2)
    for n, end in enumerate(ends):
        store.jobs.end(f"a-{n}", end, b"")
    assert store.row("a").state == state


def test_job_added_twice_is_one(store: Store) -> None:
    """A question may be asked twice."""
    assert store.add("a")
    store.jobs.end("a-0", "completed", b"")
    assert store.add("a")
    assert (store.row("a").total, store.row("a").completed) == (3, 1)


def test_cancelled_job_keeps_what_had_ended(store: Store) -> None:
    """The rest is cancelled, running or not; later words on it are ignored."""
    store.add("a", 4)
    store.claim("a", 2)
    store.jobs.end("a-0", "completed", b"x")
    for _ in range(2):
        row = store.jobs.cancel("a")
        assert row is not None
        assert (row.state, row.completed, row.cancelled) == ("cancelled", 1, 3)
    store.jobs.end("a-1", "completed", b"late")
    store.jobs.put_back("a-1", lost=True)
    assert store.claim("a", 4) == []
    assert store.row("a").completed == 1
    assert store.jobs.cancel("nobody") is None


def test_next_life_of_the_host_runs_what_was_running(store: Store) -> None:
    """Of its own life it learns who has what; seats and epochs alone would lie."""
    store.add("a")
    store.claim("a", 2, run="run-0")
    assert store.jobs.recover("run-1") == []
    assert store.claim("a", 1, run="run-1") == ["a-0"]
    (running,) = store.jobs.recover("run-1")
    assert (running.job, running.call_id, running.prompt) == ("a", "a-0", "prompt 0")
    assert [row.id for row in store.jobs.unfinished()] == ["a"]


def test_caps_are_held_by_jobs_that_have_ended(store: Store) -> None:
    """The one that ended first goes first; while none has, a new one is refused."""
    for name in "abc":
        assert store.add(name, 1, 100)
    assert not store.add("d", 1)
    for n, name in enumerate("ba"):
        store.now = 2000.0 + n
        store.jobs.end(f"{name}-0", "completed", b"")
    assert store.add("d", 1)
    assert store.jobs.find("b") is None
    assert store.jobs.find("a") is not None
    assert not store.add("e", 1, 5000)
    assert store.jobs.fill() == (2, 110)
    assert store.jobs.makes_room(800)
    assert not store.jobs.makes_room(900)


def test_old_jobs_go_slice_by_slice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended longer ago than the age; hidden at once, deleted little by little."""
    monkeypatch.setattr(module, "_DELETE", 2)
    store.add("a", 5)
    store.add("b", 1)
    store.jobs.cancel("a")
    store.now += store.jobs.caps.age_s + 1
    store.jobs.tidy()
    assert store.jobs.find("a") is None
    assert store.jobs.prompt("a-4") is None
    assert store.jobs.find("b") is not None
    counts = []
    for _ in range(4):
        counts.append(store.tables.read("SELECT count(*) FROM job_prompts").fetchone()[0])
        store.jobs.tidy()
    assert counts == [4, 2, 1, 1]
    assert store.tables.read("SELECT count(*) FROM jobs").fetchone()[0] == 1


def test_claims_read_an_index_however_much_has_ended(store: Store) -> None:
    """Ten thousand finished prompts are not walked through for the next one."""
    store.add("a")
    plan = store.tables.read(
        "EXPLAIN QUERY PLAN SELECT n, call_id, prompt FROM job_prompts WHERE job=1"
        " AND state='waiting' ORDER BY n LIMIT 4"
    ).fetchall()
    assert "job_prompts_state" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_sealed_prompts_wait_for_their_key(store: Store, tmp_path: Path) -> None:
    """Nothing of them or of their answers is written; what was written before is read as ever."""
    store.add("plain", 1)
    store.jobs.seals = Seals(["k" * 32])
    store.add("sealed", 3)
    assert store.claim("sealed", 1) == ["sealed-0"]
    store.jobs.end("sealed-0", "completed", b"secret answer")
    store.claim("sealed", 1)
    store.tables.commit()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert written.count(b"prompt 0") == 1, "the plain one"
    assert b"prompt 1" not in written
    assert b"secret answer" not in written

    store.jobs.seals = Seals(["x" * 32])
    assert store.claim("sealed", 2) == []
    assert store.jobs.recover(RUN) == []
    assert list(store.jobs.ended(store.row("sealed"), -1)) == [(0, "sealed-0", "completed", None)]
    assert [p.prompt for p in store.jobs.claim(store.row("plain"), [(0, 1)], RUN)] == ["prompt 0"]

    store.jobs.seals = Seals(["x" * 32, "k" * 32])
    found = store.jobs.prompt("sealed-0")
    assert found is not None
    assert found[2] == b"secret answer"
    assert {p.prompt for p in store.jobs.recover(RUN)} == {"prompt 0", "prompt 1"}
    assert store.claim("sealed", 2) == ["sealed-2"]
