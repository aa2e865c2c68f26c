"""Bad requests for any route of the table, and what every refusal must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.api import described, endpoints, follow, validator
from tests.support.raw import RawClient, RawReply, build
from tpo_mp.http.endpoints import Endpoint

DOC = described()
ENVELOPES = {
    "openai": "OpenAIErrorBody",
    "ops": "OpenAIErrorBody",
    "anthropic": "AnthropicErrorBody",
    "native": "NativeErrorBody",
}
FRAMING = ("bad_request",)
BODIES = [e for e in endpoints() if e.request is not None]
PLAIN = [e for e in endpoints() if e.request is None]


def name(endpoint: Endpoint) -> str:
    """Method and path."""
    return f"{endpoint.method} {endpoint.template}"


def path_of(endpoint: Endpoint, given: str = "no-such-id") -> str:
    """A path of the endpoint; models exist, ids do not."""
    path = endpoint.template.replace("{model}", "echo")
    while "{" in path:
        head, _, rest = path.partition("{")
        path = head + given + rest.partition("}")[2]
    return path


def sample(endpoint: Endpoint) -> dict[str, Any]:
    """A body the endpoint takes."""
    body: dict[str, Any] = endpoint.example | ({"model": "echo"} if endpoint.infers else {})
    return body


def request(
    endpoint: Endpoint,
    body: bytes | None,
    headers: dict[str, str] | None = None,
    *,
    path: str | None = None,
    lane: str = "fast",
) -> bytes:
    """A whole request, framed by length or in one chunk."""
    lines = {"Host": "localhost"} | (headers or {})
    if body is not None and "Content-Type" not in lines:
        lines["Content-Type"] = "application/json"
    if lane == "full" and body is not None:
        lines["Transfer-Encoding"] = "chunked"
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    lines = {k: v for k, v in lines.items() if v is not None}
    return build(endpoint.method, path or path_of(endpoint), lines, body)


def ask(client: RawClient, raw: bytes, method: str = "POST") -> RawReply:
    """Send, read, and see that the connection lives on or closes as the answer says."""
    client.send(raw)
    reply = client.read_reply(method)
    if "close" in reply.headers.get("connection", ""):
        assert client.closed(), reply.head
    else:
        alive = client.request("GET", "/live", {"Host": "localhost"})
        assert alive.status == 200, (reply.head, alive)
    return reply


def refused(endpoint: Endpoint, reply: RawReply, *statuses: int) -> dict[str, Any]:
    """Check a refusal: its status, and the envelope of the route's family; answers the error."""
    assert reply.status in (statuses or (400, 422)), (name(endpoint), reply)
    assert reply.headers["content-type"].startswith("application/json")
    body: dict[str, Any] = reply.json()
    shape = ENVELOPES[endpoint.family]
    if body.get("error", {}).get("code") in FRAMING:
        shape = "OpenAIErrorBody"
        assert reply.headers["connection"] == "close"
    wrong = validator(DOC, {"$ref": f"#/components/schemas/{shape}"}).errors(body)
    assert not wrong, (name(endpoint), wrong, body)
    assert reply.headers["x-request-id"]
    assert "Traceback" not in body["error"]["message"]
    assert len(reply.body) < 4096
    error: dict[str, Any] = body["error"]
    return error


def names_field(endpoint: Endpoint, error: dict[str, Any], field: str) -> bool:
    """Whether an error says which field is at fault."""
    if endpoint.family == "anthropic":
        return field in error["message"]
    return str(error["param"]).startswith(field)


PROBES: list[Any] = [
    7, -1, 0, 1.5, 10**9, 10**30, True, "x", "", "yes", [], [7], ["x"] * 1000, [{}], [[]], {},
    {"x": 1}, {"role": 7}, [{"role": "user", "content": 7}], [{"content": "no role"}], "m" * 3000,
    None, [None], 2**63, -(2**63) - 1,
]  # fmt: skip


def properties(endpoint: Endpoint) -> dict[str, Any]:
    """The fields of the endpoint's body by its schema."""
    operation = DOC["paths"][endpoint.template][endpoint.method.lower()]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = follow(DOC, schema)["properties"]
    return found


def wrong_values(endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    """Every probe that breaks the schema of its field."""
    for field, schema in properties(endpoint).items():
        fits = validator(DOC, schema)
        for value in PROBES:
            if fits.errors(value):
                yield field, value


def right_values(endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    """Every probe that its field's schema allows."""
    for field, schema in properties(endpoint).items():
        fits = validator(DOC, schema)
        for value in PROBES:
            if not fits.errors(value):
                yield field, value


def encoded(value: Any) -> bytes:
    """JSON, with Python's big integers as they are."""
    return json.dumps(value).encode()
