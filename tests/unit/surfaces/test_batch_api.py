"""The batch surface: jobs handed over, awaited, shown page by page, cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.support.fake_gateway import FakeExchange, Surface
from tpo_mp.errors import TpoError
from tpo_mp.pipeline.gate import Gate
from tpo_mp.store import job_questions as told
from tpo_mp.store.job_questions import JobAnswer, Question
from tpo_mp.surfaces import batch_api
from tpo_mp.surfaces.batch_api import FEATURE
from tpo_mp.types import Call

BATCH = "/api/v1/batch"


class Control:
    """Answers as control would for one job of some lines."""

    def __init__(self, lines: int = 3, status: str = "completed", turns: int = 0) -> None:
        self.lines = [{"index": n, "text": f"a\n{n}"} for n in range(lines)]
        self.status = status
        self.turns = turns
        self.away = 0

    def __call__(self, question: Question) -> JobAnswer | None:
        """Answer a question; silent for a while when told so."""
        if self.away:
            self.away -= 1
            return None
        if isinstance(question, told.AskLines):
            at = question.after + 1
            more = at if at + 1 < len(self.lines) else None
            line = json.dumps(self.lines[at]).encode() + b"\n" if self.lines else b""
            return JobAnswer("ok", line, more)
        self.turns -= isinstance(question, told.AskProgress)
        status = "in_progress" if self.turns >= 0 and self.turns else self.status
        counts = {"total": 3, "completed": 2, "failed": 1, "cancelled": 0}
        return JobAnswer("ok", json.dumps({"status": status} | counts).encode())


def surface(control: Callable[[Question], JobAnswer | None]) -> Surface:
    """The surface before that control."""
    return Surface(FEATURE, jobs=control)


def test_job_reaches_control_with_what_it_needs() -> None:
    """Model and sampling are settled; prompts travel as they are."""
    made = surface(Control(turns=2))
    body = {"prompts": ["a", "b"], "session_id": 7, "temperature": 0, "max_concurrency": 2}
    exchange = made.ask("POST", BATCH, body)
    job = made.gateway.job_questions[0]
    assert isinstance(job, told.StartJob)
    assert (job.model, job.session, job.concurrency) == ("echo", "7", 2)
    assert (job.max_tokens, job.temperature) == (0, 0)  # left to the backend, and said
    assert msgspec.msgpack.decode(job.prompts) == ["a", "b"]
    assert exchange.status == 200
    answer = exchange.json()
    assert answer["job_id"] == job.job_id
    assert [r["text"] for r in answer["results"]] == ["a\n0", "a\n1", "a\n2"]
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (3, 2, 1)
    assert exchange.ended


def test_large_or_patient_batches_are_accepted() -> None:
    """More prompts than fit an answer, ``respond-async``, or no time to wait."""
    many = {"prompts": ["x"] * 101}
    for target, body, headers in (
        (BATCH, many, {}),
        (BATCH, {"prompts": ["x"]}, {"Prefer": "respond-async"}),
        (BATCH + "?wait=0", {"prompts": ["x"]}, {}),
    ):
        made = surface(Control())
        exchange = made.ask("POST", target, body, headers)
        assert (exchange.status, exchange.json()) == (202, {"job_id": "call-1"})
        assert b"location: /api/v1/batch/call-1" in exchange.extra
        assert len(made.gateway.job_questions) == 1


def test_results_are_sent_page_by_page() -> None:
    """A page that control owes for a moment is asked for again."""
    control = Control()
    exchange = surface(control).ask("GET", f"{BATCH}/j/results")
    assert exchange.content_type == b"application/x-ndjson"
    assert [json.loads(line)["index"] for line in exchange.answer.splitlines()] == [0, 1, 2]
    assert exchange.ended
    empty = surface(Control(lines=0)).ask("GET", f"{BATCH}/j/results")
    assert (empty.status, empty.answer, empty.ended) == (200, b"", True)


def test_results_that_cannot_go_on_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an end that looks like the end."""
    monkeypatch.setattr(batch_api, "POLL_MAX_S", 0.0)
    control = Control()

    def failing(question: Question) -> JobAnswer | None:
        late = isinstance(question, told.AskLines) and question.after >= 0
        return None if late else control(question)

    exchange = surface(failing).ask("GET", f"{BATCH}/j/results")
    assert (exchange.aborted, exchange.ended) == (True, False)


def test_slow_reader_holds_pages_back_and_a_gone_one_ends_them() -> None:
    """One page at a time waits in this process."""

    async def story() -> None:
        gate = Gate()
        assert await gate.passed()
        gate.pause()
        waiting = asyncio.create_task(gate.passed())
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.resume()
        assert await waiting
        gate.pause()
        waiting = asyncio.create_task(gate.passed())
        gate.cancel()
        assert not await waiting

    asyncio.run(story())


def test_job_nobody_waits_for_any_more_is_cancelled() -> None:
    """Its client left before it learned the id."""
    asked: list[Question] = []
    clients: list[FakeExchange] = []

    def control(question: Question) -> JobAnswer | None:
        asked.append(question)
        if isinstance(question, told.AskProgress):
            assert clients[0].on_disconnect is not None
            clients[0].on_disconnect()
        return Control(status="in_progress")(question)

    made = surface(control)
    new_call = made.gateway.new_call

    def noted(exchange: FakeExchange, **of: Any) -> Call:
        clients.append(exchange)
        return new_call(exchange, **of)

    made.gateway.new_call = noted  # type: ignore[method-assign, assignment]
    exchange = made.ask("POST", BATCH, {"prompts": ["x"]})
    assert not exchange.status, "nobody is there to answer"
    assert isinstance(asked[-1], told.CancelJob)


@pytest.mark.parametrize(
    ("method", "tail"), [("GET", ""), ("GET", "/progress"), ("GET", "/results"), ("DELETE", "")]
)
def test_unknown_jobs_and_a_silent_control_differ(method: str, tail: str) -> None:
    """404 when control says so, 503 when it says nothing."""
    unknown = surface(lambda _: JobAnswer("unknown"))
    assert unknown.refusal(method, f"{BATCH}/j{tail}").status == 404
    silent = surface(lambda _: None)
    assert silent.refusal(method, f"{BATCH}/j{tail}").status == 503


def test_full_host_and_finished_jobs_are_refused() -> None:
    """429 and come back; 409 and do not."""
    full = surface(lambda _: JobAnswer("full")).refusal("POST", BATCH, {"prompts": ["x"]})
    assert (full.status, full.reason, full.retry_after_s) == (429, "jobs_full", 60)
    done = surface(Control()).refusal("DELETE", f"{BATCH}/j")
    assert (done.status, done.reason) == (409, "job_finished")
    assert surface(Control(status="cancelled")).ask("DELETE", f"{BATCH}/j").status == 200


def test_job_that_may_have_been_kept_is_cancelled_when_its_client_hears_no() -> None:
    """Control was silent: the client will come with another."""
    made = surface(lambda _: None)
    with pytest.raises(TpoError) as refused:
        made.ask("POST", BATCH, {"prompts": ["x"]})
    assert refused.value.status == 503
    assert [type(q) for q in made.gateway.job_questions] == [told.StartJob, told.CancelJob]
