"""Requests with a key: who runs, who waits, what each is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_env import EmptyStore, FakeWorld, make_call
from tests.support.wait import until
from tpo_mp.control.idempotency import KeyDesk
from tpo_mp.errors import BackendFailure, Cancelled, DeadlineExceeded, Rejected, TpoError
from tpo_mp.pipeline.delivery import ON_REQUEST
from tpo_mp.pipeline.endings import at_end, ending, tell_ended
from tpo_mp.pipeline.promise import Promise
from tpo_mp.shm.callid import CallIds
from tpo_mp.stages.idempotency import Config, Idempotency, name_of, print_of
from tpo_mp.store.shelf import Shelf, ShelfOptions
from tpo_mp.types import Call, Dialect, Ending, Reply, Sink, Terminal, Usage


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of its own."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


class Control(EmptyStore):
    """The store of a host, as its workers ask it; ``away`` it says nothing."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(folder, ShelfOptions())
        self.lives = True
        self.away = False
        self.desk = KeyDesk(1, lambda _seat, _epoch: self.lives, lambda: 0.0)

    async def post(
        self, table: str, key: str, value: bytes, *, ttl_s: float = 0.0, wait_s: float = 0.05
    ) -> tuple[bytes | None] | None:
        """One question."""
        await asyncio.sleep(0)
        ok, said = self.desk.answer(self.shelf, key, value)
        return (said,) if ok and not self.away else None


class Worker:
    """A stage in a process of its own; what it lets through waits in ``asked``."""

    def __init__(self, control: Control, seat: int = 0, **options: Any) -> None:
        self.world = FakeWorld()
        self.ids = CallIds(seat, 1)
        self.stage = Idempotency(Config(**options), replace(self.world.env, store=control))
        self.asked: list[tuple[Call, Promise[Reply]]] = []
        self.gave_up = 0

    def send(
        self, body: bytes = b"{}", key: bytes = b"k", **more: Any
    ) -> tuple[Call, Promise[Reply]]:
        """One request, not yet answered."""
        call = make_call(body, idempotency_key=key, **more)
        call.id = self.ids.new()
        answer = self.stage(call, self._proceed)
        assert isinstance(answer, Promise)
        return call, answer

    def _proceed(self, call: Call) -> Promise[Reply]:
        def stop() -> None:
            self.gave_up += 1

        answer: Promise[Reply] = Promise(stop)
        self.asked.append((call, answer))
        return answer

    async def one_asked(self) -> tuple[Call, Promise[Reply]]:
        """The request that was let through."""
        await until(lambda: bool(self.asked))
        return self.asked.pop(0)


def reply(body: bytes = b"hello") -> Reply:
    """A whole answer."""
    made = Reply(200, body, headers=b"x-ratelimit-limit-requests: 7\r\nx-more: 1\r\n")
    made.usage = Usage(3, 4, 1)
    return made


class Events:
    """A stream that a test sends, and its sink."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.cancelled = False

    def attach(self, sink: Sink) -> None:
        """Be listened to."""
        self.sink = sink

    def pause(self) -> None:
        """Nothing to hold back."""

    resume = pause

    def cancel(self) -> None:
        """Be given up."""
        self.cancelled = True


class Ear:
    """Hears a stream."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended: list[TpoError | None] = []

    def data(self, chunk: bytes) -> None:
        """Bytes."""
        self.heard.append(chunk)

    def end(self, error: TpoError | None) -> None:
        """The end."""
        self.ended.append(error)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """The host's one."""
    made = Control(tmp_path)
    yield made
    made.shelf.close()


async def error_of(answer: Promise[Reply]) -> TpoError:
    """The error of a request."""
    with pytest.raises(TpoError) as caught:
        await answer
    return caught.value


@in_loop
async def test_one_runs_and_all_have_its_answer(control: Control) -> None:
    """Those of its worker and of another, then and later; only the first is somebody's cost."""
    here, there = Worker(control), Worker(control, seat=1)
    first, answer = here.send()
    others = [here.send(), there.send(), there.send()]
    call, asked = await here.one_asked()
    assert call is first
    asked.resolve(reply())
    assert (await answer).headers == reply().headers
    others.append(there.send())
    for other, said in others:
        again = await said
        assert (again.status, again.body, other.cache) == (200, b"hello", "replayed")
        assert again.headers == (
            b"x-more: 1\r\nidempotency-replayed: true\r\nx-tpo-first-call-id: %b\r\n"
            % first.id.encode()
        )
        assert again.usage is not None
        assert (again.usage.prompt, again.usage.completion, again.usage.cached) == (3, 4, 1)
    assert not here.asked + there.asked
    assert first.cache == ""


@in_loop
async def test_a_stream_is_given_again_whole(control: Control) -> None:
    """Also one that its client left in the middle; another client's cancel ends neither."""
    worker = Worker(control)
    call, answer = worker.send(stream=True)
    _, asked = await worker.one_asked()
    _, waiting = worker.send(stream=True)
    events, ear = Events(), Ear()
    asked.resolve(Reply(200, None, stream=events, content_type=b"text/event-stream"))
    stream = (await answer).stream
    assert stream is not None
    stream.attach(ear)
    assert events.sink is not None
    events.sink.data(b"a")
    stream.cancel()
    tell_ended(call, ending(Terminal.CANCELLED, None, Cancelled("left"), 1))
    events.sink.data(b"b")
    events.sink.end(None)
    assert (ear.heard, events.cancelled) == ([b"a"], False)
    again = (await waiting).stream
    assert again is not None
    again.attach(ear)
    assert (ear.heard, ear.ended) == ([b"a", b"ab"], [None])
    assert worker.stage._runs.orphans == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [None, BackendFailure("cut")])
@in_loop
async def test_a_run_without_its_client_is_charged_when_it_ends(
    control: Control, stream: bool, error: TpoError | None
) -> None:
    """What the stages behind set aside is settled once, at what was really used."""
    worker = Worker(control)
    call, answer = worker.send(stream=stream)
    _, asked = await worker.one_asked()
    told: list[Ending] = []
    at_end(call, told.append)
    events = Events()
    if stream:
        streamed = Reply(200, None, stream=events, content_type=b"text/event-stream")
        streamed.usage = Usage(3, 4)
        asked.resolve(streamed)
        begun = (await answer).stream
        assert begun is not None
        begun.attach(Ear())
        begun.cancel()
    else:
        answer.cancel()
    tell_ended(call, ending(Terminal.CANCELLED, None, Cancelled("left"), 1))
    assert told == []
    call.attempts = 2
    if stream:
        assert events.sink is not None
        events.sink.end(error)
    elif error is None:
        asked.resolve(reply())
    else:
        asked.reject(error)
    used = (3, 4) if error is None else (-1, -1)
    terminal = Terminal.DONE if error is None else Terminal.FAILED
    assert told == [Ending(terminal, *used, error, 2)]
    assert worker.stage._runs.orphans == 0


@pytest.mark.parametrize(
    "error",
    [DeadlineExceeded("late"), Cancelled("asked for", reason=ON_REQUEST)],
)
@in_loop
async def test_what_was_ended_on_purpose_does_not_go_on(control: Control, error: TpoError) -> None:
    """Who waits is told to ask again, and may."""
    worker = Worker(control)
    call, answer = worker.send()
    await worker.one_asked()
    _, waiting = worker.send()
    answer.cancel()
    assert worker.gave_up == 0
    tell_ended(call, ending(Terminal.EXPIRED, None, error, 1))
    assert worker.gave_up == 1
    told = await error_of(waiting)
    assert (told.status, told.reason, told.retry_after_s) == (409, "idempotency_given_up", 1.0)
    worker.send()
    await worker.one_asked()


@in_loop
async def test_a_client_that_left_before_it_ran_leaves_it_to_the_next(control: Control) -> None:
    """And a key that nobody here wants any more is given back."""
    worker, other = Worker(control), Worker(control, seat=1)
    _, first = worker.send()
    second, _ = worker.send()
    first.cancel()
    call, asked = await worker.one_asked()
    assert call is second
    asked.reject(BackendFailure("no"))
    _, third = worker.send(key=b"other")
    third.cancel()
    await until(lambda: not worker.stage._runs._tasks)
    other.send(key=b"other")
    await other.one_asked()
    assert worker.stage._runs.waiting == 0


@in_loop
async def test_failures(control: Control) -> None:
    """One that may be tried again is told and forgotten; a refusal of the request is kept."""
    worker = Worker(control)
    _, answer = worker.send()
    _, waiting = worker.send()
    _, asked = await worker.one_asked()
    failed = BackendFailure("down", reason="upstream_error")
    asked.reject(failed)
    assert await error_of(answer) is failed
    assert (await error_of(waiting)).reason == "upstream_error"
    _, answer = worker.send()
    _, asked = await worker.one_asked()
    asked.reject(Rejected("bad", reason="upstream_rejected", status=422, body=b'{"error":1}'))
    await error_of(answer)
    kept = await error_of(worker.send()[1])
    assert (kept.status, kept.body) == (422, b'{"error":1}')
    assert b"idempotency-replayed: true\r\n" in kept.lines


@in_loop
async def test_the_other_request_decides_what_a_key_means(control: Control) -> None:
    """Another body is refused while the first runs and afterwards, on both workers."""
    here, there = Worker(control), Worker(control, seat=1)
    here.send(b"1")
    _, asked = await here.one_asked()
    early = [await error_of(one.send(b"2")[1]) for one in (here, there)]
    asked.resolve(reply())
    late = [await error_of(one.send(b"2")[1]) for one in (here, there)]
    for error in early + late:
        assert (error.status, error.reason, error.param) == (
            422, "idempotency_key_reused", "idempotency-key",
        )  # fmt: skip
        assert error.lines == b"x-should-retry: false\r\n"


@in_loop
async def test_waiting_is_bounded(control: Control) -> None:
    """In time, and told so."""
    worker = Worker(control, wait_s=5)
    worker.send()
    await worker.one_asked()
    _, waiting = worker.send()
    worker.world.advance(5.1)
    told = await error_of(waiting)
    assert (told.status, told.reason) == (409, "idempotency_in_progress")


@in_loop
async def test_an_answer_too_large_is_known_but_not_kept(control: Control) -> None:
    """Those who waited here still have it."""
    worker = Worker(control, max_answer_bytes=4)
    worker.send()
    _, waiting = worker.send()
    _, asked = await worker.one_asked()
    asked.resolve(reply())
    assert (await waiting).body == b"hello"
    await until(lambda: not worker.stage._runs._tasks)
    assert (await error_of(worker.send()[1])).reason == "idempotency_answer_not_kept"


@in_loop
async def test_without_control_nothing_with_a_key_runs(control: Control) -> None:
    """It is refused, and what control may have granted unheard is given back."""
    worker = Worker(control)
    control.away = True
    told = await error_of(worker.send()[1])
    assert (told.status, told.reason) == (503, "store_unavailable")
    control.away = False
    await until(lambda: not worker.stage._runs._tasks)
    worker.send()
    await worker.one_asked()


def test_a_request_without_a_key_costs_nothing(control: Control) -> None:
    """It is passed on as it is."""
    answer: Promise[Reply] = Promise()
    worker = Worker(control)
    assert worker.stage(make_call(b"{}"), lambda _call: answer) is answer


def test_what_is_the_same_request_and_whose_key_it_is() -> None:
    """Everything a client can say differently counts, and so does who says it."""
    calls = partial(make_call, b"{}", idempotency_key=b"k")
    prints = [
        print_of(call)
        for call in (
            calls(), calls(model="other"), calls(stream=True), calls(session="s"),
            calls(dialect=Dialect.OPENAI_EMBEDDINGS), make_call(b"{ }"),
        )
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert print_of(calls(tenant="t", client_request_id="r")) == prints[0]
    names = [
        name_of(call)
        for call in (
            calls(), calls(tenant="t"), calls(authorization=b"Bearer x"),
            make_call(b"{}", idempotency_key=b"l"),
        )
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name_of(calls(model="other")) == names[0]
