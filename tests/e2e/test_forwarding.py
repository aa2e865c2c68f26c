"""A call that one shard takes and another serves is the same call: bodies, limits, deadlines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.messages import error_of
from tests.support.raw import RawReply, chat
from tests.support.shards import (
    CHAT,
    WAYS,
    Way,
    connect_to,
    render,
    session_on,
    shard_of,
    ways,
)
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Counters, Upstream
from tests.support.wait import quickest, wait_for

INLINE_BYTES = 16_384
PROMPT_CANCEL_S = 0.05


@dataclass(slots=True)
class Bench:
    """Two shards before an upstream and two echoes."""

    gateway: Gateway
    upstream: Upstream
    ways: dict[str, Way]


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """One echo takes its time."""
    with Upstream() as upstream:
        config = ECHO + backend("up", upstream.base_url)
        config += section("[[backends]]", name="slow", kind="echo", models=["slow"], delay_ms=200)
        with Gateway(short_tmp / "forwarding", config=config, workers=2) as gateway:
            yield Bench(gateway, upstream, ways(gateway.url))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, bench: Bench) -> Way:
    """Each of the four ways in turn."""
    return bench.ways[request.param]


# -- who takes it, who serves it -----------------------------------------------------------------


def test_every_shard_takes_connections_for_every_session(bench: Bench) -> None:
    """Sixteen sessions, asked on a connection of each shard: one home each, whoever is asked."""
    url = bench.gateway.url
    with connect_to(url, 0) as one, connect_to(url, 1) as other:
        homes = [shard_of(one, f"any-{i}") for i in range(16)]
        assert homes == [shard_of(other, f"any-{i}") for i in range(16)]
        # Those who stay and those who travel share a connection without noticing.
        assert shard_of(one) == 0
        assert shard_of(other) == 1
    assert set(homes) == {0, 1}


def test_sessions_keep_their_home_over_all_lanes_and_kinds(bench: Bench) -> None:
    """Unary or stream, with a length or chunked."""
    for name in WAYS:
        way = bench.ways[name]
        home = 1 if way.place == "forwarded" else 0
        for stream in (False, True):
            reply = way.ask(chat("where", "up", stream=stream))
            assert reply.headers["x-tpo-shard"] == str(home), (name, stream)


def test_any_string_in_the_body_is_a_key(bench: Bench) -> None:
    """Long, empty, strange: the call is served, and the same key meets the same shard."""
    keys = ["k" * 200_000, "ключ\0\n", "\U0001f600" * 600, "../../etc/passwd", "x" * 513]
    with connect_to(bench.gateway.url, 0) as one, connect_to(bench.gateway.url, 1) as other:
        for key in keys:
            homes = set()
            for client in (one, other) * 2:
                for field in ("user", "prompt_cache_key"):
                    reply = client.post_json(CHAT, chat("x", **{field: key}))
                    assert reply.status == 200, reply
                    homes.add(reply.headers["x-tpo-shard"])
            assert len(homes) == 1, key[:20]
        for client, shard in ((one, 0), (other, 1)):
            reply = client.post_json(CHAT, chat("x", user=""))
            assert reply.headers["x-tpo-shard"] == str(shard), "an empty key is none"


def test_long_keys_spread_over_the_shards(bench: Bench) -> None:
    """A key longer than a ring record still is one key of many."""
    with connect_to(bench.gateway.url, 0) as client:
        homes = {
            client.post_json(CHAT, chat("x", user=f"{i}" * 100_000)).headers["x-tpo-shard"]
            for i in range(24)
        }
    assert homes == {"0", "1"}


# -- what travels --------------------------------------------------------------------------------

SIZES = [1, INLINE_BYTES - 150, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 65_536, 5_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_bodies_of_every_size_reach_the_upstream_whole(bench: Bench, way: Way, size: int) -> None:
    """Inline or by reference, what the upstream gets is what the client sent."""
    sent = chat("s" * size, "up")
    reply = way.ask(sent)
    assert reply.status == 200
    assert bench.upstream.seen[-1].json() == sent


@pytest.mark.parametrize("size", [1, 30_000, 40_000, 70_000, 300_000, 5_000_000])
def test_replies_of_every_size_reach_the_client_whole(bench: Bench, way: Way, size: int) -> None:
    """In one ring record or in many."""
    body = chat("r", "up", metadata={"upstream": {"text": "t", "pad_bytes": size}})
    reply = way.ask(body)
    assert reply.status == 200
    assert reply.json()["choices"][0]["message"]["content"] == "t" + "x" * size
    assert reply.json()["usage"]["total_tokens"] == 12


def test_large_bodies_side_by_side_never_mix(bench: Bench) -> None:
    """Fifty bodies by reference at once: every reply echoes its own."""

    def ask(number: int) -> tuple[str, RawReply]:
        text = f"{number:03d}" * (10_000 + number * 100)
        session = {"X-Session-Id": f"mix-{number}"}
        return text, bench.gateway.ask(CHAT, chat(text), session)

    with ThreadPoolExecutor(16) as pool:
        for text, reply in pool.map(ask, range(50)):
            assert reply.status == 200, reply
            assert reply.json()["choices"][0]["message"]["content"] == text


def test_headers_of_the_upstream_travel_up_to_a_limit(bench: Bench, way: Way) -> None:
    """What SDKs read passes; what nobody reads, and what would fill a ring, does not."""
    headers = {"X-Ratelimit-Remaining": "5", "OpenAI-Version": "7", "Set-Cookie": "a=b"}
    headers |= {f"X-Ratelimit-Filler-{i}": "y" * 1000 for i in range(40)}
    for stream in (False, True):
        script = {"headers": headers}
        reply = way.ask(chat("h", "up", stream=stream, metadata={"upstream": script}))
        assert reply.status == 200
        assert reply.headers["x-ratelimit-remaining"] == "5"
        assert reply.headers["openai-version"] == "7"
        assert "set-cookie" not in reply.headers
        assert len(reply.head) < 12_000


def test_the_clients_own_request_id_comes_back(bench: Bench, way: Way) -> None:
    """As it was sent; the gateway's own id is another header."""
    reply = way.ask(chat("x"), {"X-Request-Id": "mine-7"})
    assert reply.headers["x-request-id"] == "mine-7"
    assert reply.headers["x-tpo-call-id"] != "mine-7"


def test_unknown_models_are_404_on_every_way(bench: Bench, way: Way) -> None:
    """The serving shard's refusal is the client's answer."""
    reply = way.ask(chat("x", "no-such-model"))
    assert reply.status == 404
    assert error_of(reply)["code"] == "model_not_found"
    assert error_of(reply)["param"] == "model"


# -- deadlines -----------------------------------------------------------------------------------


def test_deadline_before_the_first_byte_is_504_and_cancels_the_upstream(
    bench: Bench, way: Way
) -> None:
    """In time, and nothing goes on behind the client's back."""
    counters = bench.upstream.counters
    for stream in (False, True):
        aborted, requests = counters.aborted, counters.requests
        body = chat("late", "up", stream=stream, metadata={"upstream": {"mode": "hang"}})
        began = time.monotonic()
        reply = way.ask(body, {"X-TPO-Deadline-Ms": "200"})
        took_s = time.monotonic() - began
        assert reply.status == 504, reply
        assert error_of(reply)["code"] == "deadline_exceeded"
        assert took_s >= 0.2
        # The upstream is not asked at all for what stood still until its deadline.
        wait_for(partial(_all_aborted, counters, aborted - requests), 2, "the upstream cancelled")


def _all_aborted(counters: Counters, before: int) -> bool:
    """Whether as many were aborted as asked, since the one was so many more than the other."""
    return counters.aborted - counters.requests == before


def test_deadline_in_mid_stream_ends_it_with_an_error_event(bench: Bench, way: Way) -> None:
    """What came so far stays; the end is an error, not success."""
    body = chat("late", "up", stream=True, metadata={"upstream": {"mode": "hang_body"}})

    def begun() -> RawReply | None:
        reply = way.ask(body, {"X-TPO-Deadline-Ms": "300"})
        if reply.status == 504:  # nothing had come yet on a machine that stood still
            return None
        return reply

    reply = wait_for(begun, 10, "a stream that began in time")
    assert reply.status == 200
    assert json.loads(reply.events[0])["choices"]
    assert json.loads(reply.events[-1])["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: bench.upstream.counters.open == 0, 2, "the upstream cancelled")


def test_deadline_that_is_kept_changes_nothing(bench: Bench, way: Way) -> None:
    """Neither for a unary call nor for a stream of the slow echo."""
    assert way.ask(chat("a b"), {"X-TPO-Deadline-Ms": "60000"}).status == 200
    reply = way.ask(chat("a b", "slow", stream=True), {"X-TPO-Deadline-Ms": "60000"})
    assert reply.events[-1] == b"[DONE]"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "9" * 30, ""])
def test_deadline_that_is_no_number_is_refused(bench: Bench, value: str) -> None:
    """400 with the header's name, and no call."""
    requests = bench.upstream.counters.requests
    reply = bench.gateway.ask(CHAT, chat("x", "up"), {"X-TPO-Deadline-Ms": value})
    assert reply.status == 400, reply
    assert error_of(reply)["param"] == "x-tpo-deadline-ms"
    assert bench.upstream.counters.requests == requests


# -- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["unary", "waiting", "streaming"])
def test_client_that_leaves_cancels_its_upstream_at_once(
    bench: Bench, way: Way, moment: str
) -> None:
    """Unary, before the first event and in mid-stream: the fastest of some within 50 ms."""
    counters = bench.upstream.counters
    mode = "hang_body" if moment == "streaming" else "hang"
    stream = moment != "unary"

    def cancelled_s() -> float:
        wait_for(lambda: counters.open == 0, 5, "nothing open")
        aborted = counters.aborted
        with way.open() as client:
            body = chat("bye", "up", stream=stream, metadata={"upstream": {"mode": mode}})
            client.send(way.request(client, body))
            wait_for(lambda: counters.open == 1, 5, "the call upstream")
            if moment == "streaming":
                client.read_until(b"\n\n")
        left_at = time.monotonic()
        wait_for(partial(_aborted, counters, aborted + 1), 2, "cancelled", every_s=0.001)
        return time.monotonic() - left_at

    took = quickest(cancelled_s, 5, PROMPT_CANCEL_S)
    print(
        f"{way.place} {way.lane} {moment}: cancelled after {[round(t * 1e3, 1) for t in took]} ms"
    )


def test_client_that_leaves_frees_everything(bench: Bench) -> None:
    """Twenty clients leave twenty calls on all ways: no call, queue place or connection stays."""
    counters = bench.upstream.counters
    clients = []
    for number in range(20):
        way = bench.ways[WAYS[number % 4]]
        client = way.open()
        body = chat("bye", "up", stream=True, metadata={"upstream": {"mode": "hang_body"}})
        client.send(way.request(client, body))
        clients.append(client)
    wait_for(lambda: counters.open == 20, 10, "twenty calls")
    for client in clients:
        client.close()
    wait_for(lambda: counters.open == 0, 5, "all cancelled")
    wait_for(lambda: _open_calls(bench) == 0, 5, "no open call on any shard")


def _open_calls(bench: Bench) -> int:
    return sum(int(slot["open_calls"]) for slot in bench.gateway.status()["slots"])


def test_session_header_is_checked_on_both_lanes(bench: Bench) -> None:
    """A key outside the safe pattern is 400, whoever frames the request."""
    url = bench.gateway.url
    assert session_on(url, 1, "ok.A_1:-")
    for lane in ("fast", "full"):
        for session in ("a b", "{hash}", "../../x", "a,b", "x" * 129, "%0d%0a"):
            with connect_to(url, 0) as client:
                client.send(render(client.host, chat("x"), {"X-Session-Id": session}, lane))  # type: ignore[arg-type]
                reply = client.read_reply("POST")
            assert reply.status == 400, (lane, session, reply)
            assert error_of(reply)["param"] == "x-session-id"


def _aborted(counters: Counters, number: int) -> bool:
    return counters.aborted >= number
