"""Raw chat requests, as a well-behaved client writes them and as no client should."""

from __future__ import annotations

import json
from typing import Any

from .raw import RawClient, RawReply, chat

CHAT = "/v1/chat/completions"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
BODY = json.dumps(chat()).encode()


def post(*lines: bytes, body: bytes = BODY) -> bytes:
    """Make a chat request from given header lines, without adding any."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + JSON
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(target: bytes = b"/v1/models", *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """Make a GET from given header lines, with a host."""
    head = b"GET " + target + b" " + version + b"\r\n" + HOST
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunked(body: bytes = BODY) -> bytes:
    """Render a body as one chunk."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"


def ask_on(url: str, lane: str, body: bytes, *headers: bytes) -> RawReply:
    """POST a chat body with a length, or chunked for the full lane, on its own connection."""
    with RawClient(url) as client:
        if lane == "fast":
            client.send(post(b"Content-Length: %d" % len(body), *headers, body=body))
        else:
            client.send(post(CHUNKED, *headers, body=chunked(body) if body else b"0\r\n\r\n"))
        return client.read_reply()


def error_of(reply: RawReply) -> dict[str, Any]:
    """Decode an OpenAI error body."""
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}, error
    return error
