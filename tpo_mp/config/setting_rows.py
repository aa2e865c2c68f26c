"""Every option of a table in the config, one row each: for the settings page and sample files.

Invariants: a row says only what the JSON Schema says; a table that is met again is told once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from .schema import LATER, SECRET, Schema

_BOUNDS: Final = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters",
    "minItems": "≥ {} entries",
    "maxItems": "≤ {} entries",
    "pattern": "`{}`",
}


class SettingRow(NamedTuple):
    """One option: its dotted path, and the rest as a reader sees it.

    ``default`` is JSON, empty where there is none, or ``required``.
    """

    path: str
    type: str
    default: str
    bounds: str
    meaning: str


class SettingRows:
    """Reads tables of one schema, whose references it resolves."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._at: dict[str, str] = {}

    def shape(self, shape: Schema) -> Schema:
        """Follow a reference; what stands beside it wins."""
        while "$ref" in shape:
            name = shape["$ref"].rpartition("/")[2]
            beside = {key: value for key, value in shape.items() if key != "$ref"}
            shape = self._schema["$defs"][name] | beside
        return shape

    def rows(self, shape: Schema) -> list[SettingRow]:
        """Every option of a table, those of tables inside it at their dotted paths."""
        self._at = {}
        return list(self._rows(self.shape(shape), ""))

    def _rows(self, shape: Schema, prefix: str) -> Iterator[SettingRow]:
        required = shape.get("required", [])
        for key, field in shape["properties"].items():
            if field == LATER:
                continue
            part, dots = self._inside(field)
            field, inner = self.shape(field), self.shape(part)
            if "properties" in inner:
                name = part.get("$ref", "")
                if name in self._at:
                    meaning = f"As `{self._at[name]}`."
                    yield SettingRow(f"{prefix}{key}{dots}", "table", "", "", meaning)
                    continue
                if name:
                    self._at[name] = f"{prefix}{key}{dots}"
                yield from self._rows(inner, f"{prefix}{key}{dots}.")
                continue
            default = field.get("default")
            shown = "" if default is None else json.dumps(default)
            yield SettingRow(
                f"{prefix}{key}",
                self._type(field),
                "required" if key in required else shown,
                ", ".join(self._bounds(field)),
                field.get("description", ""),
            )

    def _inside(self, field: Schema) -> tuple[Schema, str]:
        """What a list or a table of tables holds, or the field itself, and how its path goes on."""
        whole = self.shape(field)
        if whole.get("type") == "array":
            return whole.get("items") or {}, "[]"
        tables = [part for part in whole.get("anyOf", ()) if "$ref" in part]
        if len(tables) == 1:
            return tables[0], ""
        more = whole.get("additionalProperties")
        if isinstance(more, dict) and "properties" not in whole:
            return more, ".NAME"
        return field, ""

    def _type(self, field: Schema) -> str:
        field = self.shape(field)
        if field.get("anyOf") == SECRET["anyOf"]:
            return "secret"
        if "discriminator" in field:
            return f"table by `{field['discriminator']['propertyName']}`"
        if "anyOf" in field:
            names = (self._type(part) for part in field["anyOf"])
            return " or ".join(dict.fromkeys(name for name in names if name != "null"))
        if "enum" in field:
            return ", ".join(f"`{choice}`" for choice in field["enum"])
        if field.get("type") == "array" and "prefixItems" in field:
            return f"{len(field['prefixItems'])} {self._type(field['prefixItems'][0])}s"
        if field.get("type") == "array" and "prefixItems" in (field.get("items") or {}):
            return "list of pairs"
        if field.get("type") == "array":
            return f"list of {self._type(field.get('items') or {})}s"
        if "properties" in field:
            return "table"
        if field.get("type") == "object":
            return f"table of {self._type(field.get('additionalProperties', {}))}s"
        return str(field.get("type", "any"))

    def _bounds(self, field: Schema) -> Iterator[str]:
        for part in [field, *field.get("anyOf", [])]:
            if "properties" not in part and self._type(field) != "secret":
                yield from (text.format(part[key]) for key, text in _BOUNDS.items() if key in part)
