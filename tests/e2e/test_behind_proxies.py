"""Requests that cannot be trusted, sent through a proxy that shares its connections to us.

Proxies repair some and refuse others; what counts is that gateway and proxy agree where a request
ends.  After each, another client must get the answer to its own question over the same proxy.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.framing import FRAMING, SMUGGLED, Bad
from tests.support.gateway import Gateway
from tests.support.messages import BODY, CHAT, CHUNKED, LENGTH, chunked, post
from tests.support.proxies import Proxy, find
from tests.support.raw import RawClient, ask, build, chat
from tests.support.toml import backend
from tests.support.upstream import Upstream

ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
HELLO = json.loads(BODY)["messages"]
THEIRS = build(
    "POST", CHAT, {"Host": "localhost", "Content-Type": "application/json"},
    json.dumps(chat("smuggled")).encode(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Street:
    """A proxy, the gateway behind it, and the upstream behind that."""

    proxy: Proxy
    upstream: Upstream


@pytest.fixture(scope="module")
def behind(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """Two shards whose every call goes to an upstream that remembers it."""
    with Upstream() as upstream:
        config = backend("up", upstream.base_url, "echo")
        with Gateway(short_tmp / "proxied", config=config, workers=2) as gateway:
            yield gateway, upstream


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def street(
    request: pytest.FixtureRequest, behind: tuple[Gateway, Upstream], short_tmp: Path
) -> Iterator[Street]:
    """One proxy; haproxy is a second opinion, where it is installed."""
    kind: str = request.param
    if kind == "haproxy" and find(kind) is None:
        pytest.skip("haproxy is not installed here")
    require(find(kind) is not None, kind)
    gateway, upstream = behind
    with Proxy(kind, short_tmp / kind, gateway.port) as proxy:
        yield Street(proxy, upstream)


def told(upstream: Upstream) -> list[object]:
    """What every request that reached the upstream said."""
    return [seen.json()["messages"] for seen in upstream.seen]


def next_client_is_served(street: Street) -> None:
    """Another client gets the answer to its own question."""
    question = f"question {uuid.uuid4()}"
    reply = ask(street.proxy.url, CHAT, chat(question))
    assert reply.status == 200, reply
    assert reply.json()["choices"][0]["message"]["content"] == f"answer to {question}"


def answers(street: Street, raw: bytes) -> list[int]:
    """Send bytes, read to the end, and answer the final statuses that came."""
    with RawClient(street.proxy.url, timeout_s=15) as client:
        client.send(raw)
        statuses = [int(found) for found in ANSWER.findall(client.read_to_end())]
    return [status for status in statuses if status >= 200]


@pytest.mark.parametrize("case", FRAMING, ids=lambda case: case.id)
def test_no_request_is_smuggled_through_a_proxy(street: Street, case: Bad) -> None:
    """At most one answer, at most one call upstream and that one's own, then the next client's."""
    street.upstream.forget()
    raw = case.raw.replace(SMUGGLED, THEIRS)
    assert len(answers(street, raw)) <= 1
    assert told(street.upstream) in ([], [HELLO])
    next_client_is_served(street)


@pytest.mark.parametrize("case", FRAMING, ids=lambda case: case.id)
def test_no_request_is_smuggled_behind_a_good_one(street: Street, case: Bad) -> None:
    """The same in the write of a good chunked request, which is answered first."""
    street.upstream.forget()
    raw = post(CHUNKED, body=chunked()) + case.raw.replace(SMUGGLED, THEIRS)
    statuses = answers(street, raw)
    assert len(statuses) <= 2
    assert statuses[0] in (200, 400)
    assert told(street.upstream) in ([], [HELLO], [HELLO, HELLO])
    next_client_is_served(street)


REFUSED = [
    ("POST", "/nowhere", {}), ("PUT", CHAT, {}), ("DELETE", CHAT, {}), ("GET", "/v1/models", {}),
    ("HEAD", "/v1/models", {}), ("POST", "/v1/models", {}), ("POST", CHAT, {}),
    ("POST", CHAT, {"Content-Type": "text/plain"}), ("POST", CHAT, {"Content-Encoding": "gzip"}),
    ("POST", "/v1/%6dodels", {}), ("GET", "/api/v1/ws", {"Upgrade": "websocket"}),
    ("POST", CHAT, {"X-Session-Id": "not a session"}),
]  # fmt: skip


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize(("method", "target", "headers"), REFUSED)
def test_body_of_a_refused_request_is_no_request(
    street: Street, method: str, target: str, headers: dict[str, str], coding: str
) -> None:
    """Well framed, refused before its body is wanted, and the body is a request in itself."""
    street.upstream.forget()
    plain = coding == "length"
    headers = {"Host": "localhost", "Content-Type": "application/json"} | headers
    headers |= {} if plain else {"Transfer-Encoding": "chunked"}
    raw = build(method, target, headers, THEIRS if plain else chunked(THEIRS))
    assert len(answers(street, raw)) == 1
    next_client_is_served(street)
    assert chat("smuggled")["messages"] not in told(street.upstream)


def test_two_good_requests_get_two_answers(street: Street) -> None:
    """What is no attack is not hindered, and the counting above counts."""
    street.upstream.forget()
    raw = post(LENGTH) + post(CHUNKED, body=chunked()) + THEIRS
    assert answers(street, raw) == [200, 200, 200]
    assert told(street.upstream) == [HELLO, HELLO, chat("smuggled")["messages"]]
