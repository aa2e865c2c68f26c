"""The runner: who gets which prompt, what a death costs, who is asked to wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from tests.unit.control.test_reruns import Post
from tpo_mp.control import jobs as module
from tpo_mp.control.jobs import JobRunner
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import Kind
from tpo_mp.shm.plane import Command, HostState, Plane, SeatState
from tpo_mp.store import job_questions as told
from tpo_mp.store.job_table import JobCaps
from tpo_mp.store.shelf import Shelf, ShelfOptions

SEATS = 5
IDS = CallIds(0, 1)


class NowKeeper:
    """Runs a job at once, on this thread; ``broken`` loses what it wrote."""

    full = False

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.broken = False

    def submit(
        self, work: Callable[[Shelf], Any], done: Callable[[Any], None] | None = None,
        *, cost: int = 0, writes: bool = False,
    ) -> None:  # fmt: skip
        """Work, commit, tell."""
        if self.broken:
            found = None
        else:
            found = work(self.shelf)
            assert self.shelf.commit()
        if done is not None:
            done(found)


class House:
    """Two ready workers, a shelf, and a runner whose time the test moves."""

    def __init__(self, folder: Path) -> None:
        self.plane = Plane.create(2, SEATS, bytes(16))
        self.plane.host_state = HostState.RUNNING
        for seat in (0, 1):
            self.plane.seat(seat).occupy(seat, Command.RUN)
            self.plane.seat(seat).state = SeatState.READY
        self.shelf = Shelf(folder, ShelfOptions())
        self.keeper = NowKeeper(self.shelf)
        self.now = 0.0
        self.post = Post()
        self.runner = self.runner_of(run=7)

    def runner_of(self, run: int) -> JobRunner:
        """A control process of that life of the host."""
        self.post = Post()
        return JobRunner(
            self.plane, self.keeper, self.post, run,  # type: ignore[arg-type]
            clock=lambda: self.now, wall=lambda: 1000.0 + self.now,
        )  # fmt: skip

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass."""
        self.now += seconds
        self.runner.tick()

    def ask(self, question: told.Question) -> told.JobAnswer | None:
        """A worker asks; ``None``: no answer was to be had."""
        said: list[tuple[bool, bytes | None]] = []
        self.runner.ask(told.encode(question), lambda ok, value: said.append((ok, value)))
        ((ok, value),) = said
        return told.decode_answer(value or b"") if ok else None

    def start(self, prompts: int, concurrency: int = 4) -> str:
        """A worker hands a job over."""
        job_id = IDS.new()
        texts = msgspec.msgpack.encode([f"p{n}" for n in range(prompts)])
        said = self.ask(told.StartJob(job_id, "", "s", "m", concurrency, 9, 0.5, texts))
        assert said is not None
        assert said.said == "ok"
        return job_id

    def sent(self) -> list[tuple[int, str, str]]:
        """(seat, call id, prompt) of everything handed out since, and let it go."""
        found = []
        parcels, self.post.parcels = self.post.parcels, []
        for seat, records, done in parcels:
            pieces = [frames.payload(r) for r in records if frames.head(r)[0] == Kind.JOB_CALL]
            calls = [msgspec.msgpack.decode(p, type=frames.RerunFrame) for p in pieces]
            body = orjson.loads(b"".join(call.body for call in calls))
            found.append((seat, calls[0].call_id, body["messages"][0]["content"]))
            done(True)
        return found

    def end(self, call_id: str, status: Any = "completed", *, later: bool = False) -> bool:
        """A worker tells what became of a prompt."""
        record = orjson.dumps({"request_id": call_id, "status": status, "result": "said",
                               "error": None})  # fmt: skip
        return self.ask(told.EndPrompt(call_id, status, record, later)) is not None

    def progress(self, job_id: str) -> dict[str, Any]:
        """How a job stands."""
        said = self.ask(told.AskProgress(job_id))
        assert said is not None
        found: dict[str, Any] = orjson.loads(said.body)
        return found

    def die(self, seat: int) -> None:
        """A worker is replaced."""
        self.plane.seat(seat).occupy(seat, Command.RUN)
        self.plane.seat(seat).state = SeatState.READY


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """With its jobs loaded."""
    made = House(tmp_path)
    made.turn()
    yield made
    made.shelf.close()
    made.plane.close()


def test_prompts_go_out_in_order_over_all_workers_as_far_as_allowed(house: House) -> None:
    """No more than the job allows; each end makes room for the next."""
    job = house.start(6, concurrency=4)
    first = house.sent()
    assert [text for _, _, text in first] == ["p0", "p1", "p2", "p3"]
    assert {seat for seat, _, _ in first} == {0, 1}
    house.turn()
    assert house.sent() == []
    assert house.end(first[1][1])
    assert [text for _, _, text in house.sent()] == ["p4"]
    assert house.progress(job)["completed"] == 1


def test_host_wide_concurrency_is_shared(house: House) -> None:
    """Jobs take turns at what is free."""
    house.runner.concurrency = 3
    house.start(5, concurrency=2)
    house.start(5, concurrency=2)
    assert len(house.sent()) == 3
    assert house.runner.running == 3


def test_job_ends_with_its_last_prompt(house: House) -> None:
    """A second end of the same prompt changes nothing."""
    job = house.start(2)
    calls = house.sent()
    for _, call_id, _ in [*calls, calls[0]]:
        assert house.end(call_id)
    found = house.progress(job)
    assert (found["status"], found["completed"], found["pending"]) == ("completed", 2, 0)
    assert (house.runner.open, house.runner.running, house.runner.ended) == (0, 0, 2)


def test_prompts_of_a_dead_worker_run_elsewhere_a_moment_later(house: House) -> None:
    """What it said last may still arrive; only the rest runs again."""
    house.start(2, concurrency=2)
    calls = house.sent()
    for seat in (0, 1):
        house.die(seat)
    house.turn(0.1)
    assert house.sent() == []
    assert house.end(calls[0][1])
    house.turn(module.GRACE_S)
    house.turn()
    assert [text for _, _, text in house.sent()] == ["p1"]
    assert house.runner.put_back == 1


def test_prompt_that_kills_its_workers_fails(house: House) -> None:
    """After so many deaths nobody runs it again."""
    job = house.start(1)
    for _ in range(module.LOST_MOST):
        ((seat, _, _),) = house.sent()
        house.die(seat)
        house.turn()
        house.turn(module.GRACE_S)
        house.turn()
    assert house.sent() == []
    assert house.progress(job)["status"] == "failed"
    said = house.ask(told.AskLines(job, -1, 1000))
    assert said is not None
    assert orjson.loads(said.body)["error"]["type"] == "worker_lost"


def test_prompt_sent_back_waits_longer_each_time(house: House) -> None:
    """Its job pauses; an answer ends the pause."""
    job = house.start(1)
    waits = []
    for _ in range(3):
        ((_, call_id, _),) = house.sent()
        assert house.end(call_id, "failed", later=True)
        began = house.now
        while not house.post.parcels:
            house.turn(0.01)
        waits.append(round(house.now - began, 2))
    assert waits[0] < waits[1] < waits[2]
    ((_, call_id, _),) = house.sent()
    assert house.end(call_id)
    assert house.progress(job)["status"] == "completed"


def test_nothing_starts_while_interactive_calls_wait(house: House) -> None:
    """A queue in front of inference, half the open calls taken, or a host that leaves."""
    house.plane.seat(1).waiting = 1
    house.start(1)
    house.turn()
    assert house.sent() == []
    house.plane.seat(1).waiting = 0
    house.plane.seat(0).open_calls = house.runner.max_open_calls
    house.turn()
    assert house.sent() == []
    house.plane.seat(0).open_calls = 0
    house.plane.host_state = HostState.DRAINING
    house.turn()
    assert house.sent() == []
    house.plane.host_state = HostState.RUNNING
    for seat in (0, 1):
        house.plane.seat(seat).state = SeatState.DRAINING
    house.turn()
    assert house.sent() == []
    house.plane.seat(1).state = SeatState.READY
    house.turn()
    assert [seat for seat, _, _ in house.sent()] == [1]


def test_next_control_goes_on_where_the_last_one_ended(house: House) -> None:
    """Living workers are sent what they have; they know it.  Nothing is claimed twice."""
    house.start(3, concurrency=2)
    before = house.sent()
    house.runner = house.runner_of(run=7)
    said: list[tuple[bool, bytes | None]] = []
    house.runner.ask(told.encode(told.AskProgress("x")), lambda *answer: said.append(answer))
    assert said == [], "not loaded: not known"
    house.turn()
    ((ok, value),) = said
    assert (ok, told.decode_answer(value or b"").said) == (True, "unknown")
    assert sorted(call for _, call, _ in house.sent()) == sorted(call for _, call, _ in before)
    house.turn()
    assert house.sent() == []
    assert house.end(before[0][1])
    assert [text for _, _, text in house.sent()] == ["p2"]


def test_questions_before_the_jobs_are_loaded_are_bounded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered in order once it is; too many are refused at once."""
    monkeypatch.setattr(module, "EARLY_BYTES", 2 * module.JOB_BYTES)
    house.runner = house.runner_of(run=7)
    job_id = IDS.new()
    said: list[bool] = []
    job = told.StartJob(job_id, "", "s", "m", 1, 9, 0.5, msgspec.msgpack.encode(["p"]))
    for question in (job, told.AskProgress(job_id), told.AskProgress(job_id)):
        house.runner.ask(told.encode(question), lambda ok, _: said.append(ok))
    assert said == [False]
    house.turn()
    assert said == [False, True, True]
    assert [text for _, _, text in house.sent()] == ["p"]


def test_next_life_of_the_host_runs_again_what_was_running(house: House) -> None:
    """Seats and epochs begin again, so they prove nothing."""
    house.start(3, concurrency=2)
    before = house.sent()
    assert house.end(before[0][1])
    house.runner = house.runner_of(run=8)
    house.turn()
    house.turn()
    assert [text for _, _, text in house.sent()] == ["p1", "p2"]


def test_cancelled_job_stops_its_workers(house: House) -> None:
    """Each running prompt's worker is told; nothing of it starts again."""
    job = house.start(4, concurrency=2)
    running = {call for _, call, _ in house.sent()}
    house.post = house.runner._mail = _Quiet()  # type: ignore[assignment]
    said = house.ask(told.CancelJob(job))
    assert said is not None
    assert orjson.loads(said.body)["cancelled"] == 4
    told_to_stop = {
        msgspec.msgpack.decode(frames.payload(record), type=frames.CancelCall).call_id
        for record in house.post.records  # type: ignore[attr-defined]
    }
    assert told_to_stop == running
    for call_id in running:
        assert house.end(call_id, "cancelled")
    assert house.progress(job)["cancelled"] == 4
    assert (house.runner.open, house.runner.running) == (0, 0)


class _Quiet:
    """Takes records nobody waits for."""

    max_record = 8192

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def send(self, seat: int, records: list[bytes], done: Any = None) -> None:
        self.records += records


def test_broken_database_is_no_answer_and_loses_nothing(house: House) -> None:
    """The worker asks again; the prompt is still its own."""
    job = house.start(1)
    ((_, call_id, _),) = house.sent()
    house.keeper.broken = True
    assert not house.end(call_id)
    assert house.ask(told.AskProgress(job)) is None
    house.keeper.broken = False
    assert house.end(call_id)
    assert house.progress(job)["status"] == "completed"


def test_job_too_old_is_cancelled(house: House) -> None:
    """With whatever it has left."""
    house.runner.concurrency = 0
    job = house.start(2)
    house.runner.age_s = -1e10
    house.turn(1.0)
    house.turn()
    assert house.progress(job)["status"] == "cancelled"


def test_refusals_have_names(house: House) -> None:
    """Full, unknown, and nonsense."""
    house.shelf.configure(ShelfOptions(jobs=JobCaps(jobs=1)))
    job = house.start(1)
    texts = msgspec.msgpack.encode(["x"])
    said = house.ask(told.StartJob(IDS.new(), "", "", "m", 1, 9, 0.5, texts))
    assert said is not None
    assert said.said == "full"
    for question in (told.AskProgress("x"), told.CancelJob("x"), told.AskLines("x", -1, 9)):
        said = house.ask(question)
        assert said is not None
        assert said.said == "unknown"
    answers: list[bool] = []
    house.runner.ask(b"\xc1", lambda ok, _value: answers.append(ok))
    assert answers == [False]
    assert house.progress(job)["total"] == 1
