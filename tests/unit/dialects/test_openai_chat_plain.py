"""Plain chat requests are read in one step, exactly as they are field by field."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.dialects.openai_chat_body import NAME, NAMES, any_request, request_to_canonical
from tpo_mp.dialects.openai_chat_plain import plain_request
from tpo_mp.errors import InvalidRequest

USER = {"role": "user", "content": "rivers"}
_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_NUMBERS = st.none() | st.integers() | st.floats(allow_nan=False) | st.booleans()
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": _WORDS}
    ),
    max_size=4,
)
_BODIES = st.fixed_dictionaries(
    {"model": _WORDS, "messages": _MESSAGES},
    optional={
        "max_tokens": _NUMBERS, "temperature": _NUMBERS, "top_p": _NUMBERS, "n": _NUMBERS,
        "seed": _NUMBERS, "user": st.none() | _WORDS, "stream": st.none() | st.booleans(),
    },
)  # fmt: skip


def read(body: bytes) -> Any:
    """The request field by field, or what is said against it."""
    try:
        return any_request(body)
    except InvalidRequest as error:
        return error.message


@given(_BODIES)
def test_same_request_either_way(asked: dict[str, Any]) -> None:
    """To the type of each number, or else it is left to the other reader."""
    body = json.dumps(asked).encode()
    plain = plain_request(body, NAME, NAMES)
    if plain is not None:
        assert repr(plain) == repr(read(body))


def test_what_most_clients_send_is_plain() -> None:
    """A conversation with its usual numbers, and instructions also in its middle."""
    system, said = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "a"}
    turns = [system, system, USER, said, system, USER]
    asked = {"model": "m", "messages": turns, "max_tokens": 5, "temperature": 1,
             "top_p": 0.5, "n": 1, "seed": 3, "user": "u", "stream": False}  # fmt: skip
    body = orjson.dumps(asked)
    plain = plain_request(body, NAME, NAMES)
    assert plain is not None
    assert repr(plain) == repr(any_request(body)) == repr(request_to_canonical(body))


@pytest.mark.parametrize(
    "more",
    [{"tools": []}, {"unknown": 1}, {"max_tokens": 1.5}, {"max_tokens": 2**60}, {"n": True},
     {"messages": [{**USER, "name": "x"}]}, {"messages": [{"role": "user", "content": []}]},
     {"messages": [{"role": "user", "content": ""}]}, {"messages": [{"role": "tool"}]}],
)  # fmt: skip
def test_anything_else_is_not(more: dict[str, Any]) -> None:
    """Fields, roles and content beyond that, and what is wrong."""
    body = json.dumps({"model": "m", "messages": [USER]} | more).encode()
    assert plain_request(body, NAME, NAMES) is None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}']
)
def test_what_is_no_request_has_its_usual_error(body: bytes) -> None:
    """A client is told by the reader that names fields."""
    with pytest.raises(InvalidRequest, match=r"the body"):
        request_to_canonical(body)
