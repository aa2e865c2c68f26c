"""Batch jobs and their prompts, in the database: what is left to run, and what became of the rest.

::

    jobs         id -> settings, counts, state        in_progress -> completed | failed | cancelled
                                                      any ended one -> dropped, then deleted
    job_prompts  (job, n) -> prompt, record, state    waiting -> running -> completed | failed |
                 and who runs it                      cancelled;  running -> waiting (put back)

``run`` names the host's life, ``seat`` and ``epoch`` the process that runs a prompt in it; after a
death of everything the numbers of seats begin again, so all three are needed.

Invariants: a prompt ends once: only a waiting or running one can; the job's counts are the counts
of its prompts, changed in the same transaction; caps hold for rows and bytes, and only ended jobs
are dropped to make room.
With keys (``seals``) prompts and records are sealed; a prompt that is locked waits for its key.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from .sealing import UNSEALED, Locked, Seals
from .tables import Tables

Ended: TypeAlias = Literal["completed", "failed", "cancelled"]
OPEN = "state IN ('waiting', 'running')"
_DELETE = 2000


@dataclass(frozen=True, slots=True)
class JobCaps:
    """How many jobs are kept, how long, and in how many bytes."""

    jobs: int = 1000
    bytes: int = 1 << 30
    age_s: float = 7 * 86400.0


class JobRow(NamedTuple):
    """A job as it stands."""

    seq: int
    id: str
    tenant: str
    session: str
    model: str
    concurrency: int
    max_tokens: int
    temperature: float
    state: str
    total: int
    completed: int
    failed: int
    cancelled: int
    created_at: float
    ended_at: float


class RunningPrompt(NamedTuple):
    """A prompt in the hands of a worker."""

    job: str
    call_id: str
    prompt: str
    seat: int
    epoch: int


_JOB = ", ".join(JobRow._fields)
Seat: TypeAlias = tuple[int, int]


class JobTable:
    """Used by the thread that uses ``tables``; every method may raise ``sqlite3.Error``."""

    def __init__(
        self,
        tables: Tables,
        caps: JobCaps,
        clock: Callable[[], float] = time.time,
        seals: Seals = UNSEALED,
    ) -> None:
        self.caps = caps
        self.seals = seals
        self._tables = tables
        self._clock = clock

    def add(self, job: JobRow, prompts: Sequence[tuple[str, str]], size: int) -> bool:
        """Keep a new job of (call id, prompt), ``size`` bytes; false when a cap forbids it.

        A job that is known already is left as it is.
        """
        if self.find(job.id) is not None:
            return True
        if not self._make_room(size):
            return False
        cursor = self._tables.write(
            "INSERT INTO jobs(id, tenant, session, model, concurrency, max_tokens, temperature,"
            " state, total, bytes, created_at) VALUES(?,?,?,?,?,?,?,'in_progress',?,?,?)",
            (*job[1:8], len(prompts), size, self._clock()),
        )
        self._tables.write_many(
            "INSERT INTO job_prompts(job, n, call_id, prompt) VALUES(?,?,?,?)",
            (
                (cursor.lastrowid, n, call_id, self._sealed(prompt, call_id))
                for n, (call_id, prompt) in enumerate(prompts)
            ),
        )
        return True

    def find(self, job_id: str) -> JobRow | None:
        """One job that was not dropped."""
        rows = self._read(f"SELECT {_JOB} FROM jobs WHERE id=? AND state!='dropped'", job_id)  # noqa: S608
        return next((JobRow(*row) for row in rows), None)

    def unfinished(self) -> list[JobRow]:
        """Jobs with prompts left, oldest first."""
        sql = f"SELECT {_JOB} FROM jobs WHERE state='in_progress' ORDER BY seq"  # noqa: S608
        return [JobRow(*row) for row in self._read(sql)]

    def recover(self, run: str) -> list[RunningPrompt]:
        """Put back what an earlier life of the host ran; answers what this one runs."""
        self._tables.write(
            "UPDATE job_prompts SET state='waiting' WHERE state='running' AND run!=?", (run,)
        )
        rows = self._read(
            "SELECT jobs.id, call_id, prompt, seat, epoch FROM job_prompts"
            " JOIN jobs ON jobs.seq=job WHERE job_prompts.state='running'"
        )
        running = []
        for job, call_id, prompt, seat, epoch in rows:
            said = self._opened(prompt, call_id)
            if said is not None:
                running.append(RunningPrompt(job, call_id, said, seat, epoch))
        return running

    def claim(self, job: JobRow, seats: Sequence[Seat], run: str) -> list[RunningPrompt]:
        """Take the next waiting prompts, one per (seat, epoch), in their order."""
        rows = self._read(
            "SELECT n, call_id, prompt FROM job_prompts WHERE job=? AND state='waiting'"
            " ORDER BY n LIMIT ?",
            job.seq,
            len(seats),
        ).fetchall()
        claimed = []
        for (n, call_id, prompt), (seat, epoch) in zip(rows, seats, strict=False):
            said = self._opened(prompt, call_id)
            if said is None:
                break
            self._tables.write(
                "UPDATE job_prompts SET state='running', run=?, seat=?, epoch=?"
                " WHERE job=? AND n=?",
                (run, seat, epoch, job.seq, n),
            )
            claimed.append(RunningPrompt(job.id, call_id, said, seat, epoch))
        return claimed

    def end(self, call_id: str, state: Ended, record: bytes | None) -> JobRow | None:
        """Close a prompt; answers its job as it stands then, ``None`` for an unknown prompt.

        One that has ended stays as it is.
        """
        done = self._tables.write(
            f"UPDATE job_prompts SET state=?, record=? WHERE call_id=? AND {OPEN}",  # noqa: S608
            (state, record and self.seals.seal(record, _about(call_id)), call_id),
        )
        if done.rowcount:
            self._tables.write(
                f"UPDATE jobs SET {state}={state}+1, bytes=bytes+?"  # noqa: S608
                " WHERE seq=(SELECT job FROM job_prompts WHERE call_id=?)",
                (len(record or b""), call_id),
            )
        job = self._of_prompt(call_id)
        return None if job is None else self._closed(job)

    def put_back(self, call_id: str, *, lost: bool) -> int:
        """Let a running prompt wait again; how often it was lost, or sent back, by now."""
        column = "lost" if lost else "sent_back"
        self._tables.write(
            f"UPDATE job_prompts SET state='waiting', {column}={column}+1"  # noqa: S608
            " WHERE call_id=? AND state='running'",
            (call_id,),
        )
        sql = f"SELECT {column} FROM job_prompts WHERE call_id=?"  # noqa: S608
        row = self._read(sql, call_id).fetchone()
        return 0 if row is None else int(row[0])

    def cancel(self, job_id: str) -> JobRow | None:
        """Cancel what is left of a job; answers it as it stands, ``None`` when unknown."""
        job = self.find(job_id)
        if job is None or job.state != "in_progress":
            return job
        done = self._tables.write(
            f"UPDATE job_prompts SET state='cancelled' WHERE job=? AND {OPEN}",  # noqa: S608
            (job.seq,),
        )
        self._tables.write(
            "UPDATE jobs SET cancelled=cancelled+?, state='cancelled', ended_at=? WHERE seq=?",
            (done.rowcount, self._clock(), job.seq),
        )
        return self.find(job_id)

    def prompt(self, call_id: str) -> tuple[str, str, bytes | None, str] | None:
        """State, session, record and model of one prompt."""
        row = self._read(
            "SELECT job_prompts.state, session, record, model FROM job_prompts"
            " JOIN jobs ON jobs.seq=job WHERE call_id=? AND jobs.state!='dropped'",
            call_id,
        ).fetchone()
        return None if row is None else (row[0], row[1], self._record(row[2], call_id), row[3])

    def ended(self, job: JobRow, after: int) -> Iterator[tuple[int, str, str, bytes | None]]:
        """(n, call id, state, record) of the prompts that have ended, in their order."""
        rows = self._read(
            "SELECT n, call_id, state, record FROM job_prompts WHERE job=? AND n>?"
            " AND state NOT IN ('waiting', 'running') ORDER BY n",
            job.seq,
            after,
        )
        return ((n, call_id, state, self._record(found, call_id))
                for n, call_id, state, found in rows)  # fmt: skip

    def tidy(self) -> None:
        """Drop jobs that ended too long ago, and delete a slice of what was dropped."""
        old = self._clock() - self.caps.age_s
        self._drop("state IN ('completed', 'failed', 'cancelled') AND ended_at<?", old)
        row = self._read("SELECT seq FROM jobs WHERE state='dropped' LIMIT 1").fetchone()
        if row is None:
            return
        gone = self._tables.write(
            "DELETE FROM job_prompts WHERE rowid IN"
            " (SELECT rowid FROM job_prompts WHERE job=? LIMIT ?)",
            (row[0], _DELETE),
        )
        if gone.rowcount < _DELETE:
            self._tables.write("DELETE FROM jobs WHERE seq=?", (row[0],))

    def fill(self) -> tuple[int, int]:
        """Jobs kept and their bytes."""
        row = self._read(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM jobs WHERE state!='dropped'"
        ).fetchone()
        return int(row[0]), int(row[1])

    def makes_room(self, size: int) -> bool:
        """Whether ``size`` more bytes may be kept; ended jobs go for them."""
        return self._make_room(size, jobs=0)

    # -- inside ---------------------------------------------------------------------------------

    def _sealed(self, prompt: str, call_id: str) -> str | bytes:
        """As it is written: text stays text."""
        if not self.seals:
            return prompt
        return self.seals.seal(prompt.encode("utf-8", "surrogatepass"), _about(call_id))

    def _opened(self, prompt: str | bytes, call_id: str) -> str | None:
        """A prompt; ``None`` when it is locked."""
        if isinstance(prompt, str):
            return prompt
        found = self._record(prompt, call_id)
        return None if found is None else found.decode("utf-8", "surrogatepass")

    def _record(self, found: bytes | None, call_id: str) -> bytes | None:
        """A record; ``None`` when there is none, or it is locked."""
        try:
            return None if found is None else self.seals.open(bytes(found), _about(call_id))
        except Locked:
            return None

    def _read(self, sql: str, *params: Any) -> sqlite3.Cursor:
        return self._tables.read(sql, params)

    def _of_prompt(self, call_id: str) -> JobRow | None:
        job = "(SELECT job FROM job_prompts WHERE call_id=?)"
        sql = f"SELECT {_JOB} FROM jobs WHERE seq={job}"  # noqa: S608
        return next((JobRow(*row) for row in self._read(sql, call_id)), None)

    def _closed(self, job: JobRow) -> JobRow:
        """End a job whose last prompt has ended."""
        if job.state != "in_progress" or job.completed + job.failed + job.cancelled < job.total:
            return job
        state = "completed" if job.completed or job.cancelled else "failed"
        if job.cancelled == job.total:
            state = "cancelled"
        now = self._clock()
        self._tables.write("UPDATE jobs SET state=?, ended_at=? WHERE seq=?", (state, now, job.seq))
        return job._replace(state=state, ended_at=now)

    def _make_room(self, size: int, jobs: int = 1) -> bool:
        kept, used = self.fill()
        while kept + jobs > self.caps.jobs or used + size > self.caps.bytes:
            row = self._read(
                "SELECT seq FROM jobs WHERE state IN ('completed', 'failed', 'cancelled')"
                " ORDER BY ended_at LIMIT 1"
            ).fetchone()
            if row is None:
                return False
            self._drop("seq=?", row[0])
            kept, used = self.fill()
        return True

    def _drop(self, where: str, *params: Any) -> None:
        self._tables.write(f"UPDATE jobs SET state='dropped' WHERE {where}", params)  # noqa: S608


def _about(call_id: str) -> bytes:
    return b"job\0" + call_id.encode()
