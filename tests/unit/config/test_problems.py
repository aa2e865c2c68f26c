"""Messages: one line each, told once, without credentials."""

from __future__ import annotations

import pytest

from tpo_mp.config.problems import Problems, shown, suggestion
from tpo_mp.errors import ConfigError


def test_problem_is_told_once() -> None:
    """Two steps may find the same one."""
    problems = Problems()
    problems.add("a", "wrong")
    problems.add("a", "wrong")
    problems.warn("old")
    problems.warn("old")
    assert (problems.lines, problems.warnings) == (["a: wrong"], ["old"])


def test_all_problems_are_raised_together() -> None:
    """One line each."""
    problems = Problems()
    problems.stop()
    problems.add("a", "wrong")
    problems.add_value("b", 1, "wrong too")
    with pytest.raises(ConfigError, match=r"^a: wrong\nb = 1: wrong too$"):
        problems.stop()


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("server.host", "h", "'h'"),
        ("backends[0].api_key", "sk-1", "***"),
        ("distributed.redis_url", "redis://:pw@h", "***"),
        ("backends[0].headers", {"a": "b"}, "***"),
        ("auth.keys[0].id", "a", "'a'"),
        ("backends[0].base_url", "http://me:pw@h/v1?key=k", "'http://***@h/v1?***"),
        ("a", "x" * 100, "'" + "x" * 58 + "…"),
    ],
)
def test_value_is_shown_unless_it_is_a_credential(path: str, value: object, text: str) -> None:
    """Long ones are cut."""
    assert shown(path, value) == text


def test_suggestion_is_near_or_the_whole_list() -> None:
    """Either helps."""
    assert suggestion("prot", ["port", "host"]) == "did you mean 'port'?"
    assert suggestion("zzz", ["port", "host"]) == "known: host, port"
    assert suggestion("zzz", []) == "known: none"
