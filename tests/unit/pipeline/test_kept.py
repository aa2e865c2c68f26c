"""A kept answer: whole ones only, told again in the form that is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialects import REPLIES, body, encode
from tests.support.fake_env import make_call
from tpo_mp.dialects.canonical import TextBlock
from tpo_mp.dialects.translate import aggregate, events_of
from tpo_mp.errors import TpoError
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.kept import keep, replay
from tpo_mp.types import Call, Dialect, Reply, Usage

FORMS = [Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.OPENAI_RESPONSES,
         Dialect.ANTHROPIC_MESSAGES]  # fmt: skip
ASKED: dict[Dialect, dict[str, Any]] = {
    Dialect.OPENAI_COMPLETIONS: {"prompt": "x"},
    Dialect.OPENAI_RESPONSES: {"input": "x"},
}
HI = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}


class Taken:
    """A sink."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.ends: list[TpoError | None] = []

    def data(self, chunk: bytes) -> None:
        """Take bytes."""
        self.parts.append(chunk)

    def end(self, error: TpoError | None) -> None:
        """Take the end."""
        self.ends.append(error)


def asked(dialect: Dialect, *, stream: bool, **fields: Any) -> Call:
    """A call of a dialect."""
    request = {"model": "m", "stream": stream} | ASKED.get(dialect, HI)
    return make_call(body(request), stream=stream, dialect=dialect, **fields)


def told(reply: Reply | None) -> bytes:
    """All that a reply says."""
    assert reply is not None
    if reply.stream is None:
        assert reply.body is not None
        return reply.body
    sink = Taken()
    reply.stream.attach(sink)
    assert sink.ends == [None]
    return b"".join(sink.parts)


def meant(dialect: Dialect, said: bytes, *, stream: bool) -> Any:
    """What the answer says, without its id."""
    spoken = codec(dialect)
    if not stream:
        reply = spoken.reply_to_canonical(said)
    else:
        decoder = spoken.StreamDecoder()
        reply = aggregate([*decoder.feed(said), *decoder.close()])
    usage = reply.usage
    assert usage is not None
    words = [(b.text, c.stop) for c in reply.choices for b in c.blocks if isinstance(b, TextBlock)]
    return reply.id, words, (usage.prompt, usage.completion)


def original(dialect: Dialect, *, stream: bool) -> tuple[Reply, bytes]:
    """An upstream's answer in one form."""
    whole = body(REPLIES[dialect])
    reply = codec(dialect).reply_to_canonical(whole)
    said = encode(dialect, events_of(reply)) if stream else whole
    made = Reply(200, None if stream else said)
    made.finish_reason = "stop" if stream else ""
    usage = reply.usage
    assert usage is not None
    made.usage = Usage(usage.prompt, usage.completion, usage.cached)
    return made, said


@pytest.mark.parametrize("dialect", FORMS)
@pytest.mark.parametrize("was", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_an_answer_is_told_in_the_form_asked_for(dialect: Dialect, was: bool, wanted: bool) -> None:
    """The same words and counts under an id of its own; the same bytes where the form is."""
    reply, said = original(dialect, stream=was)
    answer = keep(asked(dialect, stream=was, usage_wanted=True), reply, said)
    assert answer is not None
    again = replay(answer, asked(dialect, stream=wanted, usage_wanted=True, id="12-34"))
    assert again is not None
    assert (again.stream is not None) is wanted
    assert again.usage is not None
    assert reply.usage is not None
    assert (again.usage.prompt, again.usage.completion) == (
        reply.usage.prompt, reply.usage.completion
    )  # fmt: skip
    out = told(again)
    before, after = meant(dialect, said, stream=was), meant(dialect, out, stream=wanted)
    assert after[1:] == before[1:]
    assert after[0].endswith("1234")
    assert before[0] != after[0]
    assert (
        before[0].partition("_")[0].partition("-")[0]
        == (after[0].partition("_")[0].partition("-")[0])
    )
    if was == wanted:
        assert out == said.replace(before[0].encode(), after[0].encode())


def test_a_stream_shows_usage_to_whoever_asked() -> None:
    """Kept from a call that did not ask for it, and the reverse."""
    dialect = Dialect.OPENAI_CHAT
    reply, said = original(dialect, stream=True)
    events = [e for e in said.split(b"\n\n") if e and b'"usage":{' not in e]
    hidden = keep(asked(dialect, stream=True), reply, b"\n\n".join(events) + b"\n\n")
    shown = keep(asked(dialect, stream=True, usage_wanted=True), reply, said)
    assert hidden is not None
    assert shown is not None
    for answer in (hidden, shown):
        for wanted in (False, True):
            options = {"stream_options": {"include_usage": True}} if wanted else {}
            call = make_call(
                body({"model": "m", "stream": True} | HI | options), stream=True,
                usage_wanted=wanted,
            )  # fmt: skip
            out = told(replay(answer, call))
            assert (b'"usage":{' in out) is wanted
            assert out.endswith(b"data: [DONE]\n\n")


def chat(**choice: Any) -> bytes:
    """A whole chat answer."""
    choices = [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"} | choice]
    return body({"id": "chatcmpl-1", "choices": choices})


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (chat(), True),
        (chat(finish_reason="tool_calls"), True),
        (chat(finish_reason="length"), True),
        (chat(finish_reason="content_filter"), False),
        (chat(finish_reason="abort"), False),
        (chat(finish_reason=None), False),
        (body({"choices": []}), False),
        (body({"error": {"message": "x"}}), False),
        (body({"error": {"message": "x"}, **json.loads(chat())}), False),
        (body({}), False),
        (b"[]", False),
    ],
)
def test_only_whole_answers_are_kept(said: bytes, kept: bool) -> None:
    """Not what a filter cut, nor an error that calls itself a success."""
    call = asked(Dialect.OPENAI_CHAT, stream=False)
    assert (keep(call, Reply(200, said), said) is not None) is kept


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("stop", True), ("length", True), ("", False), ("content_filter", False), ("abort", False)],
)
def test_only_streams_with_an_end_are_kept(reason: str, kept: bool) -> None:
    """The reply says how it ended."""
    reply, said = original(Dialect.OPENAI_CHAT, stream=True)
    reply.finish_reason = reason
    assert (keep(asked(Dialect.OPENAI_CHAT, stream=True), reply, said) is not None) is kept


def test_what_was_broken_off_is_not_kept_whatever_word_its_dialect_has() -> None:
    """Legacy completions of Anthropic say it as they say a limit, which the request has."""
    said = body({"type": "completion", "completion": "x", "stop_reason": "max_tokens"})
    call = make_call(
        body({"model": "m", "prompt": "x", "max_tokens_to_sample": 9}),
        dialect=Dialect.ANTHROPIC_COMPLETE,
    )
    reply = Reply(200, said)
    assert keep(call, reply, said) is not None
    reply.finish_reason = "abort"
    assert keep(call, reply, said) is None


def test_a_limit_that_the_request_did_not_say_is_a_cut() -> None:
    """Another backend may have another one."""
    said = chat(finish_reason="length")
    unlimited = make_call(body({"model": "m", "messages": HI["messages"]}))
    assert keep(unlimited, Reply(200, said), said) is None


def test_other_statuses_are_not_kept() -> None:
    """Whatever they say."""
    assert keep(asked(Dialect.OPENAI_CHAT, stream=False), Reply(207, chat()), chat()) is None


@pytest.mark.parametrize("dialect", [Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS])
def test_embeddings_are_kept(dialect: Dialect) -> None:
    """They have no reason to end, and no id."""
    said = body({"object": "list", "data": [{"embedding": [0.5]}], "embeddings": []})
    answer = keep(asked(dialect, stream=False), Reply(200, said), said)
    assert answer is not None
    assert told(replay(answer, asked(dialect, stream=False))) == said


def test_what_cannot_be_told_in_a_form_is_no_answer() -> None:
    """A dialect that only passes through has no other form; neither has nonsense."""
    said = body({"candidates": [{"finishReason": "STOP"}]})
    answer = keep(asked(Dialect.GEMINI, stream=False), Reply(200, said), said)
    assert answer is not None
    assert replay(answer, asked(Dialect.GEMINI, stream=True)) is None
    assert told(replay(answer, asked(Dialect.GEMINI, stream=False))) == said
    assert replay(b"nonsense", asked(Dialect.GEMINI, stream=False)) is None
    assert replay(b"\x91\x63", asked(Dialect.GEMINI, stream=False)) is None


def test_a_stream_that_is_given_up_ends_nothing() -> None:
    """A client may leave while it is written."""
    reply, said = original(Dialect.OPENAI_CHAT, stream=True)
    answer = keep(asked(Dialect.OPENAI_CHAT, stream=True, usage_wanted=True), reply, said)
    assert answer is not None
    again = replay(answer, asked(Dialect.OPENAI_CHAT, stream=True, usage_wanted=True))
    assert again is not None
    assert again.stream is not None
    again.stream.pause()
    again.stream.resume()
    again.stream.cancel()
    again.stream.cancel()
