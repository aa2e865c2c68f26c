"""Rules: what matches, what is answered, how often, and what no rule matches."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_codec import asked, request_of
from tests.support.fake_env import FakeLedger
from tpo_mp.dialects.canonical import ModelRequest
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.rules import AnswerRule, RuleBook, problems

TOOL_TALK: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [
        {"role": "user", "content": "weather in Rome?"},
        {"role": "assistant", "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ],
}  # fmt: skip
TWO_TURNS: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "two"},
    ],
}


def rules(*given: dict[str, Any]) -> list[AnswerRule]:
    """Rules as a file has them."""
    return msgspec.convert(list(given), list[AnswerRule])


def said(book: RuleBook, request: ModelRequest) -> str | None:
    """The words of the rule that answers."""
    found = book.reply_to(request)
    return None if found is None else found.text


@pytest.mark.parametrize(
    ("match", "request_", "holds"),
    [
        ({}, asked("hi"), True),
        ({"model": "gpt-4*"}, request_of(TWO_TURNS), True),
        ({"model": "claude*"}, request_of(TWO_TURNS), False),
        ({"contains": "two"}, request_of(TWO_TURNS), True),
        ({"contains": "one"}, request_of(TWO_TURNS), False),
        ({"regex": "^t.o$"}, request_of(TWO_TURNS), True),
        ({"regex": "^wo"}, request_of(TWO_TURNS), False),
        ({"turn": 2}, request_of(TWO_TURNS), True),
        ({"turn": 1}, request_of(TWO_TURNS), False),
        ({"turn": 1, "contains": "weather"}, request_of(TOOL_TALK), True),
        ({"tool_result": "get_weather"}, request_of(TOOL_TALK), True),
        ({"tool_result": "c1"}, request_of(TOOL_TALK), True),
        ({"tool_result": "*"}, request_of(TOOL_TALK), True),
        ({"tool_result": "other"}, request_of(TOOL_TALK), False),
        ({"tool_result": "*"}, request_of(TWO_TURNS), False),
    ],
)
def test_all_that_is_given_must_hold(
    match: dict[str, Any], request_: ModelRequest, holds: bool
) -> None:
    """Nothing given matches everything."""
    book = RuleBook(rules({"match": match, "reply": {"text": "mine"}}), False, FakeLedger().ordinal)
    assert said(book, request_) == ("mine" if holds else None)


def test_first_rule_that_is_not_used_up_answers() -> None:
    """Counted where every worker counts; the same rule twice is one count, a named one its own."""
    ledger = FakeLedger()
    once = {"reply": {"text": "a"}, "times": 1}
    book = RuleBook(
        rules(once, once | {"name": "b"}, {"reply": {"text": "c"}}), False, ledger.ordinal
    )
    other = RuleBook(rules(once), False, ledger.ordinal)
    assert [said(book, asked("x")) for _ in range(3)] == ["a", "a", "c"]
    assert said(other, asked("x")) is None


def test_strict_names_the_request_that_no_rule_matches() -> None:
    """So that a test that fails says why."""
    book = RuleBook(rules({"match": {"contains": "never"}}), True, FakeLedger().ordinal)
    with pytest.raises(InvalidRequest) as refused:
        book.reply_to(request_of(TOOL_TALK))
    assert refused.value.reason == "no_rule_matched"
    for word in ("gpt-4o", "turn 1", "weather in Rome?", "get_weather"):
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"match": {"regex": "("}}, "rules[0].match.regex"),
        ({"reply": {"error": "42"}}, "rules[0].reply.error"),
        ({"reply": {"fault": "explode"}}, "rules[0].reply.fault"),
        ({"reply": {"error": 429, "text": "x"}}, "rules[0].reply"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(rule: dict[str, Any], path: str) -> None:
    """Before anything is served."""
    assert [where for where, _ in problems(rules(rule))] == [path]


def test_sound_rules_have_no_problems() -> None:
    """An error may be a number or words."""
    errors: tuple[int | str, ...] = (429, "503; retry_after=2", "insufficient_quota")
    sound = rules(*({"reply": {"error": error}} for error in errors))
    sound += rules({"reply": {"fault": "stall_after=2; for=0.1"}}, {"reply": {"text": ""}})
    assert not list(problems(sound))
