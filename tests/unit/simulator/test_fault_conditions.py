"""Which requests a rule is about, and expressions that cannot run for long."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from tests.support.fault_facts import FakeFacts, facts
from tpo_mp.simulator.fault_conditions import Condition, expression, family_of, holds
from tpo_mp.types import Dialect


def asked(condition: dict[str, Any], of: FakeFacts) -> bool:
    """Whether a condition, as a file has it, holds."""
    made = holds(msgspec.convert(condition, Condition))
    assert made is not None
    return made(of)


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        ({"model": "gpt-4*"}, facts(model="gpt-4o"), facts(model="claude-3")),
        ({"model_regex": "^gpt-[45]"}, facts(model="gpt-5"), facts(model="my-gpt-4")),
        ({"dialects": ["anthropic"]}, facts(dialect=Dialect.ANTHROPIC_MESSAGES), facts()),
        ({"dialects": ["openai_responses"]}, facts(dialect=Dialect.OPENAI_RESPONSES), facts()),
        ({"contains": "PAY"}, facts(said="please pay"), facts(said="please")),
        ({"min_tokens": 10, "max_tokens": 20}, facts(prompt=20), facts(prompt=21)),
        ({"min_tokens": 10}, facts(prompt=10), facts(prompt=9)),
        ({"min_bytes": 3, "max_bytes": 4}, facts(b"1234"), facts(b"12345")),
        ({"header": {"X-Team": "^a"}}, facts(headers={"x-team": "ab"}), facts()),
        ({"header": {"X-Team": "^a"}}, facts(headers={"x-team": "a"}),
         facts(headers={"x-team": "ba"})),
        ({"streamed": True}, facts(stream=True), facts()),
        ({"streamed": False}, facts(), facts(stream=True)),
        ({"min_concurrent": 3}, facts(under_way=3), facts(under_way=2)),
        ({"any": [{"model": "a"}, {"model": "b"}]}, facts(model="b"), facts(model="c")),
        ({"none": [{"model": "a"}, {"streamed": True}]}, facts(model="b"),
         facts(model="b", stream=True)),
        ({"model": "gpt*", "none": [{"contains": "vip"}]}, facts(said="hi"), facts(said="a VIP")),
    ],
)  # fmt: skip
def test_each_field_tells_requests_apart(
    condition: dict[str, Any], yes: FakeFacts, no: FakeFacts
) -> None:
    """One request of each side."""
    assert asked(condition, yes)
    assert not asked(condition, no)


def test_every_field_must_hold() -> None:
    """They are joined by "and"; of ``any`` one is enough."""
    both = {"model": "gpt*", "streamed": True}
    assert asked(both, facts(stream=True))
    assert not asked(both, facts())
    assert not asked(both, facts(model="o3", stream=True))


def test_no_condition_asks_nothing() -> None:
    """So that it costs nothing."""
    assert holds(Condition()) is None


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"model_regex": "("}, "is no regular expression"),
        ({"header": {"x-a": "(a+)+"}}, "repeats a group"),
        ({"header": {"x a": "b"}}, "is no name of a header"),
        ({"dialects": ["smtp"]}, "is no dialect"),
        ({"min_tokens": -1}, "Expected `int` >= 0"),
        ({"model_regex": "a" * 300}, "length <= 256"),
        ({"any": [{"models": "a"}]}, "unknown field `models`"),
    ],
)
def test_bad_conditions_are_refused(condition: dict[str, Any], said: str) -> None:
    """When they are read, with the reason."""
    with pytest.raises(msgspec.ValidationError, match=re.escape(said)):
        msgspec.convert(condition, Condition)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)*b", "((a?)b)+", "(?:x*)*", "([a-z]+){2,}", ".*.*.*.*", "(a{1,9})*"],
)
def test_expressions_that_could_run_for_ever_are_refused(pattern: str) -> None:
    """A repeat inside a repeat, alternatives inside one, too many in a row."""
    with pytest.raises(ValueError, match="repeat"):
        expression(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^gpt-4(o|-turbo)?$", "gpt-4o"), ("(abc)+", "abcabc"), ("[)(*+]+", "(*"),
        (r"\(a\)*", "(a"),
        ("(?i)TEAM", "team"), ("a{2}", "aa"), ("[^]]+]", "a]"),
        ("[[]x", "[x"), ("^a.*b.*c$", "axbxc"),
    ],
)  # fmt: skip
def test_ordinary_expressions_are_understood(pattern: str, text: str) -> None:
    """Optional groups, classes, escapes, flags."""
    assert expression(pattern).search(text)


def test_headers_that_are_asked_about_are_told() -> None:
    """From all alternatives, in lower case."""
    made = msgspec.convert(
        {"header": {"X-A": "1"}, "any": [{"header": {"X-B": "1"}}], "none": [{"model": "x"}]},
        Condition,
    )
    assert sorted(made.headers()) == ["x-a", "x-b"]
    assert not made.counts()
    assert msgspec.convert({"any": [{"min_concurrent": 1}]}, Condition).counts()


def test_every_dialect_has_a_family() -> None:
    """Whatever dialects there will be."""
    assert {family_of(dialect) for dialect in Dialect} <= {"openai", "anthropic", "gemini"}
    assert family_of(Dialect.ANTHROPIC_COUNT) == "anthropic"
