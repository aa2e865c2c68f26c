"""Ways through a host of two shards: which shard takes a connection, which one holds a session.

A call is *local* when the shard that took its connection holds its session, else *forwarded*.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from .gateway import Gateway
from .messages import CHUNKED, chunked
from .raw import RawClient, RawReply, build, chat
from .upstream import Upstream
from .wait import wait_for

CHAT = "/v1/chat/completions"
ECHO = "echo"
Place = Literal["local", "forwarded"]
Lane = Literal["fast", "full"]


def shard_of(
    client: RawClient, session: str = "", model: str = ECHO, headers: dict[str, str] | None = None
) -> int:
    """The shard that serves a session, or without one the shard that took the connection."""
    named = ({"X-Session-Id": session} if session else {}) | (headers or {})
    reply = client.post_json(CHAT, chat("where", model), named)
    assert reply.status == 200, reply
    return int(reply.headers["x-tpo-shard"])


def connect_to(
    url: str,
    shard: int,
    *,
    model: str = ECHO,
    headers: dict[str, str] | None = None,
    within_s: float = 20.0,
    **options: Any,
) -> RawClient:
    """Open connections until that shard takes one; a shard that gets no core takes none."""
    give_up_at = time.monotonic() + within_s
    tried = 0
    while time.monotonic() < give_up_at:
        client = RawClient(url, **options)
        if shard_of(client, "", model, headers) == shard:
            return client
        client.close()
        tried += 1
    raise AssertionError(f"shard {shard} took none of {tried} connections in {within_s} s")


@contextmanager
def each_shard(url: str, **options: Any) -> Iterator[tuple[RawClient, RawClient]]:
    """A connection to each of two shards, for calls that come to both by turns.

    Connections as they come may all go to one shard, while the other gets no core.
    What it asks to find them is asked before the block begins: count from there.
    """
    with connect_to(url, 0, **options) as one, connect_to(url, 1, **options) as other:
        yield one, other


def session_on(
    url: str,
    shard: int,
    prefix: str = "s",
    *,
    model: str = ECHO,
    headers: dict[str, str] | None = None,
    within_s: float = 20.0,
) -> str:
    """Name a session that lives on that shard; where one lives is another thing on each host.

    While that shard stands still another one answers for its sessions.
    """
    give_up_at = time.monotonic() + within_s
    with RawClient(url) as client:
        for number in count():
            if shard_of(client, f"{prefix}-{number}", model, headers) == shard:
                return f"{prefix}-{number}"
            if number > 200 and time.monotonic() > give_up_at:
                break
    raise AssertionError(f"no session lives on shard {shard}")


@dataclass(slots=True)
class Shards:
    """Two shards before an upstream, with a connection to each and a session on each."""

    gateway: Gateway
    upstream: Upstream
    clients: tuple[RawClient, RawClient]
    sessions: tuple[str, str]

    def ended(self, aborted: int, within_s: float = 5.0) -> None:
        """Wait until the upstream lost one more client than before."""
        counters = self.upstream.counters
        wait_for(lambda: counters.aborted == aborted + 1, within_s, "upstream cancelled")

    def started(self, requests: int) -> None:
        """Wait until the upstream has one more request."""
        wait_for(lambda: self.upstream.counters.requests == requests + 1, 10, "call upstream")


def render(host: str, value: Any, headers: dict[str, str], lane: Lane, target: str = CHAT) -> bytes:
    """Write a POST, chunked for the full lane."""
    body = json.dumps(value).encode()
    headers = {"Host": host, "Content-Type": "application/json"} | headers
    if lane == "fast":
        return build("POST", target, headers, body)
    name, _, coding = CHUNKED.decode().partition(": ")
    return build("POST", target, headers | {name: coding}) + chunked(body)


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the host, for any number of calls."""

    url: str
    session: str
    place: Place
    lane: Lane
    taker: int = 0

    def open(self, **options: Any) -> RawClient:
        """Connect so that calls of this session go the way."""
        return connect_to(self.url, self.taker, **options)

    def request(
        self, client: RawClient, value: Any, headers: dict[str, str] | None = None
    ) -> bytes:
        """Write a chat request that goes this way."""
        named = {"X-Session-Id": self.session} | (headers or {})
        return render(client.host, value, named, self.lane)

    def ask(self, value: Any, headers: dict[str, str] | None = None, **options: Any) -> RawReply:
        """Ask once, on a connection of its own; the reply names the shard it must."""
        with self.open(**options) as client:
            client.send(self.request(client, value, headers))
            reply = client.read_reply("POST")
        assert "x-tpo-shard" in reply.headers, reply
        return reply

    def on(self, lane: Lane) -> Way:
        """The same way on another lane."""
        return replace(self, lane=lane)


def ways(url: str) -> dict[str, Way]:
    """All four ways through a host whose echo backend serves ``echo``, named place-lane."""
    places: dict[Place, str] = {"local": session_on(url, 0), "forwarded": session_on(url, 1)}
    lanes: tuple[Lane, ...] = ("fast", "full")
    return {
        f"{place}-{lane}": Way(url, session, place, lane)
        for place, session in places.items()
        for lane in lanes
    }


WAYS = ("local-fast", "local-full", "forwarded-fast", "forwarded-full")
