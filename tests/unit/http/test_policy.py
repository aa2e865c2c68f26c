"""The edge's policy: origins, hosts, proxies, compression; and the headers every answer has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.codings import CODINGS, chunks, unpacked, unpacker
from tests.support.fake_net import Client, Clock, EdgeLimits, FakeFront, FakeTransport, turns
from tests.support.wait import until
from tpo_mp.http.compress import INLINE_BYTES
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.full import FullLane
from tpo_mp.http.policy import Policy

APP = b"https://app.example"
EVENT = b"data: " + b"x" * 2000 + b"\n\n"
SMALL, BIG = b'{"a":"' + b"x" * 500 + b'"}', b'{"a":"' + b"x" * (INLINE_BYTES + 10) + b'"}'


def _flow(exchange: Any) -> None:
    exchange.begin(200, b"text/event-stream", b"", None)
    exchange.write(EVENT)
    exchange.finish()


ENDPOINTS = [
    Endpoint("GET", "/small", lambda x: x.respond(200, SMALL), "openai"),
    Endpoint("GET", "/big", lambda x: x.respond(200, BIG), "openai"),
    Endpoint("GET", "/stream", _flow, "openai"),
    Endpoint("GET", "/packed",
             lambda x: x.respond(200, SMALL, extra=b"content-encoding: zstd\r\n"), "openai"),
    Endpoint("GET", "/peer", lambda x: x.respond(200, x.peer.encode()), "openai"),
    Endpoint("GET", "/health", lambda x: x.respond(200, b"{}"), "ops"),
    Endpoint("POST", "/small", lambda x: x.respond(200, SMALL), "native"),
]  # fmt: skip


class Answer:
    """One response, taken apart; ``headers`` keeps every value of a name."""

    def __init__(self, written: bytes) -> None:
        head, _, self.body = written.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split(b" ")[1])
        self.headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.decode().partition(": ")
            self.headers.setdefault(name.lower(), []).append(value)

    def get(self, name: str) -> str | None:
        """The one value of a header."""
        values = self.headers.get(name, [])
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


Ask = Callable[..., Answer]


def request(method: str, target: str, **headers: str) -> bytes:
    """Make a request; ``_`` in a name is a dash."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{n.replace('_', '-')}: {v}" for n, v in {"Host": "api.example", **headers}.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture(params=["fast", "full"])
def ask(request: pytest.FixtureRequest, clock: Clock) -> Callable[..., Ask]:
    """A front with a policy, asked on either lane."""
    lane = request.param

    def with_policy(policy: Policy | None) -> Ask:
        def send(method: str, target: str, **headers: str) -> Answer:
            return asyncio.run(_exchange(clock, lane, policy, method, target, headers))

        return send

    return with_policy


async def _exchange(
    clock: Clock,
    lane: str,
    policy: Policy | None,
    method: str,
    target: str,
    headers: dict[str, str],
) -> Answer:
    front = FakeFront(clock, ENDPOINTS)
    front.edge.loop = asyncio.get_running_loop()
    front.edge.configure(EdgeLimits(), policy)
    front.edge.use(front.edge.table)
    raw = request(method, target, **headers)
    if lane == "fast":
        client = Client(front)
        transport, written = client.transport, client.send(raw)
    else:
        FullLane(front.edge)
        transport = FakeTransport(asyncio.get_running_loop().call_soon)
        front.edge.to_full_lane(transport, raw)  # type: ignore[arg-type]
        written = b""
    written = bytearray(written)

    def whole() -> bool:
        written.extend(transport.take())
        return bool(written) and (written.endswith(b"0\r\n\r\n") or _complete(bytes(written)))

    await until(whole, what=f"a whole answer to {method} {target}")
    transport.lose()
    await asyncio.sleep(0)
    assert not front.crashes
    return Answer(bytes(written))


def _complete(written: bytes) -> bool:
    answer = Answer(written)
    length = answer.get("content-length")
    return (length is not None and len(answer.body) >= int(length)) or answer.status == 204


# -- always --------------------------------------------------------------------------------------


def test_every_answer_forbids_guessing_its_type(ask: Any) -> None:
    """Answers, refusals and streams; and none says what serves it."""
    send = ask(None)
    for method, target in [("GET", "/small"), ("GET", "/none"), ("PUT", "/small"),
                           ("GET", "/stream"), ("GET", "/health")]:  # fmt: skip
        answer = send(method, target)
        assert answer.get("x-content-type-options") == "nosniff", target
        assert answer.get("server") is None, target


def test_answers_of_inference_are_not_stored(ask: Any) -> None:
    """Errors neither; what operators ask is theirs to store."""
    send = ask(None)
    assert send("GET", "/small").get("cache-control") == "no-store"
    assert send("GET", "/none").get("cache-control") == "no-store"
    assert send("GET", "/health").get("cache-control") is None


def test_refusal_has_a_request_id_of_its_own(ask: Any) -> None:
    """Ours when the client sent none, in header and native body alike; never the same twice."""
    send = ask(None)
    ids = {send("GET", "/none").get("x-request-id") for _ in range(3)}
    assert len(ids) == 3
    assert all(name and name.startswith("req-") for name in ids)
    assert send("GET", "/none", x_request_id="mine").get("x-request-id") == "mine"
    native = send("GET", "/api/v1/none")
    assert (native.get("x-request-id") or "?").encode() in native.body


def test_nothing_is_added_unasked(ask: Any) -> None:
    """No CORS, no compression, whatever the client would like."""
    answer = ask(None)("GET", "/small", Origin="https://a.example", Accept_Encoding="gzip")
    assert answer.body == SMALL
    assert not [n for n in answer.headers if n.startswith("access-control")]
    assert answer.get("vary") is None


# -- CORS ----------------------------------------------------------------------------------------


def preflight(send: Ask, origin: str = APP.decode(), target: str = "/small") -> Answer:
    """What a browser asks before a JSON request with a key."""
    return send(
        "OPTIONS", target, Origin=origin, Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type,x-stainless-os",
    )  # fmt: skip


def test_preflight_allows_json_and_authorization(ask: Any) -> None:
    """By name, since a wildcard does not cover Authorization; without a body."""
    answer = preflight(ask(Policy(origins=[APP.decode()], max_age_s=60)))
    assert answer.status == 204
    assert answer.get("access-control-allow-origin") == APP.decode()
    allowed = answer.get("access-control-allow-headers") or ""
    assert {"authorization", "content-type"} <= {*allowed.split(",")}
    assert "POST" in (answer.get("access-control-allow-methods") or "")
    assert answer.get("access-control-max-age") == "60"
    assert answer.get("access-control-allow-credentials") is None
    vary = {*(answer.get("vary") or "").split(", ")}
    assert {"origin", "access-control-request-method", "access-control-request-headers"} <= vary
    assert answer.get("content-length") in (None, "0")
    assert answer.body == b""


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://app.example.evil", "http://app.example", "null",
     "https://app.example/", "https://app.example:444"],
)  # fmt: skip
def test_other_origins_are_told_nothing(ask: Any, origin: str) -> None:
    """Neither before the request nor in its answer; caches are told that it matters."""
    send = ask(Policy(origins=[APP.decode()]))
    for answer in (preflight(send, origin), send("GET", "/small", Origin=origin)):
        assert not [n for n in answer.headers if n.startswith("access-control")]
        assert "origin" in (answer.get("vary") or "")


@pytest.mark.parametrize("target", ["/small", "/none", "/stream", "/big"])
def test_answers_errors_and_streams_name_the_origin(ask: Any, target: str) -> None:
    """Or a script could not read what went wrong."""
    answer = ask(Policy(origins=[APP.decode()]))("GET", target, Origin=APP.decode())
    assert answer.get("access-control-allow-origin") == APP.decode()
    assert "x-request-id" in (answer.get("access-control-expose-headers") or "")
    assert answer.get("vary") == "origin"


def test_any_origin_is_a_star_without_credentials(ask: Any) -> None:
    """The one that asked is not repeated."""
    send = ask(Policy(origins=["*"]))
    assert send("GET", "/small", Origin="null").get("access-control-allow-origin") == "*"
    assert preflight(send).get("access-control-allow-origin") == "*"


def test_credentials_go_with_a_named_origin_only(ask: Any) -> None:
    """A star beside them is as if it were not there."""
    send = ask(Policy(origins=["*", APP.decode()], credentials=True))
    for answer in (send("GET", "/small", Origin=APP.decode()), preflight(send)):
        assert answer.get("access-control-allow-origin") == APP.decode()
        assert answer.get("access-control-allow-credentials") == "true"
    stranger = send("GET", "/small", Origin="https://evil.example")
    assert stranger.get("access-control-allow-origin") is None
    only_star = ask(Policy(origins=["*"], credentials=True))
    assert preflight(only_star).status == 405


@pytest.mark.parametrize(
    ("pattern", "origin", "match"),
    [
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "https://example", False),
        ("https://*.example", "https://evil.com/.example", False),
        ("http://localhost:*", "http://localhost:3000", True),
        ("http://[::1]:3000", "http://[::1]:3000", True),
        ("http://[::1]:3000", "http://1:3000", False),
        ("https://a?example", "https://axexample", False),
    ],
)
def test_globs_have_one_special_sign(ask: Any, pattern: str, origin: str, match: bool) -> None:
    """A star, which stays inside the host."""
    answer = ask(Policy(origins=[pattern]))("GET", "/small", Origin=origin)
    assert (answer.get("access-control-allow-origin") == origin) is match


def test_odd_header_names_are_not_repeated(ask: Any) -> None:
    """What a client sent reaches a response only as names."""
    answer = ask(Policy(origins=["*"]))(
        "OPTIONS", "/small", Origin=APP.decode(), Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="a: b; <c>",
    )  # fmt: skip
    assert answer.status == 204
    assert answer.get("access-control-allow-headers") is None


def test_preflight_with_a_body_is_none(clock: Clock) -> None:
    """Nothing of any announced size is waited for."""
    front = FakeFront(clock, ENDPOINTS)
    front.edge.configure(EdgeLimits(), Policy(origins=["*"]))
    front.edge.use(front.edge.table)
    raw = request("OPTIONS", "/small", Origin="https://a", Access_Control_Request_Method="GET",
                  Content_Length="99999999999")  # fmt: skip
    client = front.connect()
    assert Answer(client.send(raw)).status == 413
    assert client.closed


# -- hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["api.example", "API.example:8080", "x.internal", "[::1]:80", "api.example."]
)
def test_trusted_host_is_served(ask: Any, host: str) -> None:
    """In any case, with any port."""
    policy = Policy(hosts=["api.example", "*.internal", "[::1]"])
    assert ask(policy)("GET", "/small", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "internal", "api.example.evil", "127.0.0.1", "[::2]"]
)
def test_other_host_is_misdirected(ask: Any, host: str) -> None:
    """421, with the origin's headers, and before any handler."""
    policy = Policy(hosts=["api.example", "*.internal", "[::1]"], origins=[APP.decode()])
    answer = ask(policy)("GET", "/small", Host=host, Origin=APP.decode())
    assert answer.status == 421
    assert b'"untrusted_host"' in answer.body
    assert answer.get("access-control-allow-origin") == APP.decode()
    assert preflight(ask(policy), target="/small").status == 204


# -- proxies -------------------------------------------------------------------------------------


def test_proxy_names_the_client_of_each_request(clock: Clock) -> None:
    """One connection carries requests of several; one without the header is the proxy's own."""
    front = FakeFront(clock, ENDPOINTS)
    front.edge.configure(EdgeLimits(), Policy(proxies=["127.0.0.0/8"]))
    front.edge.use(front.edge.table)
    client = front.connect()
    for sent, peer in [("203.0.113.1", b"203.0.113.1"), ("203.0.113.2", b"203.0.113.2"),
                       ("", b"127.0.0.1"), ("203.0.113.1", b"203.0.113.1")]:  # fmt: skip
        headers = {"X_Forwarded_For": sent} if sent else {}
        assert Answer(client.send(request("GET", "/peer", **headers))).body == peer


@pytest.mark.parametrize("header", ["X_Forwarded_For", "Forwarded"])
def test_forwarded_headers_of_strangers_are_ignored(ask: Any, header: str) -> None:
    """Whether others are trusted or nobody is."""
    for policy in (None, Policy(proxies=["10.0.0.0/8"])):
        answer = ask(policy)("GET", "/peer", **{header: "for=203.0.113.1"})
        assert b"203.0.113.1" not in answer.body


# -- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "plain"), [("/small", SMALL), ("/big", BIG)])
@pytest.mark.parametrize("coding", CODINGS)
def test_who_asks_gets_the_coding(ask: Any, target: str, plain: bytes, coding: str) -> None:
    """On the loop or beside it; the cache is told."""
    answer = ask(Policy(pack_from=100))("GET", target, Accept_Encoding=f"zstd, {coding};q=0.5")
    assert answer.get("content-encoding") == coding
    assert answer.get("vary") == "accept-encoding"
    assert len(answer.body) == int(answer.get("content-length") or -1)
    assert unpacked(coding, answer.body) == plain


@pytest.mark.parametrize("coding", CODINGS)
def test_each_event_of_a_compressed_stream_can_be_read_at_once(ask: Any, coding: str) -> None:
    """What has a coding already, and whole answers when only streams are asked for, stay."""
    send = ask(Policy(pack_streams=True))
    answer = send("GET", "/stream", Accept_Encoding=coding)
    assert answer.get("content-encoding") == coding
    assert answer.get("vary") == "accept-encoding"
    first, *rest = chunks(answer.body)
    assert unpacker(coding)(first) == EVENT
    assert unpacked(coding, first + b"".join(rest)) == EVENT
    assert send("GET", "/stream").get("content-encoding") is None
    assert send("GET", "/small", Accept_Encoding=coding).get("content-encoding") is None
    assert send("GET", "/packed", Accept_Encoding=coding).get("content-encoding") == "zstd"


def test_who_does_not_ask_gets_it_plain(ask: Any) -> None:
    """So does one whose answer is small, or a stream; the cache is told all the same."""
    send = ask(Policy(pack_from=400, origins=[APP.decode()]))
    for target, headers in [("/small", {}), ("/small", {"Accept_Encoding": "gzip;q=0"}),
                            ("/peer", {"Accept_Encoding": "gzip"}),
                            ("/stream", {"Accept_Encoding": "gzip"})]:  # fmt: skip
        answer = send("GET", target, **headers)
        assert answer.get("content-encoding") is None
        assert answer.get("vary") == "origin, accept-encoding"
    assert b"x" * 2000 in send("GET", "/stream", Accept_Encoding="gzip").body


def test_client_that_leaves_meanwhile_gets_nothing(clock: Clock) -> None:
    """The work beside the loop ends in silence."""

    async def main() -> None:
        front = FakeFront(clock, ENDPOINTS)
        front.edge.loop = asyncio.get_running_loop()
        front.edge.configure(EdgeLimits(), Policy(pack_from=1))
        front.edge.use(front.edge.table)
        failures: list[str] = []
        front.edge.loop.set_exception_handler(lambda _, what: failures.append(str(what)))
        client = Client(front)
        client.send(request("GET", "/big", Accept_Encoding="gzip"))
        client.transport.abort()
        front.loop.run()  # tells the connection
        await asyncio.get_running_loop().shutdown_default_executor()  # its work is done then
        await turns()
        assert client.transport.take() == b""
        assert not failures
        assert not front.crashes

    asyncio.run(main())


def test_head_has_no_body_and_no_coding(clock: Clock) -> None:
    """Its length is that of the plain answer."""
    front = FakeFront(clock, ENDPOINTS)
    front.edge.configure(EdgeLimits(), Policy(pack_from=1))
    front.edge.use(front.edge.table)
    answer = Answer(front.connect().send(request("HEAD", "/small", Accept_Encoding="gzip")))
    assert answer.body == b""
    assert answer.get("content-length") == str(len(SMALL))
    assert answer.get("content-encoding") is None
