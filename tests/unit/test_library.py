"""The pipeline as a library: the gateway's chain, in the caller's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import tpo_mp
from tests.support.fake_net import HeldStream
from tests.support.wait import until
from tpo_mp import library
from tpo_mp.errors import (
    BackendFailure,
    ConfigError,
    Draining,
    InvalidRequest,
    NotFound,
    RateLimited,
    Rejected,
    TpoError,
)
from tpo_mp.library import LocalPipeline
from tpo_mp.pipeline.endings import at_end
from tpo_mp.types import Call, Reply, Terminal


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings."""
    for name in ("HOST", "PORT", "PROVIDER", "MODEL", "TPO_HOST", "TPO_PORT"):
        monkeypatch.delenv(name, raising=False)


def use(story: Callable[[LocalPipeline], Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Run a story in a pipeline."""

    async def main() -> Any:
        async with tpo_mp.spawn_pipeline(*args, **options) as pipeline:
            return await story(pipeline)

    return asyncio.run(main())


class Own:
    """A caller's backend: answers with what the test says, and keeps its calls."""

    def __init__(self, answer: Any = "own words") -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self.cancelled = 0

    async def infer(self, call: Call) -> Any:
        """Answer, fail, or wait for ever."""
        self.calls.append(call)
        try:
            async with asyncio.timeout(30):
                await asyncio.sleep(60 if self.answer is None else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(call) if callable(self.answer) else self.answer


# -- infer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "three little words",
        [{"role": "system", "content": "x"}, {"role": "user", "content": "three little words"}],
        b'{"model":"echo","messages":[{"role":"user","content":"three little words"}]}',
    ],
)
def test_prompt_in_any_form_is_answered(prompt: Any) -> None:
    """Text, messages, or a whole body."""
    reply = use(lambda pipeline: pipeline.infer(prompt), "echo")
    assert reply.text == "three little words"
    assert (reply.status, reply.model, reply.finish_reason) == (200, "echo", "stop")
    assert reply.backend == "echo"
    assert reply.usage.completion == 3
    assert reply.call_id
    assert json.loads(reply.body)["object"] == "chat.completion"


def test_chat_takes_and_gives_bodies() -> None:
    """For those who speak the API already."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    answer = use(lambda pipeline: pipeline.chat(body), "echo")
    assert answer["choices"][0]["message"]["content"] == "hi"


def test_backend_sees_what_was_said() -> None:
    """Model, session, sampling, messages."""
    own = Own()

    async def story(pipeline: LocalPipeline) -> None:
        await pipeline.infer("hi", model="m", session="s", temperature=0.5)
        await pipeline.infer(b'{"model":"x","messages":[{"role":"user","content":"a"}]}', seed=1)

    use(story, own)
    first, second = own.calls
    assert json.loads(first.body) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5,
    }  # fmt: skip
    assert (first.session, first.affinity, first.model, first.stream) == ("s", "s", "m", False)
    assert (first.attempts, first.backend) == (1, "local")
    assert json.loads(second.body)["seed"] == 1
    assert second.model == "x"
    assert first.id != second.id


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        (b"{", {}, None),
        (b'{"messages":[{"role":"user"}]}', {}, "model"),
        ([], {}, "messages"),
        ([{"content": "no role"}], {}, "messages[0]"),
        ("hi", {"temperature": 5}, "temperature"),
        ("hi", {"stream": True}, "stream"),
    ],
)
def test_requests_are_checked_as_the_surface_checks_them(
    prompt: Any, fields: dict[str, Any], param: str | None
) -> None:
    """Before any backend sees them."""
    own = Own()
    with pytest.raises(InvalidRequest) as refused:
        use(lambda pipeline: pipeline.infer(prompt, **fields), own)
    if param is not None:
        assert refused.value.param == param
    assert own.calls == []


def test_errors_are_the_gateways() -> None:
    """Ours as they are, a backend's defect as itself."""
    for error in (RateLimited("slow"), KeyError("defect")):
        with pytest.raises(type(error)):
            use(lambda pipeline: pipeline.infer("hi"), Own(error))
    with pytest.raises(NotFound):
        use(lambda pipeline: pipeline.infer("hi", model="other"), Own(), model="mine")


@pytest.mark.parametrize("body", [b"<html>", b"[]"])
def test_answer_without_a_completion_has_no_text(body: bytes) -> None:
    """The body is there; asking for its text says what is wrong."""
    reply = use(lambda pipeline: pipeline.infer("hi"), Own(Reply(200, body)))
    assert reply.body == body
    with pytest.raises(BackendFailure):
        _ = reply.text


def test_cancelling_the_task_cancels_the_call() -> None:
    """The caller's own timeout reaches the backend."""
    own = Own(None)

    async def story(pipeline: LocalPipeline) -> None:
        asking = asyncio.create_task(pipeline.infer("hi"))
        await until(lambda: own.calls, what="the call at the backend")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    use(story, own)
    assert own.cancelled == 1


def test_calls_run_side_by_side() -> None:
    """And none starves the others, though the backend never waits."""

    async def story(pipeline: LocalPipeline) -> list[int]:
        order: list[int] = []

        async def caller(n: int) -> None:
            for _ in range(3):
                await pipeline.infer("hi")
                order.append(n)

        await asyncio.gather(*(caller(n) for n in range(3)))
        return order

    assert use(story, "echo") == [0, 1, 2] * 3


# -- stream -----------------------------------------------------------------------------------


async def listen(pipeline: LocalPipeline, prompt: Any = "a b c", **options: Any) -> list[str]:
    """Collect a stream's pieces."""
    return [piece async for piece in pipeline.stream(prompt, **options)]


@pytest.mark.parametrize(
    "prompt", ["a b c", b'{"model":"echo","messages":[{"role":"user","content":"a b c"}]}']
)
def test_stream_comes_in_pieces(prompt: Any) -> None:
    """The backend's own."""
    assert use(lambda pipeline: listen(pipeline, prompt), "echo") == ["a ", "b ", "c"]


def test_delays_are_waited_for() -> None:
    """The pipeline has its own clock."""
    backend = {"name": "e", "kind": "echo", "delay_ms": 1}
    assert use(listen, {"backends": [backend]}) == ["a ", "b ", "c"]


def test_backend_that_answers_whole_is_one_piece() -> None:
    """Not everybody can stream."""
    assert use(listen, Own("all at once")) == ["all at once"]


def event(text: str, end: bytes = b"\n\n") -> bytes:
    """One event."""
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + end


class Flow(HeldStream):
    """A stream that speaks by itself once it is listened to."""

    def __init__(self, *chunks: bytes, error: TpoError | None = None, ends: bool = True) -> None:
        super().__init__()
        self._chunks, self._error, self._ends = chunks, error, ends

    def attach(self, sink: Any) -> None:
        """Say everything at once."""
        super().attach(sink)
        for chunk in self._chunks:
            self.data(chunk)
        if self._ends:
            self.end(self._error)


def flowing(flow: Flow) -> Own:
    """A backend that streams."""
    return Own(lambda call: Reply(200, None, stream=flow))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_events_are_whole_however_they_are_cut(step: int) -> None:
    """Either line end, and comments between them."""
    wire = event("a") + b": note\n\n" + event("b", b"\r\n\r\n") + b"data: [DONE]\n\n"
    flow = Flow(*(wire[at : at + step] for at in range(0, len(wire), step)))
    assert use(listen, flowing(flow)) == ["a", "b"]


@pytest.mark.parametrize(
    "flow",
    [
        Flow(event("a"), error=BackendFailure("cut")),
        Flow(event("a"), b"data: {\n\n"),
        Flow(event("a"), b'data: {"error":{"message":"no"}}\n\n', b"data: [DONE]\n\n"),
    ],
)
def test_stream_that_breaks_raises_after_its_pieces(flow: Flow) -> None:
    """What was said stays said."""

    async def story(pipeline: LocalPipeline) -> list[str]:
        stream = pipeline.stream("hi")
        pieces = [await anext(stream)]
        with pytest.raises(BackendFailure):
            await anext(stream)
        return pieces

    assert use(story, flowing(flow)) == ["a"]


def test_leaving_a_stream_early_cancels_it() -> None:
    """Nobody pays for what nobody reads."""
    flow = Flow(event("a"), event("b"), ends=False)

    async def story(pipeline: LocalPipeline) -> None:
        async with contextlib.aclosing(pipeline.stream("hi")) as pieces:
            async for piece in pieces:
                assert piece == "a"
                break

    use(story, flowing(flow))
    assert flow.told[-1] == "cancel"


def test_slow_reader_pauses_the_upstream() -> None:
    """What waits for it is bounded."""
    flow = Flow(*[event("x" * 1000)] * 100)

    async def story(pipeline: LocalPipeline) -> int:
        seen = 0
        async for piece in pipeline.stream("hi"):
            seen += len(piece)
            if seen == 1000:
                assert flow.told == ["pause"]
        return seen

    assert use(story, flowing(flow)) == 100_000
    assert flow.told[:2] == ["pause", "resume"]


def test_stream_nobody_asked_for_is_refused() -> None:
    """And let go."""
    flow = Flow(event("a"))
    with pytest.raises(BackendFailure):
        use(lambda pipeline: pipeline.infer("hi"), flowing(flow))
    assert flow.told == ["cancel"]


# -- config -----------------------------------------------------------------------------------

TOML = """
[[backends]]
name = "one"
kind = "echo"
models = ["small"]
[[backends]]
name = "two"
kind = "echo"
models = ["large"]
"""


@pytest.mark.parametrize("as_path", [True, False])
def test_config_file_makes_the_pipeline(tmp_path: Path, as_path: bool) -> None:
    """Its routes hold; the first literal model is the default."""
    file = tmp_path / "tpo.toml"
    file.write_text(TOML)

    async def story(pipeline: LocalPipeline) -> None:
        assert (await pipeline.infer("x")).backend == "one"
        assert (await pipeline.infer("x", model="large")).backend == "two"
        assert await pipeline.models() == ["small", "large"]

    use(story, file if as_path else str(file))


def test_config_beside_a_backend_brings_the_rest(tmp_path: Path) -> None:
    """Given tables are not changed; what they say of backends gives way."""
    tables: dict[str, Any] = {"server": {"max_open_calls": 16}, "backends": [{"kind": "echo"}]}
    own = Own()
    use(lambda pipeline: pipeline.infer("hi"), own, tables)
    assert len(own.calls) == 1
    assert tables["backends"] == [{"kind": "echo"}]
    reply = use(lambda pipeline: pipeline.infer("hi"), "echo", tables, model="mine")
    assert reply.model == "mine"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("no_such_kind",), "no_such_kind"),
        (({"servre": {}},), "servre"),
        ((Path("/nowhere/tpo.toml"),), "tpo.toml"),
        ((42,), "infer"),
    ],
)
def test_what_cannot_be_built_is_a_config_error(args: tuple[Any, ...], said: str) -> None:
    """At once, with a message for people."""
    with pytest.raises(ConfigError, match=said):
        tpo_mp.spawn_pipeline(*args)


def test_pipeline_lives_inside_its_block() -> None:
    """Before it and after it, calls are refused; its timers go with it."""

    async def main() -> None:
        pipeline = tpo_mp.spawn_pipeline("echo")
        with pytest.raises(Draining, match="async with"):
            await pipeline.infer("early")
        async with pipeline:
            await pipeline.infer("in time")
        with pytest.raises(Draining, match="closed"):
            await pipeline.infer("late")
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_importing_the_package_imports_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor stays small: the library comes when it is asked for."""
    monkeypatch.delitem(sys.modules, "tpo_mp.library")
    importlib.reload(tpo_mp)
    assert "tpo_mp.library" not in sys.modules
    with pytest.raises(AttributeError, match="nothing"):
        _ = tpo_mp.nothing  # type: ignore[attr-defined]


def test_stages_hear_how_calls_ended() -> None:
    """A whole answer, a failure, and a stream at its last event; each once."""
    told: list[tuple[Terminal, int]] = []

    class Asking(Own):
        async def infer(self, call: Call) -> Any:
            at_end(call, lambda ended: told.append((ended.terminal, ended.completion)))
            return await super().infer(call)

    async def story(pipeline: LocalPipeline) -> None:
        await pipeline.infer("one")
        backend.answer = Rejected("no")
        with pytest.raises(Rejected):
            await pipeline.infer("two")
        backend.answer = "three words here"
        assert "".join([piece async for piece in pipeline.stream("three")]) == "three words here"

    backend = Asking()
    use(story, backend)
    assert [terminal for terminal, _ in told] == [Terminal.DONE, Terminal.FAILED, Terminal.DONE]


def test_store_of_a_library_is_not_there() -> None:
    """Features do what they do without one."""
    store = library._NoStore()
    assert asyncio.run(store.get("t", "k")) is None
    assert asyncio.run(store.put("t", "k", b"", 1.0)) is False
