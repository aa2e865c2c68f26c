"""Reading JSON bodies: every wrong type is named by its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tpo_mp.dialects.body import (
    MAX_BRACKETS,
    Fields,
    RoutedHead,
    parse,
    strip_routing_fields,
    texts,
    typed,
    with_fields,
    with_model,
    with_stream,
)
from tpo_mp.errors import InvalidRequest


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        (Fields.text, 1),
        (Fields.need_text, None),
        (Fields.flag, 1),
        (Fields.whole, True),
        (Fields.whole, 1.5),
        (Fields.whole, 1e300),
        (Fields.number, "1"),
        (Fields.items, {}),
        (Fields.table, []),
        (Fields.inner, "x"),
    ],
)
def test_a_wrong_type_names_its_path(getter: Callable[[Fields, str], Any], value: object) -> None:
    """The error says where and what was expected."""
    fields = Fields({"a": value}, "messages[3]")
    with pytest.raises(InvalidRequest) as refused:
        getter(fields, "a")
    assert refused.value.param == "messages[3].a"


def test_null_is_absent() -> None:
    """A field that is null reads like one that is missing."""
    for value in ({}, {"a": None}):
        fields = Fields(value)
        assert fields.text("a") is None
        assert fields.items("a") == []
        assert fields.seconds("a") == 0


def test_what_nobody_took_is_left() -> None:
    """Unknown fields are kept, in order, without nulls."""
    fields = Fields({"a": 1, "b": None, "c": [2]})
    assert fields.whole("a") == 1
    assert fields.rest() == {"c": [2]}


def test_fields_are_replaced_in_place() -> None:
    """A changed field keeps its place; the rest of the body is as it was."""
    body = b'{"model":"a","x":{"y":[1,null]},"stream":true}'
    assert with_model(body, "b") == b'{"model":"b","x":{"y":[1,null]},"stream":true}'
    assert with_stream(body, False) == b'{"model":"a","x":{"y":[1,null]},"stream":false}'
    assert with_fields(body, stream=None) == b'{"model":"a","x":{"y":[1,null]}}'


def test_routing_fields_are_stripped() -> None:
    """No client chooses the upstream."""
    body = json.dumps({"model": "a", "api_base": "http://x", "timeout": 5}).encode()
    assert json.loads(strip_routing_fields(body)) == {"model": "a"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b"[" + b"{}," * MAX_BRACKETS + b"{}]"]
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """Broken, endless and bracket-only bodies are the client's mistake."""
    with pytest.raises(InvalidRequest) as refused:
        parse(body)
    assert refused.value.reason == "invalid_json"


def test_what_is_not_utf8_is_refused_where_nobody_reads_it() -> None:
    """An unread field goes upstream too."""
    decode = msgspec.json.Decoder(RoutedHead).decode
    assert typed(decode, '{"note": "é"}'.encode()).timeout is msgspec.UNSET
    for body in (b'{"note": "\xff"}', b'{"n\xffte": 1}', '{"note": "é"}'.encode("latin-1")):
        with pytest.raises(InvalidRequest) as refused:
            typed(decode, body)
        assert refused.value.reason == "invalid_json"


def test_one_string_or_many() -> None:
    """Stop sequences come as one string or as a list of them."""
    assert texts("a", "stop") == ("a",)
    assert texts(["a", "b"], "stop") == ("a", "b")
    with pytest.raises(InvalidRequest):
        texts([1], "stop")
