"""What is written down of a call: the newest words, the answer as far as it came, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.dialects import openai_chat
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.audited import INPUT, MOST_READ, OUTPUT, Audited
from tpo_mp.types import Dialect, Reply

EVENTS = [
    openai_chat.event(openai_chat.chunk("c", 1, "m", {"content": word}))
    for word in ("one ", "two ", "зeд")
]


def user(*texts: str) -> list[dict[str, Any]]:
    """A conversation in which the user said these."""
    said = [{"role": "user", "content": text} for text in texts]
    return [{"role": "system", "content": "be brief"}, *said, {"role": "tool", "content": "9"}]


@pytest.mark.parametrize(
    ("dialect", "body", "asked"),
    [
        (Dialect.OPENAI_CHAT, {"messages": user("old", "new")}, "new"),
        (Dialect.OPENAI_RESPONSES, {"input": "words"}, "words"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": ["a", "b"]}, "b"),
        (Dialect.ANTHROPIC_MESSAGES,
         {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "hi"),
        (Dialect.GEMINI, {"contents": [{"parts": [{"text": "hello"}]}]}, "hello"),
        (Dialect.OPENAI_EMBEDDINGS, {"input": "vec"}, '{"input": "vec"}'),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": [1, 2]}, '{"prompt": [1, 2]}'),
    ],
)  # fmt: skip
def test_newest_words_stand_for_a_prompt(dialect: Dialect, body: Any, asked: str) -> None:
    """In each dialect; where there are none, the body does."""
    call = make_call(json.dumps(body).encode(), dialect=dialect)
    assert Audited(call.body, 100).said(call, 100) == (asked, None, 0)


@pytest.mark.parametrize(
    "body", [b"[1", b'"x"', b'{"messages":7}', b'{"messages":[null]}', b"\xff"]
)
def test_a_body_of_any_kind_is_written_down(body: bytes) -> None:
    """A record is made of whatever was sent."""
    said = Audited(body, 100).said(make_call(body), 100)
    assert said.input == body.decode("utf-8", "replace")


def test_the_prompt_is_the_client_s_own() -> None:
    """What a stage puts into the request later is not what was asked."""
    call = make_call(json.dumps({"messages": user("mine")}).encode())
    audited = Audited(call.body, 100)
    call.body = json.dumps({"messages": user("somebody's")}).encode()
    assert audited.said(call, 100).input == "mine"


@pytest.mark.parametrize(("most", "room"), [(5, 100), (100, 5)])
def test_long_text_is_cut_between_letters_and_says_so(most: int, room: int) -> None:
    """Whichever is less, the option's bytes or those that the record has room for."""
    call = make_call(json.dumps({"messages": user("жжжж")}).encode())
    audited = Audited(call.body, most)
    answer = {"choices": [{"message": {"role": "assistant", "content": "abcdefg"}}]}
    audited.listen(call, Reply(200, json.dumps(answer).encode()))
    assert audited.said(call, room) == ("жж", "abcde", INPUT | OUTPUT)
    assert audited.said(call, 0) == ("", "", INPUT | OUTPUT)


def test_a_huge_body_is_not_taken_apart() -> None:
    """The end of the request stands for it, and the beginning of an answer."""
    call = make_call(json.dumps({"messages": user("x" * MOST_READ, "the end?")}).encode())
    audited = Audited(call.body, 100)
    audited.listen(call, Reply(200, b'{"choices": "' + b"y" * MOST_READ + b'"}'))
    asked, answered, cut = audited.said(call, 100)
    assert asked is not None
    assert answered is not None
    assert "the end?" in asked
    assert answered.startswith('{"choices": "yyy')
    assert (len(asked), len(answered), cut) == (100, 100, INPUT | OUTPUT)
    assert audited.said(call, 0)[0] == ""


@pytest.mark.parametrize("end", ["whole", "broken", "left"])
def test_a_stream_is_heard_as_far_as_it_comes(end: str) -> None:
    """It passes untouched, whether it ends, breaks or nobody wants the rest."""
    call = make_call(b"{}", stream=True)
    held, sink, reply = HeldStream(), Collected(), Reply(200, None)
    reply.stream = held
    audited = Audited(None, 100)
    audited.listen(call, reply)
    stream: Any = reply.stream
    stream.attach(sink)
    held.data(EVENTS[0])
    held.data(EVENTS[1])
    if end == "whole":
        held.data(EVENTS[2])
        held.end(None)
    elif end == "broken":
        held.end(BackendFailure("gone", reason="upstream_cut"))
    else:
        stream.cancel()
    said = "one two зeд" if end == "whole" else "one two "
    assert audited.said(call, 100) == (None, said, 0)
    assert sink.chunks == EVENTS[: 3 if end == "whole" else 2]


def test_a_dialect_that_only_passes_through_has_no_answer() -> None:
    """Nobody can say what of it was said."""
    call = make_call(b"{}", dialect=Dialect.OPENAI_EMBEDDINGS)
    audited = Audited(None, 100)
    audited.listen(call, Reply(200, b'{"data":[]}'))
    assert audited.said(call, 100) == (None, None, 0)
