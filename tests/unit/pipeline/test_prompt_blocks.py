"""Digests of the beginnings of prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tpo_mp.pipeline.prompt_blocks import BLOCK, MOST, blocks_of


def body(*turns: str, **more: Any) -> bytes:
    """A chat request as SDKs write it."""
    messages = [{"role": "user", "content": turn} for turn in turns]
    return json.dumps({"model": "m", "messages": messages} | more).encode()


def common(first: list[bytes], second: list[bytes]) -> int:
    """How many blocks two prompts begin with alike."""
    pairs = [a == b for a, b in zip(first, second, strict=False)]
    return pairs.index(False) if False in pairs else len(pairs)


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    """All but the block that the last turn ends in."""
    first = blocks_of(make_call(body("x" * 5000)))
    second = blocks_of(make_call(body("x" * 5000, "and then?" * 300, temperature=0.5)))
    assert len(first) == 4
    assert common(first, second) == 4
    assert len(second) > 4


def test_what_comes_before_counts_for_all_that_follows() -> None:
    """The same words after another beginning are another prompt."""
    first, second = (blocks_of(make_call(body(start + "y" * 8000))) for start in "ab")
    assert common(first, second) == 0
    assert not set(first) & set(second)


def test_other_options_before_the_prompt_make_no_difference() -> None:
    """A conversation is what the model is told."""
    plain = {"messages": [{"role": "user", "content": "z" * 3000}]}
    first = blocks_of(make_call(json.dumps({"temperature": 1} | plain).encode()))
    second = blocks_of(make_call(json.dumps({"user": "somebody", "n": 1} | plain).encode()))
    assert first == second


@pytest.mark.parametrize("field", ["tenant", "model"])
def test_tenants_and_models_have_nothing_in_common(field: str) -> None:
    """Nobody can tell by a reply's speed what another tenant asked."""
    text = body("x" * 3000)
    first, second = (blocks_of(make_call(text, **{field: name})) for name in ("one", "two"))
    assert common(first, second) == 0


@pytest.mark.parametrize(
    ("size", "blocks"), [(0, 0), (BLOCK - 1, 0), (BLOCK, 1), (BLOCK * 200, MOST)]
)
def test_short_prompts_have_no_blocks_and_long_ones_not_too_many(size: int, blocks: int) -> None:
    """Whatever the body is."""
    assert len(blocks_of(make_call(b"\xff" * size))) == blocks


def test_a_prompt_that_begins_late_is_not_searched_for() -> None:
    """Nobody holds the loop with what comes before it."""
    quotes = rb'{"metadata":{"a":"' + rb"\"" * (1 << 20) + b'"},'
    whole = quotes + b'"messages":[' + b" " * 5000 + b"]}"
    assert len(blocks_of(make_call(whole))) == MOST  # of all that there is
