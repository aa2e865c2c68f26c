"""JSON Schema of the canonical config, for editors: sections and every feature that is built.

Invariants: each bound and sentence comes from the struct that enforces it; what loads only with a
warning is allowed without a shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from tpo_mp import registry
from tpo_mp.errors import ConfigError
from tpo_mp.ports import Door

from . import catalog, providers, simulating
from .engines import EngineSection
from .features import RouteTable
from .load import SECTIONS
from .values import Secret

Schema: TypeAlias = dict[str, Any]

_REF: Final = "#/$defs/{name}"
NOT_BUILT: Final = "not built yet"
LATER: Final[Schema] = {"description": "Not built yet: loads with a warning."}
SECRET: Final[Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {
                "env": {"type": "string", "description": "Environment variable that holds it."},
                "file": {"type": "string", "description": "File that holds it."},
                "client": {"const": True, "description": "Forward the caller's own."},
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
    ]
}


def build(warn: Callable[[str], object] = lambda _said: None) -> Schema:
    """Answer the schema; imports every built feature.

    One from outside that cannot be loaded is left out, and ``warn`` told why.
    """
    found = {door: dict(_options(door, warn)) for door in _DOORS}
    kinds = [
        *SECTIONS.values(),
        EngineSection,
        RouteTable,
        *(k for of in found.values() for k in of.values()),
    ]
    shapes, defs = msgspec.json.schema_components(kinds, schema_hook=_hook, ref_template=_REF)
    by_kind = dict(zip(kinds, shapes, strict=True))

    def shape(kind: type[Struct]) -> Schema:
        name = by_kind[kind]["$ref"].rpartition("/")[2]
        return copy.deepcopy(defs[name])

    properties: Schema = {name: by_kind[kind] for name, kind in SECTIONS.items()}
    properties["stages"] = _stages({n: shape(k) for n, k in found["stages"].items()})
    properties["surfaces"] = _surfaces({n: shape(k) for n, k in found["surfaces"].items()})
    properties["backends"] = _backends({n: shape(k) for n, k in found["backends"].items()})
    properties["engines"] = {"type": "array", "items": by_kind[EngineSection]}
    properties["routes"] = _routes(
        shape(RouteTable), {n: shape(k) for n, k in found["routes"].items()}
    )
    simulator = found["backends"].get(simulating.KIND)
    properties[simulating.KIND] = {"type": "object", "properties": {}} | (
        LATER if simulator is None else _simulator(shape(simulator))
    )
    for path in catalog.UNBUILT:
        section, _, key = path.partition(".")
        if not key:
            properties.setdefault(section, LATER)
        elif section == simulating.KIND:
            properties[section]["properties"][key] = LATER
        elif section in SECTIONS:
            name = properties[section]["$ref"].rpartition("/")[2]
            defs[name]["properties"][key] = LATER
        elif section == "stages":
            _later_option(properties[section], defs, key)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tpo-mp config",
        "type": "object",
        "properties": properties,
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        "$defs": defs,
    }
    plain: Schema = msgspec.to_builtins(schema, enc_hook=lambda value: value.shown())
    return plain


_DOORS: Final[tuple[Door, ...]] = ("stages", "surfaces", "backends", "routes")


def _options(door: Door, warn: Callable[[str], object]) -> Iterator[tuple[str, type[Struct]]]:
    for name in registry.names(door):
        try:
            yield name, registry.find(door, name).Config
        except ConfigError as error:
            warn(error.message)


def _hook(kind: type) -> Schema:
    assert kind is Secret, kind
    return SECRET


def _simulator(options: Schema) -> Schema:
    """The options of the backend without what only ``[[backends]]`` says."""
    known = options["properties"]
    own = {name: known[name] for name in known if name not in simulating.OF_A_BACKEND}
    return {
        "description": "Options of every backend of kind `simulator`, and of `tpo-mp simulate`.",
        "type": "object",
        "properties": own,
        "additionalProperties": False,
    }


def _stages(built: dict[str, Schema]) -> Schema:
    for shape in built.values():
        shape["properties"]["enabled"] = {"type": "boolean", "description": "Run this stage."}
    later = {name: {"type": "object", **LATER} for name in catalog.STAGES if name not in built}
    return {
        "description": "Options of stages, each named after its file.",
        "type": "object",
        "properties": built | later,
        "additionalProperties": False,
    }


def _later_option(stages: Schema, defs: Schema, path: str) -> None:
    """Allow an option to come of a stage, or of a table of one."""
    *tables, key = path.split(".")
    shape = stages
    for table in tables:
        shape = shape["properties"].get(table, {})
        refs = [part for part in (shape, *shape.get("anyOf", ())) if "$ref" in part]
        if refs:
            shape = defs[refs[0]["$ref"].rpartition("/")[2]]
        if "properties" not in shape:
            return  # a stage that is not built may say anything
    shape["properties"].setdefault(key, LATER)


def _surfaces(built: dict[str, Schema]) -> Schema:
    for shape in built.values():
        shape["properties"]["enabled"] = {"type": "boolean", "description": "Serve this surface."}
    return {
        "description": "Options of surfaces, each named after its file.",
        "type": "object",
        "properties": built,
        "additionalProperties": False,
    }


def _backends(built: dict[str, Schema]) -> Schema:
    for name, shape in built.items():
        shape["title"] = name
        kinds = [name]
        if name == "openai":
            kinds += sorted(providers.STAND_INS.difference(built))
        shape["properties"]["kind"]["enum"] = kinds
    return {"type": "array", "items": {"anyOf": list(built.values())}}


def _routes(plain: Schema, built: dict[str, Schema]) -> Schema:
    shapes = []
    for name, options in built.items():
        shape = copy.deepcopy(plain)
        shape["title"] = name
        shape["properties"] |= options["properties"]
        shape["properties"]["strategy"]["enum"] = [name]
        shape["required"] = list(options.get("required", []))
        if name != RouteTable.__struct_defaults__[1]:
            shape["required"].append("strategy")
        shapes.append(shape)
    later = [name for name in catalog.ROUTES if name not in built]
    if later:
        shapes.append(
            {
                "title": NOT_BUILT,
                "type": "object",
                "properties": {"strategy": {"enum": later}},
                "required": ["strategy"],
            }
        )
    return {"type": "array", "items": {"anyOf": shapes}}
