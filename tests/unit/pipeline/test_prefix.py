"""A stream that begins again goes on only where it says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tpo_mp.pipeline.prefix import DifferentError, Prefix


def event(text: str, answer: str, **more: Any) -> bytes:
    """One piece of a chat stream."""
    choices = [{"index": 0, "delta": {"content": text}}]
    return b"data: " + json.dumps({"id": answer, "created": len(answer), "choices": choices}
                                  | more).encode() + b"\n\n"  # fmt: skip


OLD = event("one", "chatcmpl-a") + event(" two", "chatcmpl-a")


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_the_rest_passes_under_the_id_that_is_known(size: int) -> None:
    """However it is cut; ids and instants are another each time."""
    again = OLD.replace(b"chatcmpl-a", b"chatcmpl-bbb").replace(b'"created": 10', b'"created": 99')
    rest = event(" three", "chatcmpl-bbb") + b"data: [DONE]\n\n"
    prefix = Prefix(OLD)
    whole = b": ping\n\n" + again + rest
    passed = b"".join(prefix.feed(whole[i : i + size]) for i in range(0, len(whole), size))
    assert prefix.found
    if size > len(event(" three", "chatcmpl-bbb")):  # an id that is cut in two stays as it came
        assert passed == rest.replace(b"chatcmpl-bbb", b"chatcmpl-a")
    assert passed.endswith(b"data: [DONE]\n\n")
    assert passed.count(b"three") == 1
    assert b"two" not in passed


@pytest.mark.parametrize(
    "again",
    [
        event("one", "b") + event(" 2", "b"),
        event("one two", "b"),
        event("one", "b", more=1),
        b"data: [DONE]\n\n",
        b"data: nonsense\n\n",
    ],
)
def test_another_answer_does_not_pass(again: bytes) -> None:
    """Other words, other pieces, other fields."""
    with pytest.raises(DifferentError):
        Prefix(OLD).feed(again)


def test_it_goes_on_only_from_the_end_of_an_event() -> None:
    """Half an event cannot be completed."""
    assert Prefix.is_whole(OLD)
    assert not Prefix.is_whole(OLD[:-3])
