"""How prompts begin, in each dialect's body."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from tpo_mp.dialects import prompt_start
from tpo_mp.dialects.prompt_start import MAX_BODY_BYTES, start_of

SAID = b"user\0What is the capital?\0"


@pytest.mark.parametrize(
    ("body", "start"),
    [
        ({"messages": [{"role": "user", "content": "What is the capital?"}]}, SAID),
        (
            {"messages": [{"content": [{"type": "text", "text": "Hi"}], "role": "user"}], "n": 2},
            b"user\0Hi\0",
        ),
        (
            {"messages": [{"role": "user", "content": "Hi"}], "system": [{"text": "Be brief."}]},
            b"Be brief.\0user\0Hi\0",
        ),
        ({"input": "Hi", "instructions": "Be brief."}, b"Be brief.\0Hi\0"),
        ({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}, b"user\0Hi\0"),
        ({"prompt": ["one", "two"]}, b"one\0two\0"),
        ({"prompt": [1, 2, 3]}, b""),
        ({"messages": None}, b""),
        ([], b""),
    ],
)
def test_a_start_is_what_the_model_reads_first(body: Any, start: bytes) -> None:
    """Whatever else the body says."""
    assert start_of(json.dumps(body).encode(), 1000) == start


def test_it_is_as_long_as_was_asked() -> None:
    """In bytes, even inside a character."""
    body = json.dumps({"prompt": "äöü" * 100}).encode()
    assert start_of(body, 3) == "äö".encode()[:3]


@pytest.mark.parametrize("body", [b"", b"{", b'{"prompt": "\\ud800"}', b"x" * (MAX_BODY_BYTES + 1)])
def test_what_cannot_be_read_has_none(body: bytes) -> None:
    """And nothing is raised."""
    assert start_of(body, 10) in (b"", b"?\0")


@pytest.mark.parametrize(
    "prompt",
    [
        "[" * 1000 + "]" * 1000,
        '{"content":' * 1000 + "1" + "}" * 1000,
        "[" + "[]," * 40_000 + "[]]",
        "[" * 60 + '"unheard"' + "]" * 60,
    ],
)
def test_what_no_prompt_looks_like_is_not_searched(prompt: str) -> None:
    """However deep or wide somebody makes it."""
    reads = Random().randrange(1 << 16)  # another body each time
    body = f'{{"n": {reads}, "input": {prompt}, "prompt": "heard"}}'.encode()
    assert start_of(body, 100) in (b"heard\0", b"")


def test_a_wide_prompt_costs_no_more_than_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first parts are what it begins with."""
    monkeypatch.setattr(prompt_start, "MOST_PARTS", 8)
    body = json.dumps({"prompt": ["one", [], {}, "two", "three", "four"]}).encode()
    assert start_of(body, 100) == b"one\0two\0three\0"
