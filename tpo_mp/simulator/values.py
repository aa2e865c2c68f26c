"""Values that fit a JSON Schema: tool arguments and structured output.

Understood: type, enum, const, properties, required, items, prefixItems, minItems, maxItems,
uniqueItems, minLength, maxLength, pattern (see ``patterns``), format, bounds, multipleOf, anyOf,
oneOf, allOf and ``$ref`` inside the schema, recursion included; the first branch that ends is
taken.

Invariants: a value never has more than ``MAX_NODES`` parts, whatever the schema asks for; what
cannot be met is ``InvalidRequest``.
Known weakness: ``not``, ``if`` and ``dependentSchemas`` are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, TypeGuard
from uuid import UUID

from tpo_mp.errors import InvalidRequest

from .patterns import string_like

MAX_NODES: Final = 2_000
MAX_TEXT: Final = 4_096
_DEEP: Final = 4
"""From here on only what must be there is made."""
_DEEPEST: Final = 32
_EXTRA_ITEMS: Final = 2
_WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island",
                 "juniper", "lagoon", "meadow", "north", "orchard", "prairie", "quartz", "river",
                 "summit", "tundra", "valley")  # fmt: skip

Schema = Mapping[str, Any]


def fitting(schema: Any, random: Random, param: str) -> Any:
    """A value that fits ``schema``; raises ``InvalidRequest`` naming ``param``."""
    return _Maker(schema, random, param).make(schema, "value", 0)


class _Maker:
    """Makes one value; counts its parts."""

    def __init__(self, root: Any, random: Random, param: str) -> None:
        self._root = root
        self._random = random
        self._param = param
        self._nodes = 0

    def make(self, schema: Any, name: str, depth: int) -> Any:
        """A value of one sub-schema; ``name`` is the property it is for."""
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > _DEEPEST:
            raise self._refused("asks for too much")
        if schema is True or schema is None:
            return self._word()
        if not isinstance(schema, Mapping):
            raise self._refused("is no schema")
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._random.choice(schema["enum"])
        branches = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(branches, list) and branches:
            rest = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}
            return self._branch(branches, rest, name, depth)
        return self._typed(schema, name, depth)

    def _refused(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"{self._param}: the JSON schema {why}", param=self._param)

    def _resolved(self, schema: Schema) -> Schema:
        """Without ``$ref`` and ``allOf``."""
        for _ in range(_DEEPEST):
            if isinstance(schema.get("$ref"), str):
                beside = {key: value for key, value in schema.items() if key != "$ref"}
                schema = _merged([self._pointed(schema["$ref"]), beside])
            elif isinstance(schema.get("allOf"), list):
                beside = {key: value for key, value in schema.items() if key != "allOf"}
                parts = [part for part in schema["allOf"] if isinstance(part, Mapping)]
                schema = _merged([*parts, beside])
            else:
                return schema
        raise self._refused("has references that go in circles")

    def _pointed(self, ref: str) -> Schema:
        found = self._root
        if not ref.startswith("#"):
            raise self._refused(f"refers to {ref[:64]!r}, which is not inside it")
        for key in ref[1:].split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise self._refused(f"refers to {ref[:64]!r}, which is not there")
        if not isinstance(found, Mapping):
            raise self._refused(f"refers to {ref[:64]!r}, which is no schema")
        return found

    def _branch(self, branches: list[Any], rest: Schema, name: str, depth: int) -> Any:
        """The first branch that can be made; deep down, plain values before objects."""
        order = list(branches)
        if depth >= _DEEP:
            order.sort(key=self._weight)
        refusal = self._refused("has no branch that can be met")
        for branch in order:
            try:
                merged = _merged([rest, branch]) if isinstance(branch, Mapping) else branch
                return self.make(merged, name, depth + 1)
            except InvalidRequest as e:
                refusal = e
                if self._nodes > MAX_NODES:
                    break
        raise refusal

    def _weight(self, branch: Any) -> int:
        if not isinstance(branch, Mapping) or "$ref" in branch:
            return 2
        return 1 if _kind(branch) in ("object", "array") else 0

    def _typed(self, schema: Schema, name: str, depth: int) -> Any:
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        if kind == "boolean":
            return self._random.random() < 0.5
        if kind == "null":
            return None
        if kind == "string":
            return self._string(schema)
        raise self._refused(f"has the unknown type {str(kind)[:32]!r}")

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        known: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        needed = [n for n in required if isinstance(n, str)] if isinstance(required, list) else []
        wanted = list(known) if depth < _DEEP else [n for n in known if n in needed]
        wanted += [name for name in needed if name not in known]
        other = schema.get("additionalProperties")
        return {
            name: self.make(known.get(name, other if other is not False else True), name, depth + 1)
            for name in wanted
        }

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        first = schema.get("prefixItems")
        heads: Sequence[Any] = first if isinstance(first, list) else ()
        least = _limit(schema, "minItems", 0)
        most = _limit(schema, "maxItems", max(least, 1) + _EXTRA_ITEMS)
        if least > most or least > MAX_NODES:
            raise self._refused("asks for an array that cannot be")
        bare = depth >= _DEEP
        count = least if bare else self._random.randint(max(least, min(1, most)), most)
        count = min(max(count, min(len(heads), most)), least + len(heads) + 1 + _EXTRA_ITEMS)
        items = schema.get("items", True)
        if items is False:
            count = min(count, len(heads))
        made = [self.make(head, name, depth + 1) for head in heads[:count]]
        unique = schema.get("uniqueItems") is True
        tries = 8 * count
        while len(made) < count and tries:
            tries -= 1
            item = self.make(items, name, depth + 1)
            if not unique or item not in made:
                made.append(item)
        if len(made) < least:
            raise self._refused("asks for more different items than there are")
        return made

    def _number(self, schema: Schema, whole: bool) -> float:
        least, above = _bound(schema, "minimum", "exclusiveMinimum", max)
        most, below = _bound(schema, "maximum", "exclusiveMaximum", min)
        low, high = _span(least, most)
        step = schema.get("multipleOf")
        grain = float(step) if _is_number(step) and step > 0 else (1.0 if whole else 0.01)
        if whole and grain != int(grain):
            grain = 1.0 if 1.0 % grain == 0 else grain * 100
        first = math.ceil(low / grain - 1e-9)
        last = math.floor(high / grain + 1e-9)
        if above and first * grain <= low:
            first += 1
        if below and last * grain >= high:
            last -= 1
        if first <= last:
            value = self._random.randint(first, min(last, first + 1000)) * grain
            return int(value) if whole else round(value, 10)
        if whole or _is_number(step) or low > high:
            raise self._refused("asks for a number that cannot be")
        return (low + high) / 2

    def _string(self, schema: Schema) -> str:
        form = schema.get("format")
        made = _FORMATS.get(form) if isinstance(form, str) else None
        if made is not None:
            return made(self._random)
        least = _limit(schema, "minLength", 0)
        most = _limit(schema, "maxLength", max(least, MAX_TEXT))
        if least > most or least > MAX_TEXT:
            raise self._refused("asks for a text that cannot be")
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            return self._patterned(pattern, least, most)
        text = self._word()
        while len(text) < least:
            text += " " + self._word()
        return text[: max(most, 0)]

    def _patterned(self, pattern: str, least: int, most: int) -> str:
        for _ in range(16):
            text = string_like(pattern, self._random)
            if text is None:
                break
            if least <= len(text) <= most:
                return text
        raise self._refused(f"has the pattern {pattern[:64]!r}, which the simulator cannot fill")

    def _word(self) -> str:
        return self._random.choice(_WORDS)


def _kind(schema: Schema) -> Any:
    """The type; a list's first that is not null; told by the keywords when absent."""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), kind[0] if kind else None)
    if kind is not None:
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    numeric = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    return "number" if any(key in schema for key in numeric) else "string"


def _merged(parts: Sequence[Schema]) -> Schema:
    """Several schemas as one: properties and required add up, the later wins elsewhere."""
    out: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties" and isinstance(value, Mapping):
                out[key] = {**out.get(key, {}), **value}
            elif key == "required" and isinstance(value, list):
                out[key] = list(dict.fromkeys([*out.get(key, []), *value]))
            else:
                out[key] = value
    return out


def _limit(schema: Schema, key: str, default: int) -> int:
    value = schema.get(key)
    if _is_number(value) and 0 <= value <= 1e9:
        return int(value)
    return default


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _bound(
    schema: Schema, key: str, exclusive: str, tighter: Callable[[float, float], float]
) -> tuple[float | None, bool]:
    """The tighter of two bounds, and whether it is itself excluded (draft 4 says ``true``)."""
    given, other = schema.get(key), schema.get(exclusive)
    bound = float(given) if _is_number(given) else None
    if other is True:
        return bound, True
    if not _is_number(other):
        return bound, False
    if bound is None or tighter(float(other), bound) == float(other):
        return float(other), True
    return bound, False


def _span(low: float | None, high: float | None) -> tuple[float, float]:
    """Both ends; an open end is a hundred away from the other."""
    if low is None and high is None:
        return 0.0, 100.0
    if low is None:
        assert high is not None
        return high - 100.0, high
    return low, low + 100.0 if high is None else high


def _date(random: Random) -> str:
    return f"20{random.randint(10, 35)}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}"


def _time(random: Random) -> str:
    return f"{random.randint(0, 23):02d}:{random.randint(0, 59):02d}:{random.randint(0, 59):02d}Z"


_FORMATS: Final[dict[str, Callable[[Random], str]]] = {
    "date": _date,
    "time": _time,
    "date-time": lambda random: f"{_date(random)}T{_time(random)}",
    "duration": lambda random: f"PT{random.randint(1, 59)}M",
    "email": lambda random: f"{random.choice(_WORDS)}@example.com",
    "hostname": lambda random: f"{random.choice(_WORDS)}.example.com",
    "uri": lambda random: f"https://example.com/{random.choice(_WORDS)}",
    "uuid": lambda random: str(UUID(int=random.getrandbits(128), version=4)),
    "ipv4": lambda random: f"192.0.2.{random.randint(1, 254)}",
    "ipv6": lambda random: f"2001:db8::{random.randint(1, 0xFFFF):x}",
}
