"""OpenAI chat on the wire: what a request may be, what a reply says, what echo needs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.raw import chat
from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.errors import InvalidRequest, RateLimited, Shed, TpoError
from tpo_mp.types import Usage


def body(**fields: Any) -> bytes:
    """A chat body with some fields more."""
    return json.dumps(chat("hi") | fields).encode()


def test_good_request_is_read() -> None:
    """Only what the gateway needs; the rest stays where it is."""
    asked = dialect.decode_request(
        body(stream=True, stream_options={"include_usage": True}, temperature=0.5, n=2, stop=["a"],
             tools=[{"type": "function"}], x_unknown={"a": [1]})
    )  # fmt: skip
    assert (asked.model, asked.stream, asked.usage_wanted) == ("echo", True, True)
    assert not asked.has_routing_fields()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"user": 7}, "user"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    """So that a client knows what to change."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode_request(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"{} {}", b"\xff", b'{"model":"\\ud800"}', b"NaN",
     b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 50_000,
     b'{"a":' * 30_000 + b"1" + b"}" * 30_000],
    ids=lambda raw: repr(raw[:20]),
)  # fmt: skip
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    """Quickly, and never as a defect."""
    with pytest.raises(InvalidRequest):
        dialect.decode_request(raw)


@pytest.mark.parametrize(
    ("fields", "affinity"),
    [
        ({}, None),
        ({"user": "u"}, "u"),
        ({"user": "u", "metadata": {"user_id": "m"}}, "m"),
        ({"user": "u", "metadata": {"user_id": 5}}, "u"),
        ({"metadata": {"user_id": "m"}, "prompt_cache_key": "p"}, "p"),
        ({"metadata": [1]}, None),
    ],
)
def test_affinity_is_the_first_key_of_the_body(
    fields: dict[str, Any], affinity: str | None
) -> None:
    """Cache key, then metadata, then user."""
    assert dialect.decode_request(body(**fields)).affinity == affinity


@pytest.mark.parametrize(
    "field", ["api_base", "base_url", "api_key", "api_version", "extra_headers", "mock_response",
              "organization", "timeout"]
)  # fmt: skip
@pytest.mark.parametrize("value", [None, "http://169.254.169.254", {"a": 1}])
def test_clients_cannot_steer_the_upstream(field: str, value: Any) -> None:
    """Fields other gateways honour are seen and taken out; all others stay."""
    raw = body(**{field: value}, seed=4)
    assert dialect.decode_request(raw).has_routing_fields()
    assert json.loads(dialect.strip_routing_fields(raw)) == chat("hi") | {"seed": 4}


def test_model_is_replaced_alone() -> None:
    """Unknown fields and number spellings survive."""
    raw = b'{"model":"a","messages":[],"x":{"y":[null,1e2]},"big":12345678901234567890}'
    changed = json.loads(dialect.with_model(raw, "b"))
    assert changed == json.loads(raw) | {"model": "b"}


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": True, "x": 1}]
)
def test_usage_is_asked_for_beside_other_options(options: Any) -> None:
    """Spliced in where there were none, set where there were some."""
    raw = body(stream=True, stream_options=options)
    asked = json.loads(dialect.with_usage(raw, True))
    assert asked["stream_options"] == {**(options or {}), "include_usage": True}
    plain = body(stream=True) + b" \n"
    assert json.loads(dialect.with_usage(plain, False)) == json.loads(plain) | {
        "stream_options": {"include_usage": True}
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}], "ab"),
        ([{"text": None}, {"text": 5}, {"text": ["x"]}], ""),
        (None, "old"),
    ],
)
def test_newest_words_of_the_user(content: Any, text: str) -> None:
    """Whatever parts they come in; what is no text is no text."""
    messages = [{"role": "user", "content": "old"}, {"role": "user", "content": content},
                {"role": "assistant", "content": "no"}]  # fmt: skip
    assert dialect.last_user_text(json.dumps({"messages": messages}).encode()) == text


def test_own_replies_are_read_by_ourselves() -> None:
    """Whole and streamed."""
    raw = dialect.completion("id", 1, "m", "some words", Usage(1, 2))
    seen = dialect.decode_reply(raw)
    assert (seen.text(), seen.finish(), seen.model) == ("some words", "stop", "m")
    usage = dialect.usage_of(raw)
    assert usage is not None
    assert (usage.prompt, usage.completion) == (1, 2)
    event = dialect.event(dialect.chunk("id", 1, "m", {"content": "x"}, "length"))
    (data,) = dialect.event_data(event)
    assert (dialect.decode_reply(data).text(), dialect.decode_reply(data).finish()) == (
        "x", "length",
    )  # fmt: skip
    assert dialect.wire_usage(Usage())["total_tokens"] == 0


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ('{"prompt_tokens":1,"completion_tokens":2}', (1, 2, 0)),
        ('{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}}', (9, -1, 7)),
        ('{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":null}}', (9, -1, 0)),
        ('{"prompt_tokens":null,"prompt_tokens_details":null}', (-1, -1, 0)),
        ("{}", (-1, -1, 0)),
        ("null", None),
    ],
)
def test_usage_may_be_missing_in_part(usage: str, counts: tuple[int, int, int] | None) -> None:
    """A server that does not count still answers, and a stream says the same as a whole reply."""
    seen = dialect.usage_of(b'{"usage":%b}' % usage.encode())
    assert (None if seen is None else (seen.prompt, seen.completion, seen.cached)) == counts
    watch = dialect.watch()
    watch.feed(b'data: {"choices":[],"usage":%b}\n\n' % usage.encode())
    watch.feed(b"data: [DONE]\n\n")
    told = watch.usage
    assert (None if told is None else (told.prompt, told.completion, told.cached)) == counts


@pytest.mark.parametrize("count", ["1e40", "9" * 40, '"5"', "[]"])
def test_absurd_usage_is_no_answer(count: str) -> None:
    """It would be added to cells of 64 bits."""
    with pytest.raises(ValueError, match="Expected"):
        dialect.usage_of(b'{"usage":{"prompt_tokens":%b}}' % count.encode())


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"event: x\ndata: a\ndata: b\nid: 1\n\n", [b"a\nb"]),
        (b": note\n\nretry: 5\n\n", []),
        (b"", []),
    ],
)
def test_events_are_found(stream: bytes, found: list[bytes]) -> None:
    """Comments, ids and names are not data."""
    assert list(dialect.event_data(stream)) == found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("m", param="p", reason="r"), "invalid_request_error"),
        (RateLimited("m"), "rate_limit_error"),
        (Shed("m"), "server_error"),
        (InvalidRequest("m", status=418), "invalid_request_error"),
    ],
)
def test_errors_have_the_apis_shape(error: TpoError, kind: str) -> None:
    """Whole and in a stream; an upstream's own body passes as it came."""
    shown = json.loads(dialect.error_body(error))["error"]
    assert shown == {"message": "m", "type": kind, "param": error.param, "code": error.reason}
    (data,) = dialect.event_data(dialect.error_event(error))
    assert json.loads(data)["error"] == shown
    assert dialect.error_body(RateLimited("m", body=b"as it came")) == b"as it came"
