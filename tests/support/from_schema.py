"""Hypothesis strategies from the JSON Schemas of the API: values that fit, and any value at all."""

from __future__ import annotations

import math
import re
from typing import Any

from hypothesis import strategies as st

from tests.support.api import follow

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=4),
    max_leaves=12,
)  # fmt: skip
"""Any JSON value, kept small."""


def fitting(doc: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a schema of the document allows."""
    shape = follow(doc, schema)
    for key in ("enum", "const"):
        if key in shape:
            return st.sampled_from(shape[key] if key == "enum" else [shape[key]])
    if "anyOf" in shape:
        return st.one_of([fitting(doc, part, depth + 1) for part in shape["anyOf"]])
    kind = shape.get("type")
    if kind == "string" and "pattern" in shape:
        pattern, longest = shape["pattern"], shape.get("maxLength", 1000)
        found = st.from_regex(pattern, alphabet=st.characters(codec="ascii"))
        return found.filter(
            lambda v: re.search(pattern, v) and shape.get("minLength", 0) <= len(v) <= longest
        )
    if kind == "string":
        return st.text(min_size=shape.get("minLength", 0), max_size=min(
            shape.get("maxLength", 40), shape.get("minLength", 0) + 40))  # fmt: skip
    if kind == "integer":
        return st.integers(shape.get("minimum", -(2**63)), shape.get("maximum", 2**63 - 1))
    if kind == "number":
        return st.floats(
            shape.get("minimum", -1e300), shape.get("maximum", 1e300), allow_nan=False
        ).filter(math.isfinite)
    if kind == "array":
        least = shape.get("minItems", 0)
        inner = fitting(doc, shape.get("items", {}), depth + 1)
        return st.lists(inner, min_size=least, max_size=least + 3)
    if kind == "object":
        return _object(doc, shape, depth)
    simple = {"boolean": st.booleans(), "null": st.none()}
    return simple.get(str(kind), ANY)


def _object(doc: dict[str, Any], shape: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    properties = shape.get("properties", {})
    needed = set(shape.get("required", []))
    fields = {name: fitting(doc, inner, depth + 1) for name, inner in properties.items()}
    known = st.fixed_dictionaries(
        {name: fields[name] for name in fields if name in needed},
        optional={name: fields[name] for name in fields if name not in needed},
    )
    if shape.get("additionalProperties") is False:
        return known
    names = st.text(
        min_size=shape.get("propertyNames", {}).get("minLength", 0), max_size=12
    ).filter(lambda name: name not in properties)
    inner = shape.get("additionalProperties", {})
    more = ANY if inner in ({}, True) else fitting(doc, inner, depth + 1)
    extra = st.dictionaries(names, more, max_size=min(2, shape.get("maxProperties", 2)))
    return st.builds(lambda a, b: {**b, **a}, known, extra)


def spoiled(value: Any, draw: st.DrawFn) -> Any:
    """The value with one thing in it replaced by anything."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: spoiled(value[name], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], spoiled(value[at], draw), *value[at + 1 :]]
    return draw(ANY)
