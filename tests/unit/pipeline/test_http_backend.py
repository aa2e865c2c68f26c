"""What every backend behind HTTP shares, without a network: paths, credentials, usage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.raw import chat
from tests.support.wait import until
from tpo_mp.config.values import Secret
from tpo_mp.errors import BackendFailure, ConfigError, Shed
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.pipeline.http_backend import (
    MAX_LIST_BYTES,
    HttpBackend,
    HttpBackendConfig,
    chosen_paths,
)
from tpo_mp.types import Dialect

APIS = {"chat": (Dialect.OPENAI_CHAT, "talk"), "count": (Dialect.ANTHROPIC_COUNT, "count")}


class Wire:
    """Stands for the connection pool."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.receiver: Any = None
        self.closed = False
        self.full = False

    def send(self, exchange: Any) -> None:
        """Take a request."""
        if self.full:
            raise OverflowError
        self.sent.append(exchange.request)
        self.receiver = exchange

    def close(self) -> None:
        """Note it."""
        self.closed = True


def build(include_usage: bool = False, **options: Any) -> tuple[HttpBackend, Wire]:
    """Build a backend of two paths on a fake pool."""
    options = {"base_url": "https://up.example/base/"} | options
    config = HttpBackendConfig(name="up", kind="x", **options)
    backend = HttpBackend(
        config,
        FakeWorld().env,
        paths=dict(APIS.values()),
        auth="x-key: {}",
        fixed=("x-fixed: 100%",),
        include_usage=include_usage,
    )
    wire = Wire()
    backend._origin = wire  # type: ignore[assignment]
    return backend, wire


def call(**more: Any) -> Any:
    """A chat call."""
    return make_call(json.dumps(chat("hi", **more)).encode(), stream=bool(more.get("stream")))


def head(status: int = 200) -> ResponseHead:
    """Make a response head."""
    made = ResponseHead()
    made.status, made.content_type = status, b"application/json"
    return made


@pytest.mark.parametrize(("dialect", "path"), APIS.values())
def test_each_dialect_has_its_path(dialect: Dialect, path: str) -> None:
    """Below the base URL, slash or not, with the query, the fixed lines and the credential."""
    backend, wire = build(query={"v": "1 2"}, api_key=Secret("secret"))
    asked = call()
    asked.dialect = dialect
    backend.infer(asked)
    lines = wire.sent[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0] == b"POST /base/%b?v=1+2 HTTP/1.1" % path.encode()
    assert {b"host: up.example", b"x-fixed: 100%", b"x-key: secret"} <= set(lines)


def test_forwarded_lines_go_upstream_as_they_are() -> None:
    """Trace headers, for one."""
    backend, wire = build()
    asked = call()
    asked.forward = b"traceparent: 00-1\r\n"
    backend.infer(asked)
    assert b"\r\ntraceparent: 00-1\r\n" in wire.sent[0]


def test_callers_credential_replaces_ours_only_when_configured() -> None:
    """Never both."""
    for key, theirs in ((Secret("secret"), False), (Secret("", "client"), True)):
        backend, wire = build(api_key=key)
        asked = call()
        asked.authorization = b"Bearer mine"
        backend.infer(asked)
        assert (b"authorization: Bearer mine\r\n" in wire.sent[0]) is theirs
        assert (b"x-key:" in wire.sent[0]) is not theirs


@pytest.mark.parametrize(
    ("include", "stream", "wanted", "added"),
    [(True, True, False, True), (True, True, True, False), (True, False, False, False),
     (False, True, False, False)],
)  # fmt: skip
def test_usage_is_asked_for_where_nobody_did(
    include: bool, stream: bool, wanted: bool, added: bool
) -> None:
    """Only for streams, only when configured, and not twice."""
    backend, wire = build(include_usage=include)
    asked = call(stream=stream)
    asked.usage_wanted = wanted
    backend.infer(asked)
    assert (b"include_usage" in wire.sent[0]) is added


def test_too_many_waiting_calls_are_shed() -> None:
    """Told to come back."""
    backend, wire = build()
    wire.full = True
    with pytest.raises(Shed) as caught:
        backend.infer(call())
    assert caught.value.retry_after_s == 1


def test_list_is_read_from_either_family() -> None:
    """Both name their models ``data[].id``."""

    async def ask(status: int, *parts: bytes) -> Any:
        backend, wire = build()
        waiting = asyncio.ensure_future(backend.list_models())  # type: ignore[arg-type]
        await until(lambda: wire.sent, what="the question")
        assert wire.sent[0].startswith(b"GET /base/models HTTP/1.1\r\n")
        if len(parts) == 1:
            wire.receiver.whole(head(status), parts[0])
        else:
            wire.receiver.started(head(status))
            for part in parts:
                wire.receiver.data(part)
            wire.receiver.ended()
        return await waiting

    assert asyncio.run(ask(200, b'{"data":[{"id":"a"},{"id":"b","type":"model"}]}')) == ["a", "b"]
    assert asyncio.run(ask(200, b'{"data":[{"id"', b':"a"}]}')) == ["a"]
    for status, *parts in ((500, b"{}"), (200, b"<html>"), (200, b"x" * MAX_LIST_BYTES, b"xx")):
        with pytest.raises(BackendFailure):
            asyncio.run(ask(status, *parts))


def test_closing_drops_the_pool() -> None:
    """And closing what never connected is nothing."""
    backend, wire = build()
    backend.close()
    assert wire.closed
    config = HttpBackendConfig(name="up", kind="x", base_url="http://up.example")
    HttpBackend(config, FakeWorld().env, paths={}).close()


def test_apis_are_the_named_ones_or_the_default() -> None:
    """In the order they were named; one that is unknown is an error with the backend's name."""
    config = HttpBackendConfig(name="up", kind="x", base_url="http://up.example")
    assert list(chosen_paths(config, APIS, ("chat",))) == [Dialect.OPENAI_CHAT]
    named = HttpBackendConfig(
        name="up", kind="x", base_url="http://up.example", apis=("count", "chat")
    )
    assert list(chosen_paths(named, APIS, ("chat",))) == [
        Dialect.ANTHROPIC_COUNT,
        Dialect.OPENAI_CHAT,
    ]
    wrong = HttpBackendConfig(name="up", kind="x", base_url="http://up.example", apis=("speech",))
    with pytest.raises(ConfigError, match=r"backends\.up\.apis: 'speech' is none of chat, count"):
        chosen_paths(wrong, APIS, ())
