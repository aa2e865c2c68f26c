"""Values by schema: they fit, they end, and what cannot be met is refused."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.json_schema import Validator
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.values import fitting

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "left", "right"],
            "additionalProperties": False,
        }
    },
}


def bounded(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two numbers in order."""
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(
        lambda pair: (min(pair), max(pair))
    )


PLAIN = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    bounded(0, 20).map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[1]}),
    bounded(-50, 50).map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[1]}),
    bounded(-50, 50).map(lambda b: {"type": "number", "minimum": b[0], "maximum": b[1]}),
    st.integers(-9, 9).map(lambda n: {"type": "number", "exclusiveMinimum": n}),
    st.integers(-9, 9).map(lambda n: {"type": "integer", "exclusiveMaximum": n}),
    st.lists(st.text(max_size=5), min_size=1).map(lambda options: {"enum": options}),
    st.text(max_size=5).map(lambda value: {"const": value}),
    st.just({"type": "string", "pattern": "^[A-Z]{3}$"}),
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects, arrays and alternatives of simpler schemas."""
    objects = st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3).map(
        lambda of: {"type": "object", "properties": of, "required": list(of),
                    "additionalProperties": False}
    )  # fmt: skip
    arrays = st.tuples(inner, bounded(0, 3)).map(
        lambda of: {"type": "array", "items": of[0], "minItems": of[1][0], "maxItems": of[1][1]}
    )
    return st.one_of(
        objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    )


@settings(max_examples=150)
@given(st.recursive(PLAIN, nested, max_leaves=8), st.integers(0, 99))
def test_value_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    """Any nesting of what is understood; the same numbers make the same value."""
    value = fitting(schema, Random(seed), "format")
    assert not Validator(schema).errors(value), value
    assert value == fitting(schema, Random(seed), "format")
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("seed", range(20))
def test_recursive_schema_ends(seed: int) -> None:
    """A tree gets leaves."""
    assert not Validator(TREE).errors(fitting(TREE, Random(seed), "format"))


def test_list_of_types_and_bare_keywords_are_understood() -> None:
    """The first type that is not null; a type told by its keywords."""
    assert isinstance(fitting({"type": ["null", "string"]}, Random(0), "p"), str)
    assert isinstance(fitting({"properties": {"a": {}}}, Random(0), "p"), dict)
    assert isinstance(fitting({"items": {"type": "null"}}, Random(0), "p"), list)
    assert isinstance(fitting({"minimum": 3}, Random(0), "p"), int | float)
    assert (
        fitting({"allOf": [{"type": "integer"}, {"minimum": 7, "maximum": 7}]}, Random(0), "p") == 7
    )
    assert (
        fitting({"type": "number", "multipleOf": 0.5, "minimum": 1, "maximum": 1.2}, Random(0), "p")
        == 1
    )


def test_formats_look_like_themselves() -> None:
    """Dates, addresses, ids."""
    value = fitting(
        {"properties": {f: {"type": "string", "format": f} for f in ("date", "email", "uuid")}},
        Random(0), "p",
    )  # fmt: skip
    assert len(value["date"]) == 10
    assert "@" in value["email"]
    assert len(value["uuid"]) == 36


IMPOSSIBLE: list[Any] = [
    {"type": "integer", "minimum": 2, "maximum": 1},
    {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
    {"type": "array", "minItems": 10**6},
    {"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2},
    {"type": "string", "minLength": 10**6},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "zebra"},
    {"$ref": "#/$defs/nowhere"},
    {"$ref": "#"},
    {"$ref": "http://example.com/x"},
    {"anyOf": [{"type": "zebra"}]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    7,
]


@pytest.mark.parametrize("schema", IMPOSSIBLE)
def test_what_cannot_be_met_is_refused_by_name(schema: Any) -> None:
    """Quickly, and saying where."""
    with pytest.raises(InvalidRequest) as refused:
        fitting(schema, Random(0), "tools[3]")
    assert refused.value.param == "tools[3]"
