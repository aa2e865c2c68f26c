"""Two calls have one key exactly when one answer serves both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.errors import InvalidRequest
from tpo_mp.pipeline import fingerprint as subject
from tpo_mp.pipeline.fingerprint import Match, Reuse, fingerprint, reuse_of
from tpo_mp.types import Call, Dialect

SURE = Match.DETERMINISTIC
CHAT = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hello there"}]}


def call(body: dict[str, Any] | bytes, **fields: Any) -> Call:
    """Make a call with this body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    made = Call(id="c", model="m", body=raw, stream=False, started_at=0.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def key(body: dict[str, Any] | bytes, match: Match = Match.ALL, **fields: Any) -> bytes | None:
    """Make the key of a call with this body."""
    return fingerprint(call(body, **fields), match)


def said(content: Any, **fields: Any) -> dict[str, Any]:
    """Make a chat body of one message."""
    return CHAT | {"messages": [{"role": "user", "content": content}]} | fields


@pytest.mark.parametrize(
    "same",
    [
        CHAT | {"stream": True, "stream_options": {"include_usage": True}},
        CHAT | {"temperature": 0.0},
        dict(reversed(CHAT.items())),
        said("  hello   there "),
        said(" hello\tthere".replace("\t", " ")),
    ],
)
def test_what_changes_no_answer_changes_no_key(same: dict[str, Any]) -> None:
    """Delivery, spelling of numbers, order of names, and runs of blanks."""
    assert key(same) == key(CHAT) is not None


@pytest.mark.parametrize(
    "other",
    [
        CHAT | {"max_tokens": 5},
        CHAT | {"temperature": 0.1},
        CHAT | {"top_p": 0.5},
        CHAT | {"model": "n"},
        CHAT | {"user": "u"},
        CHAT | {"metadata": {"a": "b"}},
        CHAT | {"unknown_field": 1},
        CHAT | {"response_format": {"type": "json_object"}},
        CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}]},
        said("hello There"),
        said("hello\nthere"),
        said([{"type": "text", "text": "hello there"}]),
        CHAT | {"messages": [{"role": "system", "content": "hello there"}]},
    ],
)
def test_whatever_may_change_an_answer_changes_the_key(other: dict[str, Any]) -> None:
    """All of the body counts, what nobody here knows included."""
    assert key(other) not in (None, key(CHAT))


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "b"},
        {"authorization": b"Bearer x"},
        {"forward": b"anthropic-beta: x\r\n"},
        {"dialect": Dialect.ANTHROPIC_MESSAGES},
        {"model": "m2"},
    ],
)
def test_whoever_asks_and_what_goes_upstream_is_part_of_the_key(fields: dict[str, Any]) -> None:
    """No answer crosses tenants, credentials, dialects or header lines."""
    assert key(CHAT, **fields) not in (None, key(CHAT))


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=2, max_size=2))
def test_parts_of_a_key_cannot_be_shifted_into_each_other(names: list[tuple[str, str]]) -> None:
    """Tenant and model are told apart, whatever characters they hold."""
    (tenant, model), (other, second) = names
    equal = key(CHAT, tenant=tenant, model=model) == key(CHAT, tenant=other, model=second)
    assert equal is ((tenant, model) == (other, second))


def test_trace_lines_are_no_part_of_the_key() -> None:
    """They are new with every call; the rest of the lines count in any order."""
    trace, a, b = b"Traceparent: 00-1\r\ntracestate: x\r\n", b"a: 1\r\n", b"b: 2\r\n"
    assert key(CHAT, forward=trace) == key(CHAT)
    assert key(CHAT, forward=trace + a + b) == key(CHAT, forward=b + a) != key(CHAT)


def test_words_are_composed_and_their_blanks_collapsed() -> None:
    """NFC, trim, one blank or line break for a run; nothing more."""
    assert key(said("caf\u00e9  au\u00a0lait ")) == key(said("cafe\u0301 au lait"))
    assert key(said("a \r\n\r\nb")) == key(said("a\nb")) != key(said("a b"))
    assert key(said("A")) != key(said("a"))
    parts = [{"type": "text", "text": " a  b"}, {"type": "image_url", "image_url": {"url": "u "}}]
    assert key(said(parts)) == key(said([{"type": "text", "text": "a b"}, parts[1]]))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (said("if x:\n  a()\n  b()"), said("if x:\n  a()\nb()")),
        (said("a\tb"), said("a b")),
        (said("  x\n  y"), said("x\n  y")),
        (said("```\na  b\n```"), said("```\na b\n```")),
        (
            CHAT | {"messages": [{"role": "assistant", "content": "so "}]},
            CHAT | {"messages": [{"role": "assistant", "content": "so"}]},
        ),
        (
            CHAT | {"messages": [{"role": "tool", "content": "a  b"}]},
            CHAT | {"messages": [{"role": "tool", "content": "a b"}]},
        ),
    ],
)
def test_white_space_that_means_something_is_kept(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Code, tables, an answer to be continued, and what tools said."""
    assert key(one) != key(two)


@pytest.mark.parametrize(
    "dialect", [Dialect.OPENAI_COMPLETIONS, Dialect.OPENAI_EMBEDDINGS, Dialect.ANTHROPIC_COMPLETE]
)
def test_raw_text_is_kept_to_the_character(dialect: Dialect) -> None:
    """A raw prompt is continued from its last character; a vector is one of all characters."""
    for name in ("prompt", "input"):
        assert key({name: "a "}, dialect=dialect) != key({name: "a"}, dialect=dialect)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (CHAT, {}),
        (CHAT | {"temperature": -0.0}, {}),
        (b'{"temperature" : 0.00 , "messages":[]}', {}),
        (b'{"tools":[{"type":"function","temperature":0.5}],"temperature":0e0}', {}),
        (said("x", temperature=0.7, seed=3), {}),
        ({"model": "e", "input": "x"}, {"dialect": Dialect.OPENAI_EMBEDDINGS}),
        ({"contents": [], "generationConfig": {"temperature": 0}}, {"dialect": Dialect.GEMINI}),
        ({"instructions": "", "store": False, "temperature": 0},
         {"dialect": Dialect.OPENAI_RESPONSES}),
    ],
)  # fmt: skip
def test_calls_that_ask_for_the_same_answer_again_are_sure(
    body: dict[str, Any] | bytes, fields: dict[str, Any]
) -> None:
    """Temperature 0, a seed, embeddings."""
    assert key(body, SURE, **fields) is not None


@pytest.mark.parametrize(
    "body",
    [
        said("x", temperature=0.7),
        said("x", temperature=None),
        said("x", temperature=1, seed=None),
        said('"temperature": 0, "seed": 1', temperature=1),
        said("x", temperature=1, top_p=0),
        {"messages": [], "metadata": {"temperature": 0, "seed": 1}},
        {"messages": [], "temperature": False},
        {"messages": []},
    ],
)
def test_calls_that_may_get_another_answer_need_the_match_all(body: dict[str, Any]) -> None:
    """What merely looks like a temperature or seed makes nothing sure."""
    assert key(body, SURE) is None
    assert key(body, Match.ALL) is not None


@pytest.mark.parametrize(
    ("body", "dialect"),
    [
        (CHAT | {"store": True}, Dialect.OPENAI_CHAT),
        (CHAT | {"audio": {"voice": "x"}}, Dialect.OPENAI_CHAT),
        (CHAT | {"web_search_options": {}}, Dialect.OPENAI_CHAT),
        (CHAT | {"tools": [{"type": "web_search"}]}, Dialect.OPENAI_CHAT),
        (CHAT | {"tools": [{"type": "web_search_20250305"}]}, Dialect.ANTHROPIC_MESSAGES),
        (CHAT | {"tools": [{"googleSearch": {}}]}, Dialect.GEMINI),
        (CHAT | {"input": "x"}, Dialect.OPENAI_RESPONSES),
        (CHAT | {"store": None}, Dialect.OPENAI_RESPONSES),
        (CHAT | {"store": False, "prompt": {"id": "p"}}, Dialect.OPENAI_RESPONSES),
        (CHAT | {"store": False, "previous_response_id": "r"}, Dialect.OPENAI_RESPONSES),
        (CHAT, Dialect.ANTHROPIC_COUNT),
    ],
)
def test_answers_that_are_more_than_words_have_no_key(body: dict[str, Any], dialect: str) -> None:
    """What is kept, continued, searched or run upstream must be asked there."""
    assert key(body, Match.ALL, dialect=Dialect(dialect)) is None


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'"x"', b'{"messages":"\\ud800","temperature":0}',
     b'{"temperature":0,"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
     b'{"temperature":0,"a":"' + b"x" * subject.MAX_BODY_BYTES + b'"}'],
)  # fmt: skip
def test_bodies_that_cannot_be_read_in_time_have_no_key(body: bytes) -> None:
    """Nothing is raised, whatever the body."""
    assert key(body, SURE) is key(body, Match.ALL) is None


def test_a_key_is_made_once_per_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept on the call until a stage gives the call another body."""
    read: list[bytes] = []
    original = subject._read
    monkeypatch.setattr(subject, "_read", lambda c: (read.append(c.body), original(c))[1])
    one = call(said("x", temperature=1))
    assert fingerprint(one, SURE) is None
    assert not read  # told by a look at the bytes
    first = fingerprint(one, Match.ALL)
    assert (fingerprint(one, Match.ALL), fingerprint(one, SURE)) == (first, None)
    assert len(read) == 1
    one.body = json.dumps(said("y", temperature=1)).encode()
    assert fingerprint(one, Match.ALL) not in (None, first)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, Reuse.ANY),
        ({b"x-tpo-cache": b"No-Store"}, Reuse.NONE),
        ({b"x-tpo-cache": b"no-cache", b"cache-control": b"no-store"}, Reuse.REFRESH),
        ({b"cache-control": b"max-age=0"}, Reuse.REFRESH),
        ({b"cache-control": b"no-cache, No-Store"}, Reuse.NONE),
        ({b"cache-control": b"public, max-age=60"}, Reuse.ANY),
    ],
)
def test_headers_say_what_a_client_allows(headers: dict[bytes, bytes], allowed: Reuse) -> None:
    """Our own header has the last word; the strictest of the standard one's counts."""
    assert reuse_of(headers) is allowed


def test_an_unknown_order_is_refused() -> None:
    """It names the header."""
    with pytest.raises(InvalidRequest) as refused:
        reuse_of({b"x-tpo-cache": b"maybe"})
    assert refused.value.param == "x-tpo-cache"
