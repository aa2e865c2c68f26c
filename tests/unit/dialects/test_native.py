"""The native dialect: strict prompts in, one record out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tpo_mp.dialects import native
from tpo_mp.errors import InvalidRequest, RateLimited
from tpo_mp.types import Usage


def raw(**fields: Any) -> bytes:
    """A body."""
    return json.dumps(fields).encode()


def test_both_names_of_the_prompt_are_one() -> None:
    """Equal ones may both be given."""
    assert native.decode_request(raw(prompt="a")).prompt == "a"
    assert native.decode_request(raw(input="a")).input == "a"
    assert native.decode_request(raw(prompt="a", input="a")).prompt == "a"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "input": "b"}, "input"),
        ({"prompt": "a", "promt": "b"}, "promt"),
        ({"prompt": "a", "model": ""}, "model"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "temperature": 3}, "temperature"),
        ({"prompt": "a", "session_id": ""}, "session_id"),
        ({"prompt": "a", "session_id": "x" * 257}, "session_id"),
        ({"prompt": "a", "deadline_secs": 0}, "deadline_secs"),
        ({"prompt": "a", "timeout_seconds": 3601}, "timeout_seconds"),
        ({"prompt": "a", "deadline_secs": 0.9}, "deadline_secs"),
        ({"prompt": "a", "metadata": {"k" * 129: "v"}}, "metadata"),
        ({"prompt": "a", "metadata": {"": "v"}}, "metadata"),
        ({"prompt": "a", "metadata": {"é" * 65: "v"}}, "metadata"),
        ({"prompt": "a", "metadata": {"k": "é" * 513}}, "metadata"),
        ({"prompt": "a", "metadata": {"k": 5}}, "metadata[...]"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    """With 422, as these clients expect."""
    with pytest.raises(InvalidRequest) as refused:
        native.decode_request(raw(**fields))
    assert (refused.value.status, refused.value.reason) == (422, "VALIDATION_ERROR")
    assert refused.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 30_000, b'{"prompt":"\\ud800"}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """Never a defect."""
    with pytest.raises(InvalidRequest):
        native.decode_request(body)


@pytest.mark.parametrize(
    ("given", "session"), [(None, None), ("s", "s"), (7, "7"), (-1, "-1"), (2**60, str(2**60))]
)
def test_session_is_text(given: Any, session: str | None) -> None:
    """Ids we made may come back as numbers."""
    assert native.decode_request(raw(prompt="a", session_id=given)).session == session


def test_chat_body_has_defaults_where_the_request_is_silent() -> None:
    """Zero is a value."""
    bare = native.to_chat("a", "m", {})
    assert json.loads(bare) == {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    body, unsaid = native.filled(bare, native.SAMPLING)
    assert json.loads(body) == json.loads(bare) | {"max_tokens": 256, "temperature": 0.7}
    assert unsaid == ("max_tokens", "temperature")
    body, unsaid = native.filled(native.to_chat("a", "m", {"temperature": 0}), native.SAMPLING)
    assert json.loads(body)["temperature"] == 0
    assert unsaid == ("max_tokens",)


def test_chat_body_is_told_anew_for_another_backend() -> None:
    """What the one before was told is not left in it; what was said stays."""
    said = native.to_chat("a", "m", {"temperature": 0})
    first, unsaid = native.filled(said, {"max_tokens": 9, "temperature": 1, "stop": ["x"]})
    assert unsaid == ("max_tokens", "stop")
    other, unsaid = native.filled(first, {"max_tokens": 7, "top_p": 0.5}, unsaid)
    assert json.loads(other) == json.loads(said) | {"max_tokens": 7, "top_p": 0.5}
    assert unsaid == ("max_tokens", "top_p")


def test_record_grows_when_it_is_final() -> None:
    """Processing says little, the last word says all."""
    early = native.record("id", None, "processing")
    assert set(early) == {"request_id", "session_id", "status", "result", "error"}
    final = native.record(
        "id", "s", "completed", result="r", model="m", finish_reason="stop",
        usage=Usage(1, -1), latency_ms=2.5,
    )  # fmt: skip
    assert final["usage"] == {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}
    assert (final["model"], final["latency_ms"]) == ("m", 2.5)


def test_error_names_fields_and_when_to_come_back() -> None:
    """One parser reads ours and OpenAI's."""
    error = native.error_object(RateLimited("m", param="p", retry_after_s=0.25), "id")
    assert (error["message"], error["param"], error["request_id"]) == ("m", "p", "id")
    assert error["retry_after_ms"] == 250
    assert error["details"]["fields"][0]["field"] == "p"
    plain = native.error_object(RateLimited("m"), "id")
    assert (plain["details"], plain["retry_after_ms"]) == (None, None)
    assert json.loads(native.error_body(RateLimited("m"), "id"))["error"]["code"] == "rate_limited"
