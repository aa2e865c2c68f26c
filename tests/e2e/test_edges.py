"""The edge as browsers, proxies and tracers meet it, on both lanes."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.messages import CHAT, ask_on, chunked, get
from tests.support.raw import RawClient, RawReply, chat
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

APP = "https://app.example"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MIB = 1 << 20
LANES = ["fast", "full"]
ECHO = '[[backends]]\nname = "echo"\nkind = "echo"\nmodels = ["echo"]\n'


@dataclass
class Bench:
    """A gateway with every setting of the edge, and what stands behind it."""

    gateway: Gateway
    upstream: Upstream
    access_log: Path

    def ask(self, lane: str, *headers: str, body: object = None) -> RawReply:
        """One chat on one lane."""
        raw = json.dumps(body if body is not None else chat()).encode()
        return ask_on(self.gateway.url, lane, raw, *(h.encode() for h in headers))

    def metric(self, name: str, **labels: str) -> float:
        """One series of the host."""
        with RawClient(self.gateway.ops) as client:
            return metric(client.request("GET", "/metrics").body.decode(), name, **labels)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """One shard, so that four open calls are the host's limit."""
    # The module may be taken up twice by one test process.
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    access_log = folder / "access.log"
    with Upstream() as upstream:
        config = NO_RETRIES + "".join(
            (
                section(
                    "[server]", max_open_calls=4, max_body_bytes=2 * MIB,
                    compression_min_bytes=200, trusted_proxies=["127.0.0.0/8"],
                    trusted_hosts=["127.0.0.1", "localhost", "*.example"],
                ),
                section("[server.cors]", origins=[APP, "https://*.trusted.example"]),
                section("[observability]", access_log=str(access_log), log_format="json"),
                ECHO,
                backend("up", upstream.base_url),
            )
        )  # fmt: skip
        with Gateway(folder, config=config) as gateway:
            yield Bench(gateway, upstream, access_log)


def cors(reply: RawReply) -> str | None:
    """The origin an answer lets in."""
    return reply.headers.get("access-control-allow-origin")


# -- browsers ------------------------------------------------------------------------------------


def test_browser_may_send_json_with_a_key(bench: Bench) -> None:
    """Preflight, then the request; the answer can be read."""
    with RawClient(bench.gateway.url) as client:
        asked = client.request(
            "OPTIONS", CHAT,
            {"Origin": APP, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"},
        )  # fmt: skip
        assert asked.status == 204
        assert cors(asked) == APP
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "content-length" not in asked.headers
        reply = client.post_json(CHAT, chat(), {"Origin": APP, "Authorization": "Bearer x"})
        assert (reply.status, cors(reply)) == (200, APP)
        assert "x-request-id" in reply.headers["access-control-expose-headers"]


@pytest.mark.parametrize("lane", LANES)
def test_answers_streams_and_errors_can_be_read(bench: Bench, lane: str) -> None:
    """200, a stream, 400, 404, an upstream's failure: each names the origin that asked."""
    origin = f"Origin: {APP}"
    assert cors(bench.ask(lane, origin)) == APP
    stream = bench.ask(lane, origin, body=chat(stream=True))
    assert (cors(stream), stream.events[-1]) == (APP, b"[DONE]")
    assert stream.headers["cache-control"] == "no-cache"
    bad = bench.ask(lane, origin, body={"model": 1})
    assert (bad.status // 100, cors(bad)) == (4, APP)
    unknown = bench.ask(lane, origin, body=chat(model="nobody"))
    assert (unknown.status, cors(unknown)) == (404, APP)
    bench.upstream.queue("status", status=500)
    failed = bench.ask(lane, origin, body=chat(model="up"))
    assert (failed.status >= 500, cors(failed)) == (True, APP)


@pytest.mark.parametrize("lane", LANES)
def test_refusals_under_load_can_be_read(bench: Bench, lane: str) -> None:
    """503 with its retry hint, by the script that is to wait."""
    bench.upstream.queue("hang", times=4)
    body = json.dumps(chat(model="up")).encode()
    held = [RawClient(bench.gateway.url) for _ in range(4)]
    try:
        for client in held:
            client.send(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
            )
        wait_for(lambda: bench.upstream.counters.open >= 4, 5, "four open calls")
        refused = bench.ask(lane, f"Origin: {APP}")
        assert (refused.status, cors(refused)) == (503, APP)
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["retry-after-ms"] == "1000"
        assert refused.headers["x-should-retry"] == "true"
        anthropic = bench.gateway.ask("/v1/messages", chat(max_tokens=5), {"Host": "localhost"})
        assert anthropic.status == 529
        assert anthropic.headers["retry-after-ms"] == "1000"
        assert anthropic.headers["request-id"] == anthropic.headers["x-request-id"]
        assert refused.headers["x-request-id"].startswith("req-")
    finally:
        for client in held:
            client.close()
    wait_for(lambda: bench.ask("fast").status == 200, 5, "room for calls again")


@pytest.mark.parametrize("lane", LANES)
def test_stranger_is_answered_without_leave(bench: Bench, lane: str) -> None:
    """The request is served as any other; a browser keeps it from the script."""
    reply = bench.ask(lane, "Origin: https://evil.example")
    assert (reply.status, cors(reply)) == (200, None)
    assert "origin" in reply.headers["vary"]
    assert cors(bench.ask(lane, "Origin: https://a.trusted.example"))


# -- hosts and proxies ---------------------------------------------------------------------------


def test_foreign_host_is_misdirected(bench: Bench) -> None:
    """421, and the ops port is asked by any name."""
    with RawClient(bench.gateway.url) as client:
        client.send(get().replace(b"localhost", b"rebound.evil"))
        reply = client.read_reply()
        assert reply.status == 421
        assert reply.json()["error"]["code"] == "untrusted_host"
        client.send(get().replace(b"localhost", b"API.example:443"))
        assert client.read_reply().status == 200
    with RawClient(bench.gateway.ops) as client:
        client.send(get(b"/live").replace(b"localhost", b"10.0.0.1"))
        assert client.read_reply().status == 200


def peers(bench: Bench, *ids: str) -> dict[str, str]:
    """Who the records of those requests say the client was."""

    def found() -> dict[str, str] | None:
        if not bench.access_log.exists():
            return None
        rows = [json.loads(line) for line in bench.access_log.read_text().splitlines()]
        seen = {row["client_request_id"]: row["peer"] for row in rows}
        return seen if {*ids} <= {*seen} else None

    return wait_for(found, 10, "the records") or {}


@pytest.mark.parametrize("lane", LANES)
def test_proxy_of_ours_names_the_client(bench: Bench, lane: str) -> None:
    """In the record of the call; the left end of the list is a claim."""
    ids = [f"{lane}-{i}" for i in range(3)]
    lists = ["X-Forwarded-For: 6.6.6.6, 203.0.113.5", "Forwarded: for=203.0.113.6", "X-None: 1"]
    for name, line in zip(ids, lists, strict=True):
        assert bench.ask(lane, f"X-Request-Id: {name}", line).status == 200
    seen = peers(bench, *ids)
    assert [seen[name] for name in ids] == ["203.0.113.5", "203.0.113.6", "127.0.0.1"]


# -- what goes upstream --------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
def test_trace_goes_on_and_is_not_echoed(bench: Bench, lane: str) -> None:
    """Parent and state as they came; ``traceparent`` is a request header only."""
    reply = bench.ask(
        lane, f"traceparent: {TRACE}", "tracestate: a=1", "tracestate: b=2", "baggage: k=v",
        body=chat(model="up"),
    )  # fmt: skip
    assert reply.status == 200
    sent = bench.upstream.seen[-1].headers
    assert (sent["traceparent"], sent["tracestate"]) == (TRACE, "a=1, b=2")
    assert "baggage" not in sent
    assert "traceparent" not in reply.headers


@pytest.mark.parametrize("bad", ["ff" + TRACE[2:], TRACE.upper(), "00-0-0-0", "x"])
def test_invalid_trace_is_ignored(bench: Bench, bad: str) -> None:
    """The call is served, the upstream sees no trace."""
    reply = bench.ask("fast", f"traceparent: {bad}", "tracestate: a=1", body=chat(model="up"))
    assert reply.status == 200
    assert not {"traceparent", "tracestate"} & {*bench.upstream.seen[-1].headers}


def test_hop_by_hop_headers_stay_on_their_hop(bench: Bench) -> None:
    """None of the client's reaches the upstream, named in ``Connection`` or not."""
    bench.ask(
        "fast", "Connection: keep-alive, X-Secret-Hop", "X-Secret-Hop: 1", "Keep-Alive: timeout=5",
        "TE: trailers", "Trailer: X-After", "Proxy-Authorization: Basic eA==",
        "Proxy-Connection: keep-alive", "Upgrade: h2c", "X-Forwarded-For: 203.0.113.5",
        "Forwarded: for=203.0.113.5", "Cookie: a=b", body=chat(model="up"),
    )  # fmt: skip
    sent = bench.upstream.seen[-1].headers
    assert {*sent} <= {"host", "accept", "user-agent", "content-type", "content-length"}, sent


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("words", [60, 20_000])
def test_whole_answers_are_gzipped_on_request(bench: Bench, lane: str, words: int) -> None:
    """Small ones on the loop, large ones beside it; the body is the same."""
    body = chat("word " * words)
    plain = bench.ask(lane, body=body)
    packed = bench.ask(lane, "Accept-Encoding: gzip, br;q=0.5", body=body)
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    for reply in (plain, packed):
        assert "accept-encoding" in reply.headers["vary"]
    unpacked = json.loads(gzip.decompress(packed.body))
    assert unpacked["choices"] == plain.json()["choices"]
    assert len(packed.body) * 2 < len(plain.body)


@pytest.mark.parametrize("lane", LANES)
def test_streams_are_not_compressed_unless_configured(bench: Bench, lane: str) -> None:
    """Each event leaves when it comes."""
    body = chat("word " * 200, stream=True)
    reply = bench.ask(lane, "Accept-Encoding: gzip", body=body)
    assert "content-encoding" not in reply.headers
    assert reply.events[-1] == b"[DONE]"


@pytest.mark.parametrize("lane", LANES)
def test_answers_say_how_to_be_treated(bench: Bench, lane: str) -> None:
    """No guessing, no storing, no name of the server."""
    for reply in (bench.ask(lane), bench.ask(lane, body=chat(model="nobody"))):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers


@pytest.mark.parametrize("path", ["/metrics", "/live", "/none"])
def test_ops_port_does_not_say_what_serves_it(bench: Bench, path: str) -> None:
    """Nor when the request is no HTTP."""
    with RawClient(bench.gateway.ops) as client:
        reply = client.request("GET", path)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers
    with RawClient(bench.gateway.ops) as client:
        client.send(b"GET /live HTTP/1.1\r\nbad header\r\n\r\n")
        reply = client.read_reply()
        assert reply.status == 400
        assert b"aiohttp" not in reply.head + reply.body


def test_refusals_have_ids(bench: Bench) -> None:
    """Before there is a call: no route, no HTTP, a native error; all different."""
    with RawClient(bench.gateway.url) as client:
        missing = client.request("GET", "/nowhere")
        native = client.request("GET", "/api/v1/nowhere")
        client.send(b"nonsense\r\n\r\n")
        framing = client.read_reply()
    ids = [reply.headers["x-request-id"] for reply in (missing, native, framing)]
    assert len({*ids}) == 3
    assert native.json()["error"]["request_id"] == ids[1]


# -- body limits and lanes -----------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("target", "size", "status"),
    [
        (CHAT, 2 * MIB - 1024, 200),
        (CHAT, 2 * MIB + 1, 413),
        ("/v1/models", MIB - 1, 200),
        ("/v1/models", MIB + 1, 413),
    ],
)
def test_each_route_has_its_body_limit(
    bench: Bench, lane: str, target: str, size: int, status: int
) -> None:
    """``max_body_bytes`` where prompts go, 1 MiB elsewhere."""
    body = json.dumps(chat("x")).encode()
    body = body.replace(b'"x"', b'"' + b"x" * (size - len(body) + 1) + b'"')
    assert len(body) == size
    method = "POST" if target == CHAT else "GET"
    framing = b"Content-Length: %d" % size if lane == "fast" else b"Transfer-Encoding: chunked"
    head = b"%b %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%b\r\n\r\n" % (
        method.encode(), target.encode(), framing,
    )  # fmt: skip
    with RawClient(bench.gateway.url) as client:
        client.send(head + (body if lane == "fast" else chunked(body)))
        assert client.read_reply().status == status


def test_share_of_each_lane_is_counted(bench: Bench) -> None:
    """One request, one count, in its own lane."""
    before = {lane: bench.metric("tpo_lane_requests_total", lane=lane) for lane in LANES}
    for lane in LANES:
        bench.ask(lane)
    for lane in LANES:
        assert bench.metric("tpo_lane_requests_total", lane=lane) == before[lane] + 1
