"""A surface without a shard: its routes, an exchange that records, a gateway told what to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.fake_env import FakeWorld, SilentMetrics
from tests.support.raw import build
from tpo_mp.config.sections import StreamsSection
from tpo_mp.config.tree import Config
from tpo_mp.dialects.openai_responses_background import accepted, response_id
from tpo_mp.errors import TpoError
from tpo_mp.http.endpoints import Endpoint, EndpointTable
from tpo_mp.http.exchange import JSON
from tpo_mp.http.head import Head, parse
from tpo_mp.http.wheel import Wheel
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.feeds import Feeds
from tpo_mp.pipeline.response_log import EventPage
from tpo_mp.ports import Feature
from tpo_mp.store.client import DEADLINE_S as STORE_S
from tpo_mp.store.job_questions import AskLines, AskProgress, JobAnswer, Question, StartJob
from tpo_mp.store.questions import ReplayWord
from tpo_mp.types import Call, Reply, Stream, Terminal


@dataclass
class FakeExchange:
    """One request, and what was answered."""

    head: Head
    body: bytes = b""
    peer: str = "127.0.0.1"
    on_disconnect: Callable[[], None] | None = None
    open: bool = True
    status: int = 0
    answer: bytes = b""
    content_type: bytes = b""
    extra: bytes = b""
    ended: bool = False
    aborted: bool = False
    hard: bool = False
    source: Stream | None = None

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        """Record a whole response."""
        assert not self.status, "answered twice"
        self.status, self.answer, self.ended = status, body, True
        self.content_type, self.extra = content_type, extra

    def begin(self, status: int, content_type: bytes, extra: bytes, source: Stream | None) -> None:
        """Record a head."""
        assert not self.status, "answered twice"
        self.status, self.content_type, self.extra = status, content_type, extra
        self.source = source

    def write(self, data: bytes) -> None:
        """Record body bytes."""
        assert data
        self.answer += data

    def finish(self) -> None:
        """Record the end."""
        assert not self.ended, "ended twice"
        self.ended = True

    def abort(self, *, hard: bool = False) -> None:
        """Record a break."""
        self.aborted = True
        self.hard = hard

    def json(self) -> Any:
        """Decode the answer."""
        return json.loads(self.answer)


def fake_feeds(**settings: Any) -> Feeds:
    """Feeds of one process, without a beat."""
    return Feeds(settings=StreamsSection(**settings), timers=Wheel(), metrics=SilentMetrics())


def done_at_once(question: Question) -> JobAnswer:
    """A control that keeps every job it is given, and nothing of it."""
    if isinstance(question, (StartJob, AskProgress)):
        ended = {"status": "completed", "total": 2, "completed": 2, "failed": 0, "cancelled": 0}
        return JobAnswer("ok", json.dumps(ended).encode())
    return JobAnswer("ok") if isinstance(question, AskLines) else JobAnswer("unknown")


class NoSeries:
    """A host that counted nothing."""

    def collect(self) -> tuple[Any, ...]:
        """None."""
        return ()


@dataclass
class FakeGateway:
    """The shard as a surface sees it."""

    plane: Any = None
    metrics_arena: Any = field(default_factory=NoSeries)
    names: list[str] = field(default_factory=lambda: ["echo"])
    stored: dict[tuple[str, str], tuple[bytes | None] | None] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)
    submitted: list[Delivery] = field(default_factory=list)
    accepted: list[Delivery] = field(default_factory=list)
    ends: list[Terminal] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)
    jobs: Callable[[Question], JobAnswer | None] = field(default=done_at_once)
    job_questions: list[Question] = field(default_factory=list)
    deaf: bool = False
    replay_words: list[ReplayWord] = field(default_factory=list)
    config: Config = field(default_factory=Config)
    affinities: list[str | None] = field(default_factory=list)
    table: Sequence[Endpoint] = ()
    background: list[Call] = field(default_factory=list)
    pages: list[EventPage | None] = field(default_factory=list)
    followed: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    on_cancel: Callable[[], object] = lambda: None

    feeds: Feeds = field(default_factory=fake_feeds)
    tenants: dict[str, str] = field(default_factory=dict)

    def tenant(self, head: Head) -> str:
        """Named by the test per ``authorization`` header."""
        return self.tenants.get(head.headers.get(b"authorization", b"").decode(), "")

    def mark(self, head: Head) -> str:
        """The tenant's name stands for its mark."""
        return self.tenant(head)

    def owns(self, head: Head, call_id: str) -> bool:
        """Whether the id ends in the tenant's name."""
        return call_id.endswith(self.tenant(head))

    def recall(self, exchange: Any, way: Any) -> None:
        """Nothing came before."""

    def new_call(
        self, exchange: Any, model: str, body: bytes, stream: bool, affinity: str | None
    ) -> Call:
        """Make a call with a fixed id."""
        self.affinities.append(affinity)
        return Call(id="call-1", model=model, body=body, stream=stream, started_at=1000.0)

    def submit(self, delivery: Delivery) -> None:
        """Keep the delivery; the test decides its outcome."""
        self.submitted.append(delivery)

    def settled(self, delivery: Delivery) -> None:
        """Note the end."""
        self.ends.append(delivery.terminal)

    async def models(self) -> Sequence[str]:
        """The names it was given."""
        return self.names

    def adapter(self, model: str) -> tuple[str, str] | None:
        """Nobody loads any."""
        return None

    def knows_model(self, model: str) -> bool:
        """Whether the name was given."""
        return model in self.names

    def sampling(self, model: str) -> Mapping[str, object]:
        """No backend wants anything else."""
        return {}

    def default_model(self) -> str | None:
        """The first name."""
        return self.names[0] if self.names else None

    async def ask_store(
        self, table: str, key: str, wait_s: float = STORE_S
    ) -> tuple[bytes | None] | None:
        """What was stored; nobody home when nothing was said."""
        self.questions.append((table, key))
        return self.stored.get((table, key))

    async def result(self, call_id: str, wait_s: float) -> bytes | None:
        """What was kept."""
        return self.results.get(call_id)

    async def cancel(self, call_id: str) -> bool:
        """Note it, and do what the test wants then; nothing is open here."""
        self.cancelled.append(call_id)
        self.on_cancel()
        return False

    async def ask_jobs(self, question: Question) -> JobAnswer | None:
        """What the test's control says; nobody home when it was told nothing."""
        self.job_questions.append(question)
        return self.jobs(question)

    async def tell_replay(self, call_id: str, word: ReplayWord, wait_s: float) -> bytes | None:
        """Note it; every attempt is the first.  Who is ``deaf`` takes nothing."""
        if self.deaf:
            return None
        self.replay_words.append(word)
        return b"1" if word.how == "begun" else b""

    def endpoints(self) -> Sequence[Endpoint]:
        """The surface's own routes."""
        return self.table

    async def run_background(self, call: Call, asked: bytes) -> dict[str, Any]:
        """Keep the call and answer what a client sees first."""
        self.background.append(call)
        return accepted(asked, response_id(call.id), 5)

    async def background_events(self, call_id: str, after: int, wait_s: float) -> EventPage | None:
        """The pages it was given, one after the other."""
        self.followed.append((call_id, after))
        return self.pages.pop(0) if self.pages else None

    def accept(self, delivery: Delivery, session_id: str) -> dict[str, Any]:
        """Keep the delivery and answer a first record."""
        self.accepted.append(delivery)
        record = {"request_id": delivery.call.id, "session_id": session_id, "status": "processing"}
        self.results.setdefault(delivery.call.id, json.dumps(record).encode())
        return record


class _Puts:
    """The store of a surface: it keeps what it is given where, and if, the test wants it to."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None:
        """What was put."""
        return self._surface.puts.get((table, key))

    async def put(
        self, table: str, key: str, value: bytes, ttl_s: float, wait_s: float = 0.05
    ) -> bool:
        """Keep it."""
        if self._surface.takes_puts:
            self._surface.puts[table, key] = value
        return self._surface.takes_puts


class Surface:
    """A surface on its own routes."""

    def __init__(self, feature: Feature, **gateway: Any) -> None:
        self.gateway = FakeGateway(**gateway)
        self.puts: dict[tuple[str, str], bytes] = {}
        self.takes_puts = False
        self.world = FakeWorld()
        env = replace(self.world.env, store=_Puts(self))
        built = feature.build(feature.Config(), env)
        self.gateway.table = built.endpoints(self.gateway)
        self._table = EndpointTable(self.gateway.table)

    def ask(
        self, method: str, target: str, value: Any = None, headers: dict[str, str] | None = None
    ) -> FakeExchange:
        """Send one request; errors are raised as the edge would see them."""
        body = b"" if value is None else json.dumps(value).encode()
        return self.send(method, target, body, headers)

    def send(
        self, method: str, target: str, body: bytes, headers: dict[str, str] | None = None
    ) -> FakeExchange:
        """Send one request with any body."""
        exchange, waiting = self.begin(method, target, body, headers)
        if waiting is not None:
            asyncio.run(waiting)  # type: ignore[arg-type]
        return exchange

    def begin(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[FakeExchange, object]:
        """Send one request; what its handler waits for is the test's to run."""
        lines = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body))}
        raw = build(method, target, lines | (headers or {}))
        exchange = FakeExchange(parse(raw, self._table, 1 << 20), body)
        if exchange.head.refusal is not None:
            raise exchange.head.refusal
        assert exchange.head.endpoint is not None
        return exchange, exchange.head.endpoint.handler(exchange)

    def refusal(self, method: str, target: str, value: Any = None) -> TpoError:
        """Send a request that must be refused and answer the error."""
        try:
            exchange = self.ask(method, target, value)
        except TpoError as error:
            return error
        raise AssertionError(f"answered {exchange.status}: {exchange.answer!r}")


def whole(body: bytes) -> Reply:
    """Make a finished reply."""
    return Reply(200, body, backend="fake")
