"""A validator of the part of JSON Schema that our schema uses; another keyword is a failure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
NOTES = {"title", "description", "default", "$defs", "$schema"}
LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "minProperties": lambda value, limit: len(value) >= limit,
    "maxProperties": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, limit: re.search(limit, value) is not None,
    "enum": lambda value, limit: value in limit,
    "const": lambda value, limit: value == limit,
}
OBJECT = {
    "properties", "patternProperties", "additionalProperties", "required", "propertyNames"
}  # fmt: skip
KNOWN = {*NOTES, *LIMITS, *OBJECT, "$ref", "type", "items", "anyOf"}


class Validator:
    """Checks values against one schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def errors(self, value: Any) -> list[str]:
        """Answer what is wrong with a value, as paths."""
        return list(self._walk(self.schema, value, "$"))

    def _walk(self, shape: dict[str, Any], value: Any, path: str) -> Iterator[str]:
        assert set(shape) <= KNOWN, set(shape) - KNOWN
        if "$ref" in shape:
            yield from self._walk(self.schema["$defs"][shape["$ref"].split("/")[-1]], value, path)
        if "anyOf" in shape:
            found = [list(self._walk(part, value, path)) for part in shape["anyOf"]]
            if all(found):
                yield min(found, key=len)[0]
        kinds = TYPES.get(shape.get("type", ""))
        if kinds and (not isinstance(value, kinds) or (value is True and bool not in kinds)):
            yield f"{path}: not {shape['type']}"
            return
        yield from (f"{path}: {k}" for k in LIMITS if k in shape and not LIMITS[k](value, shape[k]))
        if isinstance(value, dict):
            yield from self._object(shape, value, path)
        if isinstance(value, list) and "items" in shape:
            for index, item in enumerate(value):
                yield from self._walk(shape["items"], item, f"{path}[{index}]")

    def _object(self, shape: dict[str, Any], value: Any, path: str) -> Iterator[str]:
        yield from (f"{path}.{k}: missing" for k in shape.get("required", []) if k not in value)
        for key in value:
            yield from self._walk(shape.get("propertyNames", {}), key, f"{path}.{key}")
        for key, item in value.items():
            known = shape.get("properties", {}).get(key)
            if known is None and any(re.search(p, key) for p in shape.get("patternProperties", {})):
                continue
            inner = known if known is not None else shape.get("additionalProperties", {})
            if inner is False:
                yield f"{path}.{key}: unknown"
            elif isinstance(inner, dict):
                yield from self._walk(inner, item, f"{path}.{key}")
