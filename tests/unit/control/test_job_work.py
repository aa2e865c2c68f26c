"""Rows to bodies, records to lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson
import pytest

from tpo_mp.control import answers, job_work
from tpo_mp.shm.callid import CallIds
from tpo_mp.store import job_questions as told
from tpo_mp.store.job_table import JobCaps, JobRow
from tpo_mp.store.questions import RESULTS
from tpo_mp.store.shelf import Shelf, ShelfOptions

JOB = CallIds(1, 2).new()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A shelf with one job of three prompts, all claimed."""
    made = Shelf(tmp_path, ShelfOptions())
    texts = msgspec.msgpack.encode(["zero", "one", "two"])
    question = told.StartJob(JOB, "team", "s1", "m", 3, 9, 0.0, texts)
    made.with_jobs(lambda jobs: job_work.start(jobs, question))
    yield made
    made.close()


def claim(shelf: Shelf) -> list[job_work.Handout]:
    """Claim everything."""
    jobs = shelf.jobs
    assert jobs is not None
    row = jobs.find(JOB)
    assert row is not None
    return job_work.claim(jobs, row, [(0, 1)] * 3, "r")


def end(shelf: Shelf, call_id: str, size: int = 4) -> JobRow:
    """Close a prompt with a text of that size."""
    record = orjson.dumps({"request_id": call_id, "session_id": None, "status": "completed",
                           "result": "x" * size, "error": None, "model": "m"})  # fmt: skip
    jobs = shelf.jobs
    assert jobs is not None
    row = job_work.end(jobs, told.EndPrompt(call_id, "completed", record))
    assert row is not None
    return row


def test_prompt_becomes_a_chat_call_of_its_session(shelf: Shelf) -> None:
    """With the job's sampling; ids are new, and name the shard that took the job."""
    found = claim(shelf)
    assert [orjson.loads(h.body)["messages"][0]["content"] for h in found] == ["zero", "one", "two"]
    body = orjson.loads(found[0].body)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
    meta = msgspec.msgpack.decode(found[0].meta)
    assert meta[:4] == [job_work.PATH, "m", "team", "s1"]
    ids = [h.prompt.call_id for h in found]
    assert len(set(ids)) == 3
    place = CallIds.parse(ids[0])
    assert place is not None
    assert (place.seat, place.epoch) == (1, 2)


def test_lines_are_of_ended_prompts_in_order_and_in_pages(shelf: Shelf) -> None:
    """A page holds at least one line; ``next`` is the number of its last."""
    first, _, third = claim(shelf)
    end(shelf, third.prompt.call_id)
    end(shelf, first.prompt.call_id)
    jobs = shelf.jobs
    assert jobs is not None
    page = job_work.lines(jobs, told.AskLines(JOB, -1, 1))
    line = orjson.loads(page.body)
    assert (line["index"], line["text"], line["status"], page.next) == (0, "xxxx", "completed", 0)
    page = job_work.lines(jobs, told.AskLines(JOB, 0, 1))
    assert (orjson.loads(page.body)["index"], page.next) == (2, None)
    whole = job_work.lines(jobs, told.AskLines(JOB, -1, 1 << 20))
    assert [orjson.loads(part)["index"] for part in whole.body.splitlines()] == [0, 2]


def test_prompt_is_read_like_any_other_call(shelf: Shelf) -> None:
    """Pending, processing, completed, with its session; cancelled without a record of its own."""

    def status(call_id: str) -> tuple[str, str | None]:
        ok, raw = answers.get(shelf, RESULTS, call_id)
        assert ok
        assert raw is not None
        record = orjson.loads(raw)
        return record["status"], record["session_id"]

    found = claim(shelf)
    ids = [h.prompt.call_id for h in found]
    jobs = shelf.jobs
    assert jobs is not None
    jobs.put_back(ids[0], lost=False)
    assert status(ids[0]) == ("pending", "s1")
    assert status(ids[1]) == ("processing", "s1")
    end(shelf, ids[1])
    assert status(ids[1]) == ("completed", "s1")
    jobs.cancel(JOB)
    assert status(ids[2]) == ("cancelled", "s1")
    assert answers.get(shelf, RESULTS, CallIds(1, 2).new()) == (True, None)


def test_answer_that_finds_no_room_fails_its_prompt(shelf: Shelf) -> None:
    """The cap is kept; the line says why there is no text."""
    jobs = shelf.jobs
    assert jobs is not None
    jobs.caps = JobCaps(bytes=2000)
    found = claim(shelf)
    assert end(shelf, found[0].prompt.call_id, size=5000).failed == 1
    page = job_work.lines(jobs, told.AskLines(JOB, -1, 1 << 20))
    assert orjson.loads(page.body)["error"]["code"] == "job_bytes"
