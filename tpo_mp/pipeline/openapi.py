"""The API's own description: an OpenAPI 3.1 document made from the route table.

Paths, methods, bodies, parameters and answers come from the endpoints, and bodies' shapes from the
structs that check them, so the document cannot say anything the program does not do.

Source: OpenAPI Specification 3.1; JSON Schema 2020-12.

Invariants: pure; the same table gives the same document; every ``$ref`` resolves.
Known weakness: rules between fields (native ``prompt`` or ``input``) are not in a schema.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from tpo_mp import __version__
from tpo_mp.dialects import shapes
from tpo_mp.dialects.body import ROUTING_FIELDS, RoutedHead
from tpo_mp.http.endpoints import EVENTS, Endpoint, Family, Outcome, Shape
from tpo_mp.http.exchange import REASON

from .curl import curl_line
from .openapi_parts import (
    ANSWER_HEADERS,
    CALL_HEADERS,
    ERROR_HEADERS,
    FAMILIES,
    HEADERS,
    INTRO,
    PARAMETERS,
    SECURITY,
    TITLES,
)

Json: TypeAlias = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_ERRORS: Final[dict[Family, type]] = {
    "openai": shapes.OpenAIErrorBody,
    "anthropic": shapes.AnthropicErrorBody,
    "google": shapes.GoogleErrorBody,
    "native": shapes.NativeErrorBody,
    "ops": shapes.OpenAIErrorBody,
}
_EVERY: Final = (400, 413, 421, 500, 503)
_WITH_BODY: Final = (408, 415)
_OF_A_CALL: Final = (404, 409, 422, 429, 502, 504)
_FRAMING: Final = (414, 431)
"""Answered before a request has a route, so in one envelope for all families."""
_NAMES: Final = re.compile(r"\{(\w+)\}")


def document(endpoints: Iterable[Endpoint]) -> Json:
    """Describe a route table."""
    found = sorted(endpoints, key=lambda e: (e.template, e.method))
    defs = _Definitions(found)
    paths: Json = {}
    for endpoint in found:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(
            endpoint, defs
        )
    used = {tag for e in found for tag in e.tags}
    tags = [t for t in FAMILIES if t in used] + sorted(used - set(FAMILIES))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tpo-mp",
            "version": __version__,
            "summary": "LLM gateway: OpenAI, Anthropic and native APIs on one port.",
            "description": INTRO,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The gateway that serves this document."}],
        "tags": [
            {"name": t, "description": FAMILIES.get(t, ""), "x-displayName": TITLES.get(t, t)}
            for t in tags
        ],
        "paths": paths,
        "components": {
            "schemas": defs.schemas,
            "responses": {
                name: _refusal(family, status, defs) for name, family, status in _refusals(found)
            },
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": SECURITY,
        },
    }


class _Definitions:
    """Every shape of a table as JSON Schema; a shape that is a schema already stays as it is."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        families: dict[Family, None] = dict.fromkeys(["openai", *(e.family for e in endpoints)])
        kinds: list[Any] = [_ERRORS[family] for family in families]
        for e in endpoints:
            given = [e.request, *(o.shape for o in e.outcomes), *(p.shape for p in e.parameters)]
            kinds += [s for s in given if s is not None and not isinstance(s, dict)]
        kinds = list(dict.fromkeys(kinds))
        described, components = msgspec.json.schema_components(kinds, ref_template=_REF)
        names = _short_names(components)
        self._of = {k: _renamed(d, names) for k, d in zip(kinds, described, strict=True)}
        self.schemas: Json = {names[n]: _renamed(c, names) for n, c in components.items()}
        self.schemas = dict(sorted(self.schemas.items()))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, RoutedHead):
                self._hide_routing(kind)
        for schema in self.schemas.values():
            schema.pop("title", None)
            if "description" in schema:
                schema["description"] = inspect.cleandoc(schema["description"]).replace("``", "`")

    def of(self, shape: Shape) -> Json:
        """The schema of a shape."""
        found: Json = shape if isinstance(shape, dict) else self._of[shape]
        return found

    def _hide_routing(self, kind: type) -> None:
        """Fields that are stripped are not offered; fields that pass are said to."""
        schema = self.schemas[self._of[kind]["$ref"].rpartition("/")[2]]
        for field in ROUTING_FIELDS:
            schema["properties"].pop(field, None)
        schema["description"] += "\n\nOther fields pass untouched to a backend of the same dialect."


def _short_names(components: Json) -> dict[str, str]:
    """Component names without module paths, where that leaves them unique."""
    names: dict[str, str] = {}
    for name in sorted(components):
        module, _, bare = name.rpartition(".")
        short = bare.lstrip("_")
        if short in names.values():
            short = f"{module.rpartition('.')[2]}.{short}".lstrip(".")
        assert short not in names.values(), name
        names[name] = short
    return names


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        out = {key: _renamed(inner, names) for key, inner in value.items()}
        if isinstance(out.get("$ref"), str):
            name = out["$ref"].removeprefix(_REF.format(name=""))
            out["$ref"] = _REF.format(name=names[name])
        return out
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return value


# -- operations -------------------------------------------------------------------------------


def _operation(endpoint: Endpoint, defs: _Definitions) -> Json:
    name = re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.template}").strip("_")
    out: Json = {
        "operationId": name,
        "tags": list(endpoint.tags),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint, defs),
        "responses": _responses(endpoint, defs),
        "x-codeSamples": [{"lang": "Shell", "source": curl_line(endpoint)}],
    }
    if endpoint.alias_of:
        out["description"] = f"Another path of `{endpoint.alias_of}`."
        out["x-alias-of"] = endpoint.alias_of
    if endpoint.access != "open":
        out["security"] = [{}, *({name: []} for name in SECURITY)]
        out["x-access"] = endpoint.access
    if endpoint.request is not None:
        content: Json = {"schema": defs.of(endpoint.request)}
        if endpoint.example is not None:
            content["example"] = endpoint.example
        out["requestBody"] = {"required": True, "content": {"application/json": content}}
    return out


def _parameters(endpoint: Endpoint, defs: _Definitions) -> list[Json]:
    out: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _NAMES.findall(endpoint.template)
    ]
    out += [
        {"name": p.name, "in": p.place, "description": p.meaning, "schema": defs.of(p.shape)}
        for p in endpoint.parameters
    ]
    common = ["x-request-id", "x-session-id"]
    if endpoint.infers:
        common += [name for name in PARAMETERS if name not in common]
    return out + [{"$ref": f"#/components/parameters/{name}"} for name in common]


def _responses(endpoint: Endpoint, defs: _Definitions) -> Json:
    out: Json = {}
    for outcome in endpoint.outcomes:
        answer = out.setdefault(str(outcome.status), {"description": ""})
        _add_outcome(answer, outcome, endpoint, defs)
    for status in _error_statuses(endpoint):
        ref = {"$ref": f"#/components/responses/{_refusal_name(endpoint.family, status)}"}
        if str(status) not in out:
            out[str(status)] = ref
    if endpoint.infers:
        out["4XX"] = {"$ref": f"#/components/responses/{endpoint.family}_upstream"}
    return out


def _add_outcome(answer: Json, outcome: Outcome, endpoint: Endpoint, defs: _Definitions) -> None:
    said = answer["description"]
    answer["description"] = f"{said}; {outcome.meaning}" if said else outcome.meaning
    if outcome.status == 503:
        # Health reports and refusals share the status, and so the schema is either.
        either = [defs.of(outcome.shape), defs.of(_ERRORS[endpoint.family])]
        schema: Json = {"anyOf": either}
    else:
        schema = {"type": "string"} if outcome.shape is None else defs.of(outcome.shape)
    if outcome.status not in (101, 204, 304):
        # Readers disagree whether a schema here is of the whole stream or of one event.
        media = {} if outcome.media == EVENTS else {"schema": schema}
        answer.setdefault("content", {})[outcome.media] = media
    if endpoint.family != "ops":
        answer["headers"] = _header_refs(CALL_HEADERS if endpoint.infers else ANSWER_HEADERS)


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# -- refusals ---------------------------------------------------------------------------------


def _error_statuses(endpoint: Endpoint) -> list[int]:
    """Every status a refusal of this endpoint may have."""
    found = {*_EVERY, *_FRAMING, *endpoint.errors}
    if endpoint.access != "open":
        found |= {401}
    if endpoint.access == "admin":
        found |= {403}
    if endpoint.method in ("POST", "PUT", "PATCH") and endpoint.takes_json:
        found |= {*_WITH_BODY}
        if endpoint.family == "native":
            found |= {422}
    if endpoint.infers:
        found |= {*_OF_A_CALL}
    if "{" in endpoint.template:
        found |= {404}
    if endpoint.family == "anthropic":
        found = {529 if status == 503 else status for status in found}
    return sorted(found)


def _refusal_name(family: Family, status: int) -> str:
    return f"framing_{status}" if status in _FRAMING else f"{family}_{status}"


def _refusals(endpoints: Sequence[Endpoint]) -> list[tuple[str, Family, int]]:
    found: dict[str, tuple[Family, int]] = {}
    for e in endpoints:
        for status in _error_statuses(e):
            found.setdefault(_refusal_name(e.family, status), (e.family, status))
        if e.infers:
            found.setdefault(f"{e.family}_upstream", (e.family, 0))
    return [(name, *found[name]) for name in sorted(found)]


def _refusal(family: Family, status: int, defs: _Definitions) -> Json:
    said = "The upstream's own refusal." if not status else f"{REASON[status].decode()}."
    kind = shapes.OpenAIErrorBody if status in _FRAMING else _ERRORS[family]
    schema = defs.of(kind)
    if not status:
        # A backend of the same dialect is quoted as it answered.
        schema = {"anyOf": [schema, {"type": "object"}]}
    names = (*ERROR_HEADERS, "request-id") if family == "anthropic" else ERROR_HEADERS
    return {
        "description": said,
        "headers": _header_refs(names if status not in _FRAMING else ERROR_HEADERS[:1]),
        "content": {"application/json": {"schema": schema}},
    }
