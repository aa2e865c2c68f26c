"""Batch jobs: many prompts handed over at once, run at low priority, fetched by the job's id.

Up to ``WHOLE`` prompts are answered in the response, unless the client prefers to come back; the
job is as durable as any other meanwhile.  Jobs live with control, so every worker answers alike.

Invariants: results are sent page by page as the client reads, never held as a whole; a client that
leaves while its answer is awaited cancels the job, because it never learned the id.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.dialects import native, shapes
from tpo_mp.errors import InvalidRequest, NotFound, RateLimited, Rejected, Shed, TpoError
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import JSON, Exchange, id_line
from tpo_mp.pipeline.gate import Gate
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.store import job_questions as ask

WHOLE = 100
MAX_WAIT_S = 300.0
PAGE_BYTES = 256 << 10
NDJSON = b"application/x-ndjson"
POLL_MIN_S, POLL_MAX_S = 0.005, 0.2
TRIES = 10
WAIT = Parameter("wait", "Seconds to wait for the answer of a small batch; 300 unless given.",
                 Annotated[float, Meta(ge=0, le=MAX_WAIT_S)])  # fmt: skip
PREFER = Parameter("prefer", "`respond-async`: answer at once with the job's id.", place="header")
_JOB = "/api/v1/batch/{id}"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling used when a batch does not say."""

    max_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Tokens of a reply when the batch does not say; omitted: as its "
            "backend's kind has it, mostly 256."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(
            description="Temperature of batches that do not say; omitted: as its "
            "backend's kind has it, mostly 0.7."
        ),
    ] = None


class _Progress(Struct):
    status: str
    total: int
    completed: int
    failed: int
    cancelled: int


_progress = msgspec.json.Decoder(_Progress).decode


class BatchApi:
    """Routes under ``/api/v1/batch``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        job, at = Outcome("the job", shapes.BatchProgress), "/api/v1/batch/$JOB_ID"
        return [
            Endpoint(
                "POST", "/api/v1/batch", self.start, "native", max_body_bytes=0,
                request=native.BatchRequest, example={"prompts": ["hello", "world"]},
                parameters=(PREFER, WAIT), errors=(404, 422, 429),
                outcomes=(Outcome("all results, of up to 100 prompts", shapes.BatchAnswer),
                          Outcome("the job runs", shapes.BatchAccepted, 202)),
            ),
            Endpoint("GET", _JOB, self.show, "native", example_path=at, outcomes=(job,)),
            Endpoint("GET", _JOB + "/progress", self.show, "native",
                     example_path=at + "/progress", outcomes=(job,)),
            Endpoint(
                "GET", _JOB + "/results", self.results, "native", example_path=at + "/results",
                outcomes=(Outcome("a JSON line per prompt that has ended, in their order",
                                  media=NDJSON.decode()),),
            ),
            Endpoint("DELETE", _JOB, self.cancel, "native", errors=(409,),
                     example_path="/api/v1/batch/$OPEN_JOB_ID",
                     outcomes=(Outcome("the job, cancelled now or before",
                                       shapes.BatchProgress),)),
        ]  # fmt: skip

    async def start(self, exchange: Exchange) -> None:
        """Run many prompts as one job."""
        query = given.parameters(exchange.head)
        wait_s = given.number(query, "wait", MAX_WAIT_S, MAX_WAIT_S)
        request = native.decode_batch(exchange.body)
        if b"respond-async" in exchange.head.headers.get(b"prefer", b"").lower():
            wait_s = 0.0
        job_id = await self._keep(exchange, request)
        if len(request.prompts) <= WHOLE and wait_s:
            await self._whole(exchange, job_id, wait_s)
        else:
            _accepted(exchange, job_id)

    async def show(self, exchange: Exchange) -> None:
        """Show how a job stands."""
        said = await self._ask(ask.AskProgress(self._mine(exchange)))
        exchange.respond(200, said.body, extra=id_line(exchange.head))

    async def results(self, exchange: Exchange) -> None:
        """Stream what became of the prompts that have ended."""
        job_id = self._mine(exchange)
        page = await self._ask(ask.AskLines(job_id, -1, PAGE_BYTES))
        gate = Gate()
        exchange.on_disconnect = gate.cancel
        exchange.begin(200, NDJSON, id_line(exchange.head), gate)
        while True:
            if page.body:
                exchange.write(page.body)
            if page.next is None:
                exchange.finish()
                return
            following = await self._next(gate, ask.AskLines(job_id, page.next, PAGE_BYTES))
            if following is None:
                exchange.abort()
                return
            page = following

    async def cancel(self, exchange: Exchange) -> None:
        """Cancel what is left of a job."""
        said = await self._ask(ask.CancelJob(self._mine(exchange)))
        status = _progress(said.body).status
        if status != "cancelled":
            said_so = f"the job has already {status}"
            raise Rejected(said_so, reason="job_finished", status=409)
        exchange.respond(200, said.body, extra=id_line(exchange.head))

    # -- inside ---------------------------------------------------------------------------------

    def _mine(self, exchange: Exchange) -> str:
        """The job a path names; another tenant's does not exist."""
        job_id = exchange.head.params["id"]
        if not self._gateway.owns(exchange.head, job_id):
            raise _unknown()
        return job_id

    async def _keep(self, exchange: Exchange, request: native.BatchRequest) -> str:
        """Hand the job to control, whose word is final; answers its id."""
        gateway, config = self._gateway, self._config
        model = request.model or gateway.default_model()
        if model is None:
            raise InvalidRequest("model is required: no backend names one", param="model")
        if not gateway.knows_model(model):
            said = f"the model {model[:120]!r} does not exist or no backend serves it"
            raise NotFound(said, reason="model_not_found", param="model")
        call = gateway.new_call(
            exchange, model=model, body=b"", stream=False, affinity=request.session
        )
        temperatures = (request.temperature, config.temperature)
        job = ask.StartJob(
            call.id, call.tenant, request.session or call.session or "", model,
            request.max_concurrency, request.max_tokens or config.max_tokens or 0,
            next((t for t in temperatures if t is not None), -1.0),
            msgspec.msgpack.encode(request.prompts),
        )  # fmt: skip
        try:
            answer = await self._ask(job)
        except Shed:
            # It may have been kept all the same, and its client will come with another.
            await gateway.ask_jobs(ask.CancelJob(call.id))
            raise
        if answer.said == "full":
            full = "too many batch jobs have prompts left"
            raise RateLimited(full, reason="jobs_full", retry_after_s=60)
        return call.id

    async def _whole(self, exchange: Exchange, job_id: str, wait_s: float) -> None:
        gate = Gate()
        exchange.on_disconnect = gate.cancel
        until, pause_s = monotonic() + wait_s, POLL_MIN_S
        while True:
            await asyncio.sleep(min(pause_s, max(until - monotonic(), 0.0)))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
            if gate.gone:
                await self._gateway.ask_jobs(ask.CancelJob(job_id))
                return
            said = await self._gateway.ask_jobs(ask.AskProgress(job_id))
            done = None if said is None or said.said != "ok" else _progress(said.body)
            if done is not None and done.status != "in_progress":
                break
            if monotonic() >= until:
                _accepted(exchange, job_id)
                return
        await self._answer(exchange, job_id, done, gate)

    async def _answer(self, exchange: Exchange, job_id: str, done: _Progress, gate: Gate) -> None:
        """Send all results as one JSON object, a page at a time."""
        page = await self._ask(ask.AskLines(job_id, -1, PAGE_BYTES))
        exchange.begin(200, JSON, id_line(exchange.head), gate)
        exchange.write(b'{"job_id":"%b","results":[' % job_id.encode())
        first = True
        while True:
            lines = page.body.replace(b"\n", b",")[:-1]  # JSON text has no newline inside
            if lines:
                exchange.write(lines if first else b"," + lines)
                first = False
            if page.next is None:
                break
            following = await self._next(gate, ask.AskLines(job_id, page.next, PAGE_BYTES))
            if following is None:
                exchange.abort()
                return
            page = following
        failed = done.failed + done.cancelled
        counts = {"total": done.total, "succeeded": done.completed, "failed": failed}
        exchange.write(b"]," + orjson.dumps(counts)[1:])
        exchange.finish()

    async def _next(self, gate: Gate, question: ask.AskLines) -> ask.JobAnswer | None:
        """The following page once the client has room; ``None``: nobody wants it, or gives it."""
        for _ in range(TRIES):
            if not await gate.passed():
                return None
            said = await self._gateway.ask_jobs(question)
            if said is not None:
                return said if said.said == "ok" else None
            await asyncio.sleep(POLL_MAX_S)
        return None

    async def _ask(self, question: ask.Question) -> ask.JobAnswer:
        said = await self._gateway.ask_jobs(question)
        if said is None:
            raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)
        if said.said == "unknown":
            raise _unknown()
        return said


def _unknown() -> TpoError:
    return NotFound("no such job", reason="job_not_found")


def _accepted(exchange: Exchange, job_id: str) -> None:
    exchange.on_disconnect = None
    where = b"location: /api/v1/batch/%b\r\n" % job_id.encode()
    body = orjson.dumps({"job_id": job_id})
    exchange.respond(202, body, extra=id_line(exchange.head) + where)


FEATURE = Feature(Config, BatchApi)
