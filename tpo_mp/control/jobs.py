"""Runs batch jobs: hands their prompts to shards, a few at a time, and writes down what came back.

Jobs live in the database; what is here is only who runs what just now.  A prompt is claimed in a
transaction before its worker hears of it, and closed in one before its worker may forget it, so
after any death the database and the living workers together know where it stands:

* a worker died: its prompts wait again, ``LOST_MOST`` times, then they fail as lost;
* control died: the next one sends living workers what they have; they know it already;
* everything died: what was running waits again.

Batch work is the host's lowest priority: nothing is handed out while calls wait in front of
inference, while half of the host's open calls are taken, or while no shard is ready.

Invariants: at most ``concurrency`` prompts run on the host and ``job.concurrency`` of a job; a
question of a worker is always answered, or its worker asks again.
Known weakness: a prompt whose worker died is run once more from its start.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import orjson

from tpo_mp.dialects import native
from tpo_mp.errors import WorkerLost
from tpo_mp.shm.frames import CancelCall, Kind, RerunFrame, frame
from tpo_mp.shm.plane import NO_SLOT, HostState, Plane, SeatState
from tpo_mp.store import job_questions as told
from tpo_mp.store.job_table import JobRow, JobTable, Seat

from . import job_work
from .job_work import Handout
from .keeper import JOB_BYTES, Keeper
from .reruns import Sender

T = TypeVar("T")
Answer = Callable[[bool, bytes | None], None]

LOST_MOST = 4
SENT_BACK_MOST = 1000
EARLY_BYTES = 16 << 20
GRACE_S = 0.5
RETRY_S = 1.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 5.0
_FRAME_BYTES = 1536


@dataclass(slots=True)
class _Job:
    row: JobRow
    running: int = 0
    claiming: int = 0
    dry: bool = False
    """Whether no prompt waits; those that run may come back."""
    pause_s: float = 0.0
    paused_until: float = 0.0


@dataclass(slots=True)
class _Running:
    job: str
    seat: int
    epoch: int
    lost_at: float | None = None


class JobRunner:
    """The jobs of one host; lives on control's loop."""

    def __init__(
        self,
        plane: Plane,
        keeper: Keeper,
        mail: Sender,
        run: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``run`` names this life of the host."""
        self._plane = plane
        self._keeper = keeper
        self._mail = mail
        self._run = f"{run:016x}"
        self._clock = clock
        self._wall = wall
        self._jobs: dict[str, _Job] = {}
        self._calls: dict[str, _Running] = {}
        self._loaded = False
        self._early: deque[tuple[told.Question, Answer]] = deque()
        """Asked before the jobs were loaded, which is a moment after the host is ready."""
        self._early_bytes = 0
        self._load_at = 0.0
        self._turn = 0
        self.concurrency = 32
        self.age_s = 7 * 86400.0
        self.max_open_calls = 16_384
        self.ended = 0
        self.put_back = 0

    @property
    def open(self) -> int:
        """Jobs with prompts left."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Prompts that workers have."""
        return len(self._calls)

    # -- time -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a job runs or is to be looked up."""
        return bool(self._jobs or self._calls) or not self._loaded

    def tick(self) -> None:
        """Many times a second: notice deaths, hand out what may run."""
        if not self._loaded:
            self._load()
            return
        if self._calls:
            self._check_lives()
        if self._jobs:
            self._hand_out()

    def _load(self) -> None:
        now = self._clock()
        if now < self._load_at or self._keeper.full:
            return
        self._load_at = now + RETRY_S

        def work(table: JobTable) -> tuple[list[JobRow], list[Handout]]:
            jobs = table.unfinished()
            rows = {job.id: job for job in jobs}
            left = [p for p in table.recover(self._run) if p.job in rows]
            return jobs, [job_work.handout(rows[p.job], p) for p in left]

        def done(found: tuple[list[JobRow], list[Handout]] | None) -> None:
            if found is None or self._loaded:
                return
            self._loaded = True
            self._jobs = {row.id: _Job(row) for row in found[0]}
            for handout in found[1]:
                self._track(handout)
                self._send(handout)
            while self._early:
                self._take(*self._early.popleft())

        self._submit(work, done)

    def _check_lives(self) -> None:
        now = self._clock()
        for call_id, call in list(self._calls.items()):
            seat = self._plane.seat(call.seat)
            if seat.epoch == call.epoch and seat.state != SeatState.EMPTY:
                continue
            if call.lost_at is None:
                call.lost_at = now  # what it said last may still be on its ring
            elif now - call.lost_at >= GRACE_S:
                call.lost_at = now
                self._take_back(call_id, lost=True)

    def _hand_out(self) -> None:
        if self._plane.host_state != HostState.RUNNING or self._keeper.full or self._crowded():
            return
        now = self._clock()
        free = self.concurrency - len(self._calls) - sum(j.claiming for j in self._jobs.values())
        for job in list(self._jobs.values()):
            if self._wall() - job.row.created_at > self.age_s:
                self._stop(job.row.id)
                self._cancel(job.row.id, lambda _row: None)
                continue
            n = min(job.row.concurrency - job.running - job.claiming, free)
            if n <= 0 or job.dry or now < job.paused_until:
                continue
            seats = [seat for seat in (self._next_seat() for _ in range(n)) if seat is not None]
            if seats:
                free -= len(seats)
                self._claim(job, seats)
        first = next(iter(self._jobs), None)
        if first is not None:  # the next turn begins with another job
            self._jobs[first] = self._jobs.pop(first)

    def _crowded(self) -> bool:
        """Whether interactive calls need the host more."""
        lines = [self._plane.seat(n) for n in range(self._plane.seats)]
        others = sum(line.open_calls for line in lines) - len(self._calls)
        return any(line.waiting for line in lines) or others > self.max_open_calls // 2

    def _next_seat(self) -> Seat | None:
        workers = self._plane.seats - 1
        for _ in range(workers):
            self._turn = (self._turn + 1) % workers
            line = self._plane.seat(self._turn)
            if line.state == SeatState.READY and line.slot != NO_SLOT:
                return self._turn, line.epoch
        return None

    # -- prompts on their way -------------------------------------------------------------------

    def _claim(self, job: _Job, seats: list[Seat]) -> None:
        job.claiming += len(seats)
        row, run = job.row, self._run

        def done(found: list[Handout] | None) -> None:
            job.claiming -= len(seats)
            if found is None:
                return
            job.dry = len(found) < len(seats)
            for handout in found:
                self._track(handout)
                self._send(handout)
            if job.dry and not job.running and not job.claiming:
                self._look_again(job)

        self._submit(lambda table: job_work.claim(table, row, seats, run), done)

    def _look_again(self, job: _Job) -> None:
        """Nobody runs a prompt and none waits: the job has ended, or its database was lost."""

        def done(found: tuple[JobRow | None] | None) -> None:
            if found is not None and (found[0] is None or found[0].state != "in_progress"):
                self._jobs.pop(job.row.id, None)
            job.dry = False

        self._submit(lambda table: (table.find(job.row.id),), done)

    def _track(self, handout: Handout) -> None:
        prompt = handout.prompt
        self._calls[prompt.call_id] = _Running(prompt.job, prompt.seat, prompt.epoch)
        job = self._jobs.get(prompt.job)
        if job is not None:
            job.running += 1
        else:  # cancelled while it was claimed: the row says so already
            self._release(prompt.call_id)

    def _send(self, handout: Handout) -> None:
        prompt = handout.prompt
        call = self._calls.get(prompt.call_id)
        if call is None:
            return

        def pushed(done: bool) -> None:
            if not done:
                call.epoch = -1  # as good as given to somebody who died

        if self._plane.seat(prompt.seat).epoch == prompt.epoch:
            self._mail.send(prompt.seat, self._records(handout), pushed)

    def _records(self, handout: Handout) -> list[bytes]:
        body, step = handout.body, self._mail.max_record - _FRAME_BYTES
        return [
            frame(
                Kind.JOB_CALL,
                0,
                RerunFrame(
                    handout.prompt.call_id,
                    0,
                    b"" if at else handout.meta,
                    body[at : at + step],
                    at + step < len(body),
                ),
            )
            for at in range(0, len(body), step)
        ]

    def _release(self, call_id: str) -> _Job | None:
        call = self._calls.pop(call_id, None)
        job = None if call is None else self._jobs.get(call.job)
        if job is not None:
            job.running -= 1
        return job

    def _take_back(
        self,
        call_id: str,
        *,
        lost: bool,
        heard: Callable[[bool], None] = lambda _done: None,
        last: bytes = b"",
    ) -> None:
        """Let a prompt wait again; too often taken back it fails, with its ``last`` record."""
        most = LOST_MOST if lost else SENT_BACK_MOST

        def work(table: JobTable) -> tuple[bool, JobRow | None]:
            if table.put_back(call_id, lost=lost) < most:
                return False, None
            return True, table.end(call_id, "failed", last or _lost_record(call_id))

        def done(found: tuple[bool, JobRow | None] | None) -> None:
            heard(found is not None)
            if found is None:
                return
            job = self._release(call_id)
            if found[0]:
                self.ended += 1
                self._closed(found[1])
            else:
                self.put_back += 1
                if job is not None:
                    job.dry = False

        self._submit(work, done)

    def _closed(self, row: JobRow | None) -> None:
        if row is not None and row.state != "in_progress":
            self._jobs.pop(row.id, None)

    # -- questions ------------------------------------------------------------------------------

    def ask(self, value: bytes, answer: Answer) -> None:
        """Take one question of a worker."""
        try:
            question = told.decode_question(value)
        except msgspec.MsgspecError:
            answer(False, None)
            return
        if not self._loaded:  # what came before this process was there is not known yet
            if self._early_bytes < EARLY_BYTES:
                self._early_bytes += len(value) + JOB_BYTES
                self._early.append((question, answer))
            else:
                answer(False, None)
        else:
            self._take(question, answer)

    def _take(self, question: told.Question, answer: Answer) -> None:
        if isinstance(question, told.EndPrompt):
            self._end(question, answer)
        elif isinstance(question, told.StartJob):
            self._start(question, answer)
        elif isinstance(question, told.CancelJob):
            self._cancel(question.job_id, _row_answer(answer))
        elif isinstance(question, told.AskProgress):
            job_id = question.job_id
            self._submit(lambda t: (t.find(job_id),), _row_answer(answer))
        else:
            wanted = question
            self._submit(lambda t: job_work.lines(t, wanted), lambda found: _say(answer, found))

    def _start(self, question: told.StartJob, answer: Answer) -> None:
        def done(found: tuple[JobRow | None] | None) -> None:
            if found is None:
                answer(False, None)
                return
            row = found[0]
            if row is None:
                _say(answer, told.JobAnswer("full"))
                return
            if row.state == "in_progress":
                self._jobs.setdefault(row.id, _Job(row))
            _say(answer, told.JobAnswer("ok", job_work.progress(row)))
            self.tick()

        self._submit(
            lambda table: (job_work.start(table, question),), done, cost=len(question.prompts)
        )

    def _end(self, question: told.EndPrompt, answer: Answer) -> None:
        if question.later:
            call = self._calls.get(question.call_id)
            job = None if call is None else self._jobs.get(call.job)
            if job is not None:
                job.pause_s = min(max(2 * job.pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
                job.paused_until = self._clock() + job.pause_s
            self._take_back(
                question.call_id, lost=False, last=question.record,
                heard=lambda done: _say(answer, told.JobAnswer("ok") if done else None),
            )  # fmt: skip
            return

        def done(found: tuple[JobRow | None] | None) -> None:
            _say(answer, None if found is None else told.JobAnswer("ok"))
            if found is not None:
                self.ended += question.call_id in self._calls
                released = self._release(question.call_id)
                if released is not None:
                    released.pause_s = 0.0
                self._closed(found[0])
                self.tick()

        self._submit(
            lambda table: (job_work.end(table, question),), done, cost=len(question.record)
        )

    def _cancel(self, job_id: str, done: Callable[[tuple[JobRow | None] | None], None]) -> None:
        def cancelled(found: tuple[JobRow | None] | None) -> None:
            if found is not None and found[0] is not None:
                self._stop(job_id)
            done(found)

        self._submit(lambda table: (table.cancel(job_id),), cancelled)

    def _stop(self, job_id: str) -> None:
        """Forget a job; whoever runs one of its prompts is told to stop."""
        self._jobs.pop(job_id, None)
        for call_id, call in list(self._calls.items()):
            if call.job == job_id:
                del self._calls[call_id]
                record = frame(Kind.CANCEL_CALL, 0, CancelCall(0, call_id))
                if self._plane.seat(call.seat).epoch == call.epoch:
                    self._mail.send(call.seat, [record])

    def _submit(
        self, work: Callable[[JobTable], T], done: Callable[[T | None], None], cost: int = 0
    ) -> None:
        self._keeper.submit(lambda shelf: shelf.with_jobs(work), done, cost=cost, writes=True)


def _row_answer(answer: Answer) -> Callable[[tuple[JobRow | None] | None], None]:
    def done(found: tuple[JobRow | None] | None) -> None:
        if found is None:
            _say(answer, None)
        elif found[0] is None:
            _say(answer, told.JobAnswer("unknown"))
        else:
            _say(answer, told.JobAnswer("ok", job_work.progress(found[0])))

    return done


def _say(answer: Answer, said: Any) -> None:
    answer(said is not None, None if said is None else told.encode(said))


def _lost_record(call_id: str) -> bytes:
    error = native.error_object(WorkerLost("the workers that ran the prompt died"), call_id)
    return orjson.dumps(native.record(call_id, None, "failed", error=error))
