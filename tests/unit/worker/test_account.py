"""The books: every finished call in cells and records once, slots released behind their records."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeExchange, FakeGateway
from tests.support.fake_net import FakeLoop
from tpo_mp.config.prices import Prices, PricesSection, TokenPrice
from tpo_mp.errors import BackendFailure, DeadlineExceeded, RateLimited, Shed
from tpo_mp.http.head import Head
from tpo_mp.pipeline.audited import Audited
from tpo_mp.pipeline.delivery import Delivery, UnexpectedError
from tpo_mp.pipeline.kept import AnswerRecord, ToldAnswer
from tpo_mp.pipeline.recall import Recalled
from tpo_mp.shm.frames import HEAD, Kind, RecordFrame
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.types import Aside, Ending, Principal, Reply, Terminal, Usage
from tpo_mp.worker import account
from tpo_mp.worker.account import BATCH, Account, Repeat

_decode = msgspec.msgpack.Decoder(list[RecordFrame]).decode


class Books:
    """An account over real cells, a ring with as much room as the test says, counted slots."""

    def __init__(self, max_record: int = 65_000) -> None:
        self.arena = MetricsArena.create(1)
        self.loop = FakeLoop()
        self.crashes: list[BaseException] = []
        self.letters_left = 0
        self.lettered: list[Delivery] = []
        self.room = 1 << 30
        self.frames: list[bytes] = []
        self.closed: list[int] = []
        self.log: list[str] = []
        self.account = Account(
            loop=self.loop,  # type: ignore[arg-type]
            metrics=self.arena.block(0, 1), registry=self,  # type: ignore[arg-type]
            push=self._push, max_record=max_record, letters=self,  # type: ignore[arg-type]
            on_crash=self.crashes.append,
        )  # fmt: skip

    def _push(self, frame: bytes) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.frames.append(frame)
        self.log.append("push")
        return True

    def close(self, slot: int) -> None:
        """Release a slot."""
        self.closed.append(slot)
        self.log.append("close")

    def add(self, delivery: Delivery) -> None:
        """Take a dead letter."""
        self.lettered.append(delivery)

    def flush(self) -> bool:
        """Whether all letters have gone."""
        return self.letters_left == 0

    def finish(self, n: int = 1, *, reply: Reply | None = None, error: Any = None,
               terminal: Terminal = Terminal.DONE, status: int = 200, template: str = "/v1/x",
               **fields: Any) -> None:  # fmt: skip
        """Account for calls that ended."""
        for i in range(n):
            call = make_call(
                b"{}", **{"backend": "up", "attempts": 1, "slot": i, "admitted": True} | fields
            )
            head = Head()
            head.method = "POST"
            delivery = Delivery(FakeGateway(), FakeExchange(head, b"body"), call)  # type: ignore[arg-type]
            delivery.template, delivery.reply, delivery.error = template, reply, error
            delivery.terminal, delivery.status = terminal, status
            delivery.finished_at = call.started_at + 2.0
            delivery.bytes_out = 9
            self.account.add(delivery)
        self.loop.run()

    def records(self) -> list[RecordFrame]:
        """Everything pushed."""
        found = []
        for frame in self.frames:
            assert HEAD.unpack_from(frame) == (Kind.RECORDS, 0)
            found += _decode(frame[HEAD.size :])
        return found

    def value(self, name: str, **labels: str) -> float:
        """One sample of one family."""
        for family in self.arena.collect():
            for sample in family.samples:
                if family.name == name and dict(sample.labels) == labels:
                    return float(getattr(sample, "value", 0))
        return 0.0


@pytest.fixture
def books() -> Iterator[Books]:
    """Fresh books."""
    made = Books()
    yield made
    made.arena.close()


def test_a_call_s_cost_is_in_its_record_and_in_the_metric(books: Books) -> None:
    """Cached tokens at their own price; a model without one has no cost, and is counted."""
    price = TokenPrice(input=2, output=8, cached=0.5)
    books.account.prices = Prices(PricesSection(builtin=False, models={"m": price}))
    books.account.models.use(["m", "dark"])

    def finish(model: str, usage: Usage | None, **fields: Any) -> None:
        reply = Reply(200, b"x")
        reply.usage = usage
        books.finish(reply=reply, model=model, **fields)

    finish("m", Usage(1000, 10, 600))
    finish("m", Usage(1, 0))
    finish("m", None)
    finish("m", Usage(1000, 10), attempts=0, backend="", cache="hit")
    finish("dark", Usage(5, 5))
    books.finish(error=Shed("full"), terminal=Terminal.SHED, attempts=0, model="m")
    books.account.flush()
    told = [(r.cost_usd, r.cached_tokens, r.cache) for r in books.records()]
    dear = (400 * 2 + 600 * 0.5 + 10 * 8) / 1e6
    assert told == [
        (pytest.approx(dear), 600, ""), (pytest.approx(2e-6), 0, ""), (None, 0, ""),
        (0.0, 0, "hit"), (None, 0, ""), (0.0, 0, ""),
    ]  # fmt: skip
    name = "orchestrator_inference_cost_usd_total"
    assert books.value(name, worker="up", model="m") == pytest.approx(dear + 2e-6, abs=1e-9)
    assert books.value(name, worker="up", model="dark") == 0
    assert books.value("tpo_unpriced_calls_total", model="dark") == 1
    assert books.value("tpo_unpriced_calls_total", model="m") == 0


@pytest.mark.parametrize("usage", [(1000, 10, 600), (-1, -1, 0), (5, -1, 0)])
@pytest.mark.parametrize("model", ["m", "dark"])
def test_a_repeat_is_entered_as_the_call_it_stands_for(
    books: Books, model: str, usage: tuple[int, int, int]
) -> None:
    """Every cell grows as by a hit on the whole way, and its record says the same; at once."""
    other = Books()
    price = TokenPrice(input=2, output=8, cached=0.5)
    for one in (books, other):
        one.account.prices = Prices(PricesSection(builtin=False, models={"m": price}))
        one.account.models.use(["m", "dark"])
    answer = AnswerRecord(2, False, True, b"application/json", "stop", *usage, b"")
    told = ToldAnswer(answer, False, b"application/json", [b"x" * 9], b"")
    reply = told.reply("c")
    for _ in range(3):
        books.finish(
            reply=reply, model=model, attempts=0, backend="", cache="hit", id="c", shard=3, slot=-1,
            client_request_id="mine", session="s", tenant="t", key_id="k", peer="127.0.0.1",
        )  # fmt: skip
    books.account.flush()
    (record, *_) = books.records()
    head = Head()
    head.method, head.request_id, head.session = "POST", "mine", "s"
    head.principal = Principal("t", "k", "standard")
    endpoint: Any = SimpleNamespace(template="/v1/x")
    head.endpoint = endpoint
    request: Any = SimpleNamespace(model=model)
    known = Recalled(request, make_call(b"body"), b"key", Delivery)
    began_at = make_call(b"{}").started_at
    for _ in range(3):
        other.account.add_repeat(
            Repeat(known, told, "c", head, began_at, began_at + 2.0, 3, "127.0.0.1", 4, 9)
        )
    other.loop.run()
    (repeated, *_) = other.records()
    assert len(other.records()) == 3
    names = [n for n in RecordFrame.__struct_fields__ if n not in ("finished_at", "started_at")]
    assert [getattr(repeated, n) for n in names] == [getattr(record, n) for n in names]
    assert other.value("tpo_repeats_total") == 3
    assert _samples(other) == _samples(books)
    other.arena.close()


def _samples(books: Books) -> list[tuple[str, str]]:
    """All that was counted, but for whether a call went the whole way."""
    found = [
        (family.name, repr(sample))
        for family in books.arena.collect()
        for sample in family.samples
        if family.name != "tpo_repeats_total"
    ]
    return sorted(found)


def test_who_joined_and_pays_has_saved_nothing(books: Books) -> None:
    """Nor who was told of a failure; the others have, each its tokens."""
    for fields in ({"attempts": 0}, {"attempts": 1}, {"attempts": 0, "error": Shed("full")}):
        reply = Reply(200, b"x")
        reply.usage = Usage(3, 4)
        books.finish(reply=reply, model="m", cache="coalesced", **fields)
    assert books.value("tpo_saved_calls_total", by="coalesced") == 1
    assert books.value("tpo_saved_tokens_total", by="coalesced") == 7


def test_what_was_asked_besides_is_in_the_cost(books: Books) -> None:
    """With text and without it; an answer from the cache costs that alone."""
    price = TokenPrice(input=2, output=8)
    books.account.prices = Prices(PricesSection(builtin=False, models={"m": price}))
    aside = Aside(30, 0.25)
    for fields in ({}, {"audited": audited("words")}, {"attempts": 0, "cache": "hit"}):
        reply = Reply(200, b"x")
        reply.usage = Usage(1000, 0)
        books.finish(reply=reply, model="m", aside=aside, **fields)
    books.account.flush()
    assert [(r.cost_usd, r.aside_tokens, r.prompt_tokens, r.input) for r in books.records()] == [
        (pytest.approx(0.252), 30, 1000, None), (pytest.approx(0.252), 30, 1000, "words"),
        (0.25, 30, 1000, None),
    ]  # fmt: skip
    saved = books.value("tpo_saved_cost_usd_total", by="hit", model="m")
    assert saved == pytest.approx(0.002), "it would have been asked besides without the hit, too"


def test_record_says_everything_about_a_call(books: Books) -> None:
    """Audit, access line and spend in one."""
    reply = Reply(200, b"x")
    reply.usage = Usage(3, 4)
    books.finish(
        reply=reply, model="m", tenant="t", key_id="k", session="s", client_request_id="r",
        upstream_at=1000.5, first_byte_at=1001.5, shard=1, stream=True,
    )  # fmt: skip
    books.account.flush()
    (record,) = books.records()
    assert (record.call_id, record.method, record.path) == ("call-1", "POST", "/v1/x")
    assert (record.status, record.terminal) == (200, "done")
    assert (record.model, record.backend, record.tenant, record.key_id) == ("m", "up", "t", "k")
    assert (record.session, record.client_request_id) == ("s", "r")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 4)
    assert (record.bytes_in, record.bytes_out) == (4, 9)
    assert record.duration_s == pytest.approx(2.0)
    assert record.finished_at - record.started_at == pytest.approx(2.0)
    assert record.first_byte_s == pytest.approx(1.5)
    assert (record.attempts, record.shard, record.stream) == (1, 1, True)
    assert record.error == ""


@pytest.mark.parametrize(
    ("error", "terminal", "label"),
    [
        (RateLimited("a"), Terminal.FAILED, "rate_limited"),
        (Shed("a", reason="ring_full"), Terminal.SHED, "rate_limited"),
        (DeadlineExceeded("a"), Terminal.EXPIRED, "inference_timeout"),
        (BackendFailure("a"), Terminal.FAILED, "inference"),
    ],
)
def test_errors_are_counted_by_label_and_end(
    books: Books, error: Any, terminal: Terminal, label: str
) -> None:
    """And offered to the letters."""
    books.finish(error=error, terminal=terminal, status=error.status)
    books.account.flush()
    assert books.records()[0].error == error.reason
    assert books.value("tpo_calls_total", terminal=terminal.value) == 1
    assert books.value("orchestrator_errors_total", stage="inference", error_type=label) == 1
    assert books.value("orchestrator_requests_shed_total", stage="rag") == 0
    assert books.value("orchestrator_requests_shed_total", stage="inference") == (
        terminal is Terminal.SHED
    )
    assert len(books.lettered) == 1


def test_defects_reach_the_log_with_their_cause(books: Books) -> None:
    """The client saw nothing of it, the operator must."""
    cause = KeyError("here")
    books.finish(error=UnexpectedError(cause), terminal=Terminal.FAILED, status=500)
    assert books.crashes == [cause]


def test_cells_add_up(books: Books) -> None:
    """Requests by code, stages reached, tokens."""
    reply = Reply(200, b"x")
    reply.usage = Usage(3, 4)
    books.finish(5, reply=reply)
    books.finish(2, error=RateLimited("a"), terminal=Terminal.FAILED, status=429, attempts=0)
    assert books.value("tpo_requests_total", path="/v1/x", code="200") == 5
    books.finish(
        3, error=RateLimited("a"), terminal=Terminal.FAILED, status=429, attempts=0, admitted=False
    )
    assert books.value("orchestrator_requests_total", stage="rag") == 7
    assert books.value("orchestrator_requests_total", stage="assemble") == 7
    assert books.value("orchestrator_requests_total", stage="inference") == 5
    assert books.value("orchestrator_requests_total", stage="stream") == 5
    assert books.value("orchestrator_tokens_generated_total", worker_type="up") == 20
    assert books.value("tpo_prompt_tokens_total", backend="up") == 15
    assert books.value("tpo_calls_total", terminal="done") == 5


def test_client_that_left_before_an_answer_has_a_status(books: Books) -> None:
    """499, as access logs write it."""
    books.finish(terminal=Terminal.CANCELLED, error=BackendFailure("x"), status=0)
    books.account.flush()
    assert books.records()[0].status == 499


def test_records_leave_in_batches(books: Books) -> None:
    """At once when there are enough, else by the beat."""
    books.finish(BATCH - 1)
    assert books.frames == []
    books.finish(1)
    assert len(books.frames) == 1
    books.finish(3)
    books.account.tick()
    assert len(books.records()) == BATCH + 3


def test_slots_are_released_behind_their_records(books: Books) -> None:
    """Never before; a call without a slot has none to release."""
    books.finish(3)
    books.finish(1, slot=-1)
    assert books.closed == []
    books.account.flush()
    assert books.closed == [0, 1, 2]
    assert books.log == ["push", "close", "close", "close"]
    books.account.flush()
    assert books.closed == [0, 1, 2]


def test_full_ring_keeps_records_and_their_slots(books: Books) -> None:
    """Both go when there is room, and no slot stays behind its record."""
    books.room = 1
    books.finish(2 * BATCH)
    assert len(books.frames) == 1
    assert books.closed == list(range(BATCH))
    books.account.tick()
    assert books.closed == list(range(BATCH))
    books.room = 10
    books.account.tick()
    assert len(books.records()) == 2 * BATCH
    assert len(books.closed) == 2 * BATCH


def test_records_and_slots_wait_for_letters(books: Books) -> None:
    """A dead letter that has not left is only in its slot; who finds a record makes none of it."""
    books.letters_left = 1
    books.finish(2)
    books.account.flush()
    assert books.records() == []
    assert books.closed == []
    books.letters_left = 0
    books.account.flush()
    assert len(books.records()) == len(books.closed) == 2


def test_records_nobody_takes_are_bounded(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, and are counted."""
    monkeypatch.setattr(account, "MAX_KEPT", 200)
    books.room = 0
    books.finish(300)
    books.account.flush()
    assert books.value("tpo_records_dropped_total") == 100
    books.room = 1 << 30
    books.account.flush()
    assert len(books.records()) == 200


def test_settled_slots_are_given_up_for_new_calls(books: Books) -> None:
    """Records stay; releasing twice releases nothing."""
    books.room = 0
    books.finish(5)
    assert books.account.release()
    assert books.closed == [0, 1, 2, 3, 4]
    assert not books.account.release()
    books.room = 1
    books.account.flush()
    assert len(books.records()) == 5
    assert len(books.closed) == 5


def test_batches_fit_their_ring() -> None:
    """Long names make them smaller; a record no ring takes does not block the others."""
    books = Books(max_record=3000)
    books.finish(BATCH * 2, model="m" * 200)
    books.account.flush()
    assert len(books.records()) == BATCH * 2
    assert all(len(frame) <= 3000 for frame in books.frames)
    books.finish(1, model="m" * 5000)
    books.finish(1)
    books.account.flush()
    assert len(books.records()) == BATCH * 2 + 1
    books.arena.close()


def test_rows_are_bounded(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that were configured or answered for have rows of their own, up to a limit."""
    monkeypatch.setattr(account, "MAX_ROWS", 20)
    books.account.models.use(f"m-{i}" for i in range(50))
    for i in range(100):
        books.finish(1, model=f"m-{i}", slot=-1)
    assert len(books.account._rows) <= 21
    assert books.value("tpo_requests_total", path="/v1/x", code="200") == 100


def test_defect_in_the_books_spares_the_other_calls(books: Books) -> None:
    """It is logged, and the rest is entered."""
    call = make_call(b"{}", slot=9)
    broken = Delivery(FakeGateway(), FakeExchange(Head()), call)  # type: ignore[arg-type]
    broken.finished_at = None  # type: ignore[assignment]
    books.account.add(broken)
    books.finish(2)
    books.account.flush()
    assert len(books.crashes) == 1
    assert len(books.records()) == 2
    assert books.closed == [9, 0, 1]


@pytest.mark.parametrize(
    ("fields", "stage"),
    [
        ({"admitted": False}, "admit"),
        ({}, "inference"),
        ({"reply": Reply(200, b"x")}, "stream"),
        ({"error": Shed("full", stage="rag")}, "rag"),
        ({"admitted": False, "error": RateLimited("no", stage="assemble")}, "assemble"),
    ],
)
def test_failures_are_counted_where_they_happened(
    books: Books, fields: dict[str, Any], stage: str
) -> None:
    """By what the chain says, else by how far the call is known to have come."""
    error = fields.setdefault("error", Shed("full"))
    books.finish(terminal=Terminal.SHED, status=503, **fields)
    found = {
        (sample.labels, sample.value)
        for family in books.arena.collect()
        if family.name == "orchestrator_errors_total"
        for sample in family.samples
    }
    assert found == {((("error_type", error.label), ("stage", stage)), 1.0)}
    shed_in = stage if stage != "admit" else "inference"
    assert books.value("orchestrator_requests_shed_total", stage=shed_in) == 1
    met = books.value("orchestrator_requests_total", stage="assemble")
    assert met == (fields.get("admitted", True) and stage != "rag")


def test_invented_models_get_no_series(books: Books) -> None:
    """A client that asks for names nobody serves leaves one label, whatever they are."""
    for i in range(100):
        books.finish(1, model=f"no-{i}", status=404, error=BackendFailure("x"))
    books.finish(1, model="real")
    models = {
        dict(sample.labels)["model"]
        for family in books.arena.collect()
        if family.name == "inference_time_to_first_token_seconds"
        for sample in family.samples
    }
    assert models == {"other", "real"}


def test_call_that_ended_tells_who_asked(books: Books) -> None:
    """With how it ended and what it used; a defect there is logged and the books go on."""
    told: list[Ending] = []

    def broken(_ended: Ending) -> None:
        raise ValueError("broken")

    reply = Reply(200, b"x")
    reply.usage = Usage(3, 4)
    books.finish(reply=reply, endings=[broken, told.append])
    error = DeadlineExceeded("late")
    books.finish(error=error, terminal=Terminal.EXPIRED, status=504, endings=[told.append])
    assert told == [
        Ending(Terminal.DONE, 3, 4, None, 1), Ending(Terminal.EXPIRED, -1, -1, error, 1),
    ]  # fmt: skip
    assert [str(crash) for crash in books.crashes] == ["broken"]
    books.account.flush()
    assert len(books.records()) == 2
    assert len(books.closed) == 2


def audited(text: str) -> Audited:
    """A call's text of the longest kind."""
    return Audited(text.encode(), 16_384)


def test_text_in_a_record_fits_the_ring(books: Books) -> None:
    """Cut to a share of a ring record, however small that is; without text, nothing is sent."""
    small = Books(max_record=2048)
    small.finish(5, audited=audited("w" * 9000))
    small.finish(5)
    small.account.flush()
    assert all(len(frame) <= 2048 for frame in small.frames)
    assert [(r.input, r.output, r.cut) for r in small.records()] == (
        [("w" * 512, None, 1)] * 5 + [(None, None, 0)] * 5
    )
    small.arena.close()
    books.finish()
    books.account.flush()
    (record,) = msgspec.msgpack.decode(books.frames[0][HEAD.size :])
    assert len(record) == RecordFrame.__struct_fields__.index("input")


def test_text_that_waits_is_bounded(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody takes records, later ones go without; afterwards text is kept again."""
    monkeypatch.setattr(account, "MOST_TEXT", 3000)
    books.room = 0
    books.finish(10, audited=audited("w" * 1000))
    books.room = 1 << 30
    books.account.flush()
    books.finish(1, audited=audited("w" * 1000))
    books.account.flush()
    assert [len(r.input or "") for r in books.records()] == [1000] * 3 + [0] * 7 + [1000]
    assert [r.cut for r in books.records()] == [0] * 3 + [1] * 7 + [0]


def test_a_defect_in_reading_a_text_costs_the_text(books: Books) -> None:
    """Not the record; it is reported."""
    books.finish(audited=object())
    books.account.flush()
    assert [r.input for r in books.records()] == [None]
    assert len(books.crashes) == 1
