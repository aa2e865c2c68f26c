"""The last words of a call, and the key of the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tpo_mp.pipeline.asked import asked_last
from tpo_mp.types import Call, Dialect

SYSTEM = {"role": "system", "content": "Be brief."}


def call(body: Any, dialect: Dialect = Dialect.OPENAI_CHAT, **facts: Any) -> Call:
    """A call with this body."""
    made = Call(id="c", model="m", body=json.dumps(body).encode(), stream=False, started_at=0.0)
    made.dialect = dialect
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def chat(words: Any, **fields: Any) -> dict[str, Any]:
    """A body that asks this."""
    return {"model": "m", "messages": [SYSTEM, {"role": "user", "content": words}]} | fields


def rest(body: Any, dialect: Dialect = Dialect.OPENAI_CHAT, **facts: Any) -> bytes:
    """The key of the rest."""
    asked = asked_last(call(body, dialect, **facts), 1000)
    assert asked is not None
    return asked.rest


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Dialect.OPENAI_CHAT, chat("the question")),
        (Dialect.OPENAI_CHAT, chat([{"type": "text", "text": "the question"}])),
        (Dialect.ANTHROPIC_MESSAGES, chat("the question", max_tokens=9)),
        (Dialect.OPENAI_RESPONSES, {"model": "m", "input": "the question"}),
        (Dialect.OPENAI_RESPONSES,
         {"input": [{"role": "user",
                     "content": [{"type": "input_text", "text": "the question"}]}]}),
    ],
)  # fmt: skip
def test_last_words_are_taken_out(dialect: Dialect, body: dict[str, Any]) -> None:
    """Of every dialect that has messages; the rest's key does not see them."""
    asked = asked_last(call(body, dialect), 1000)
    assert asked is not None
    assert asked.words == "the question"
    other = json.loads(json.dumps(body).replace("the question", "another"))
    assert asked.rest == rest(other, dialect) == rest(other | {"stream": True}, dialect)


def test_everything_else_makes_another_key() -> None:
    """Who asks, what was said before, sampling, tools."""
    base = rest(chat("q"))
    longer = chat("q")
    longer["messages"].insert(1, {"role": "user", "content": "before"})
    keys = [
        base, rest(chat("q", temperature=1)), rest(chat("q", tools=[])), rest(longer),
        rest(chat("q"), tenant="acme"), rest(chat("q"), model="another"),
        rest(chat("q"), authorization=b"Bearer x"), rest(chat("q"), forward=b"openai-beta: x\r\n"),
        rest(chat("q"), Dialect.ANTHROPIC_MESSAGES), rest(chat([{"type": "text", "text": "q"}])),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "body",
    [
        chat(""), chat("x" * 1001), chat("é" * 501), chat(None), chat(3), chat([]),
        chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        chat([{"type": "image_url", "image_url": "x"}]), chat(["a"]), [], "x", {},
        {"messages": []}, {"messages": ["a"]}, {"messages": {"role": "user"}},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "tool", "content": "a"}]},
    ],
)  # fmt: skip
def test_other_ends_are_left_alone(body: Any) -> None:
    """No words, too many, not a user's, not words alone."""
    assert asked_last(call(body), 1000) is None


def test_other_dialects_are_left_alone() -> None:
    """Embeddings have no last words; and a body may be no JSON at all."""
    assert asked_last(call({"input": "a"}, Dialect.OPENAI_EMBEDDINGS), 1000) is None
    broken = call({})
    broken.body = b"{"
    assert asked_last(broken, 1000) is None
