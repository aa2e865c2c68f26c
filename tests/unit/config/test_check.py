"""Conversion finds every problem of a table, and shows no credential."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from tpo_mp.config.check import Converter
from tpo_mp.config.problems import Problems
from tpo_mp.config.values import Secret


class Inner(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nested."""

    size: Annotated[int, Meta(ge=1)] = 1
    mode: Literal["a", "b"] = "a"


class Outer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nesting."""

    name: str
    port: Annotated[int, Meta(le=10)] = 1
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    words: tuple[str, ...] = ()
    api_key: Secret | None = None


def check(raw: object, env: dict[str, str] | None = None) -> tuple[Outer | None, list[str]]:
    """Convert, and answer what was found."""
    problems = Problems()
    made = Converter(env or {}, None, problems).convert(raw, Outer, "t")
    return made, problems.lines


def test_sound_table_converts() -> None:
    """Secrets are resolved on the way."""
    made, lines = check({"name": "n", "inner": {"size": 2}, "api_key": {"env": "K"}}, {"K": "v"})
    assert made == Outer(name="n", inner=Inner(size=2), api_key=Secret("v", "env", "K"))
    assert lines == []


def test_all_problems_of_a_table_are_found() -> None:
    """msgspec would tell one."""
    made, lines = check({
        "nmae": "n", "port": 11, "inner": {"size": 0, "mdoe": "a"}, "many": [{}, {"mode": "c"}],
    })  # fmt: skip
    assert made is None
    assert sorted(lines) == [
        "t.inner.mdoe: unknown key; did you mean 'mode'?",
        "t.inner.size = 0: expected int >= 1",
        "t.many[1].mode = 'c': expected one of a, b",
        "t.name: required, but missing",
        "t.nmae: unknown key; did you mean 'name'?",
        "t.port = 11: expected int <= 10",
    ]


def test_required_key_with_a_wrong_value_is_told_once() -> None:
    """It was there, so it is not missing."""
    assert check({"name": 3})[1] == ["t.name = 3: expected str, got int"]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"words": ["a", 1]}, "t.words[1] = 1: expected str, got int"),
        ({"inner": 3}, "t.inner = 3: expected object | null, got int"),
    ],
)
def test_problem_that_cannot_be_taken_out_is_still_told(raw: dict[str, object], line: str) -> None:
    """The rest of that table is then left unchecked."""
    assert line in check({"name": "n", **raw})[1]


def test_entry_of_a_table_of_tables_is_named() -> None:
    """By its own key, which msgspec leaves out; the others are checked too."""
    _, lines = check({"name": "n", "named": {"a": {}, "x.1": {"size": 0}, "y": {"mdoe": "a"}}})
    assert sorted(lines) == [
        "t.named.x.1.size = 0: expected int >= 1",
        "t.named.y.mdoe: unknown key; did you mean 'mode'?",
    ]


def test_table_that_is_none_is_told() -> None:
    """The whole is wrong."""
    assert check([])[1] == ["t = []: expected object, got array"]


def test_credential_is_never_shown() -> None:
    """Not even a malformed one."""
    _, lines = check({"name": "n", "api_key": ["hunter2"]})
    assert len(lines) == 1
    assert lines[0].startswith("t.api_key = ***: expected a string")


def test_suggestions_leave_out_what_is_already_there() -> None:
    """A key that is set is not what was meant."""
    assert check({"name": "n", "nme": "m"})[1][0].startswith(
        "t.nme: unknown key; did you mean 'named'"
    )
