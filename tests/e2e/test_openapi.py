"""The served description, and answers of a running gateway held against it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.api import described, endpoints, follow, validator
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply
from tpo_mp.http.endpoints import Endpoint

DOC = described()


def documented(endpoint: Endpoint, reply: RawReply) -> None:
    """The status is told, the media type is told, the body fits its schema, its headers are there.

    Ranges do not count: what the gateway itself says has a line of its own.
    """
    operation = DOC["paths"][endpoint.template][endpoint.method.lower()]
    answer = follow(DOC, operation["responses"].get(str(reply.status)))
    assert answer, (endpoint.template, reply.status, reply.body[:300])
    for name, header in answer.get("headers", {}).items():
        assert name in reply.headers or not follow(DOC, header)["required"], (name, reply.headers)
    content = answer.get("content")
    if content is None:
        assert not reply.body
        return
    media = reply.headers["content-type"].partition(";")[0]
    assert media in content, (endpoint.template, media)
    if media == "application/json":
        wrong = validator(DOC, content[media]["schema"]).errors(json.loads(reply.body))
        assert not wrong, (endpoint.template, reply.status, wrong, reply.body[:500])


def send(
    gateway: Gateway, endpoint: Endpoint, body: Any, headers: dict[str, str] | None = None
) -> RawReply:
    """Ask an endpoint; ids in its path name nothing."""
    path = endpoint.template.replace("{model}", "echo").replace("{id}", "no-such-id")
    with RawClient(gateway.url) as client:
        if endpoint.request is None:
            return client.request(endpoint.method, path, headers)
        kind = {"Content-Type": "application/json"} | (headers or {})
        return client.request(endpoint.method, path, kind, json.dumps(body).encode())


def name(endpoint: Endpoint) -> str:
    """Method and path."""
    return f"{endpoint.method} {endpoint.template}"


def test_every_shard_serves_the_document_of_its_table(echo_gateway: Gateway) -> None:
    """What is generated here is what is served there, on both paths, by whichever shard."""
    for path in ("/openapi.json", "/api/v1/schema"):
        for _ in range(4):
            reply = echo_gateway.ask(path)
            assert reply.status == 200
            assert reply.json() == DOC


def test_fresh_copy_costs_no_bytes(echo_gateway: Gateway) -> None:
    """304 has neither body nor length, whichever lane; the connection goes on."""
    with RawClient(echo_gateway.url) as client:
        etag = client.request("GET", "/openapi.json").headers["etag"]
        for _ in range(2):
            reply = client.request("GET", "/openapi.json", headers={"If-None-Match": etag})
            assert (reply.status, reply.body) == (304, b"")
            assert reply.head.startswith(b"HTTP/1.1 304 Not Modified\r\n")
            assert "content-length" not in reply.headers
            assert reply.headers["etag"] == etag
        assert client.request("GET", "/openapi.json").status == 200


@pytest.mark.parametrize("endpoint", endpoints(), ids=name)
def test_answer_fits_the_description(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """The example, streamed too where it can be, and an id that does not exist."""
    bodies: list[Any] = [endpoint.example]
    if endpoint.infers and endpoint.request is not None:
        bodies += [endpoint.example | {"stream": True}, {}, {"model": 7}]
    for body in bodies:
        documented(endpoint, send(echo_gateway, endpoint, body))


@pytest.mark.parametrize("header", ["X-Session-Id: a b", "X-Request-Id: a\tb", "X-TPO-Priority: x"])
@pytest.mark.parametrize("endpoint", endpoints(), ids=name)
def test_refusal_of_a_header_fits_the_description(
    echo_gateway: Gateway, endpoint: Endpoint, header: str
) -> None:
    """Whoever refuses it, edge or handler, does so in the family's envelope."""
    key, _, value = header.partition(": ")
    reply = send(echo_gateway, endpoint, endpoint.example, {key: value})
    documented(endpoint, reply)
    if key != "X-TPO-Priority" or endpoint.infers:
        assert reply.status in (400, 503), reply.body
