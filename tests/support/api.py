"""The description of the API in tests: the document, its references, its schemas as a validator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from tests.support.json_schema import Validator
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.pipeline.openapi import document
from tpo_mp.worker.docs import table

METHODS = {"get", "post", "put", "patch", "delete"}


@cache
def endpoints() -> tuple[Endpoint, ...]:
    """Every route of a shard."""
    return tuple(table().all)


@cache
def described() -> dict[str, Any]:
    """The document of those routes."""
    return document(endpoints())


def operations(doc: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation."""
    for path, methods in doc["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def follow(doc: dict[str, Any], value: Any) -> Any:
    """Resolve a reference; a broken one is a ``KeyError``."""
    while isinstance(value, dict) and "$ref" in value:
        found: Any = doc
        for key in value["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        value = found
    return value


def references(value: Any) -> Iterator[str]:
    """Yield every ``$ref`` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def validator(doc: dict[str, Any], schema: dict[str, Any]) -> Validator:
    """Check values against one schema of the document."""
    return Validator(schema | {"$defs": doc["components"]["schemas"]})
