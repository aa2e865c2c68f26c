"""What an upstream is sent, and what of its answer a client sees: models, usage, keys, fields."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import RawReply, ask, chat
from tests.support.shards import CHAT, WAYS, Way, render, ways
from tests.support.toml import ECHO, NO_CACHE, backend, section
from tests.support.upstream import Seen, Upstream, stream_body
from tests.support.wait import wait_for

LITERAL = "sk-canary-literal-5cf1a3"
FROM_ENV = "sk-canary-env-77d01b"
FROM_FILE = "sk-canary-file-02e8c4"
CLIENT = "sk-client-own-9b44f0"
USAGE = {"stream_options": {"include_usage": True}}


@dataclass(slots=True)
class Bench:
    """One gateway whose backends differ in what they may send, and the upstream behind all."""

    gateway: Gateway
    upstream: Upstream
    ways: dict[str, Way]
    access_log: Path

    def last(self) -> Seen:
        """The newest request upstream."""
        return self.upstream.seen[-1]


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """Two shards, one backend per manner."""
    # The module may be taken up twice by one test process.
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    (folder / "key").write_text(FROM_FILE + "\n")
    access_log = folder / "access.log"
    with Upstream() as upstream:
        url = upstream.base_url
        config = (
            NO_CACHE
            + ECHO
            + "".join(
                (
                    backend("none", url),
                    backend("literal", url, api_key=LITERAL),
                    backend("env", url, api_key={"env": "CANARY_KEY"}),
                    backend("file", url, api_key={"file": "key"}),
                    backend("client", url, api_key={"client": True}),
                    backend("extra", url, headers={"X-Team": "a%sb"}, query={"api-version": "7&x"}),
                    backend("mapped", url, "public-*", model_map={"public-1": "secret-model"}),
                    backend("unasked", url, include_usage=False),
                    section("[observability]", access_log=str(access_log), log_format="json"),
                )
            )
        )
        with Gateway(folder, config=config, workers=2, env={"CANARY_KEY": FROM_ENV}) as gateway:
            yield Bench(gateway, upstream, ways(gateway.url), access_log)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, bench: Bench) -> Way:
    """Each of the four ways in turn."""
    return bench.ways[request.param]


# -- credentials ---------------------------------------------------------------------------------

KEYS = {"none": None, "literal": LITERAL, "env": FROM_ENV, "file": FROM_FILE}
CANARIES = (LITERAL, FROM_ENV, FROM_FILE)


@pytest.mark.parametrize("model", KEYS)
def test_upstream_sees_our_credential_and_never_the_clients(
    bench: Bench, way: Way, model: str
) -> None:
    """Whatever the caller sends as authorization stays with us."""
    headers = {"Authorization": f"Bearer {CLIENT}", "X-Api-Key": CLIENT, "Cookie": CLIENT}
    for stream in (False, True):
        reply = way.ask(chat("hello", model, stream=stream), headers)
        assert reply.status == 200, reply
        sent = bench.last()
        key = KEYS[model]
        assert sent.headers.get("authorization") == (f"Bearer {key}" if key else None)
        assert CLIENT not in str(sent.headers)
        assert CLIENT not in sent.body.decode()


def test_client_credential_is_forwarded_only_where_that_is_configured(
    bench: Bench, way: Way
) -> None:
    """``api_key = { client = true }`` sends the caller's own header, or none at all."""
    way.ask(chat("hello", "client"), {"Authorization": f"Bearer {CLIENT}"})
    assert bench.last().headers["authorization"] == f"Bearer {CLIENT}"
    way.ask(chat("hello", "client"))
    assert "authorization" not in bench.last().headers


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credential_is_the_clients_business_only_if_it_was_the_clients(
    bench: Bench, way: Way, status: int
) -> None:
    """Ours: 502 without the upstream's words.  The client's: as it came."""
    script = {"upstream": {"mode": "status", "status": status}}
    ours = way.ask(chat("x", "literal", metadata=script))
    assert ours.status == 502
    assert b"upstream says no" not in ours.body
    theirs = way.ask(chat("x", "client", metadata=script), {"Authorization": f"Bearer {CLIENT}"})
    assert theirs.status == status
    assert theirs.json()["error"]["message"] == "upstream says no"


def test_our_credentials_are_nowhere_a_client_or_an_operator_reads(bench: Bench) -> None:
    """Replies, errors, lists, metrics, letters, status, logs, state: no canary in any of them."""
    said: list[RawReply] = []
    for model in KEYS:
        for mode in ("answer", "status", "html", "cut", "malformed_json"):
            for stream in (False, True):
                script = {"upstream": {"mode": mode, "status": 401 if stream else 500}}
                body = chat("find it", model, stream=stream, metadata=script)
                said.append(bench.gateway.ask(CHAT, body))
    said += [bench.gateway.ask(path) for path in ("/v1/models", "/metrics", "/health", "/")]
    said.append(ask(bench.gateway.ops, "/metrics"))
    said.append(wait_for(lambda: _letters(bench), 5, "dead letters"))
    texts = [reply.head + reply.body for reply in said]
    texts.append(json.dumps(bench.gateway.status()).encode())
    texts.append(bench.gateway.tpo("check", "--config", str(bench.gateway.config_path))
                 .stdout.encode())  # fmt: skip
    wait_for(bench.access_log.exists, 5, "an access log")
    files = [bench.access_log, bench.gateway.stdout_path, bench.gateway.stderr_path]
    files += [p for p in bench.gateway.state_dir.rglob("*") if p.is_file()]
    for path in files:
        with suppress(FileNotFoundError):  # renamed or done with meanwhile
            texts.append(path.read_bytes())
    for canary in CANARIES:
        assert not [text[:200] for text in texts if canary.encode() in text], canary


def _letters(bench: Bench) -> RawReply | None:
    reply = bench.gateway.ask("/api/v1/dlq")
    return reply if reply.json()["count"] else None


# -- fields --------------------------------------------------------------------------------------


def test_configured_headers_and_query_are_sent(bench: Bench, way: Way) -> None:
    """As they are written, escaped where a URL needs it."""
    assert way.ask(chat("x", "extra")).status == 200
    assert bench.last().headers["x-team"] == "a%sb"
    assert bench.last().path == "/v1/chat/completions?api-version=7%26x"


@pytest.mark.parametrize("stream", [False, True])
def test_mapped_model_is_asked_for_by_its_upstream_name(
    bench: Bench, way: Way, stream: bool
) -> None:
    """Names in the map are replaced, others that match pass."""
    for model, upstream_model in (("public-1", "secret-model"), ("public-2", "public-2")):
        body = chat("x", model, stream=stream, seed=7, x_unknown=[1, {"model": "kept"}])
        assert way.ask(body).status == 200
        sent = bench.last().json()
        assert sent["model"] == upstream_model
        assert (sent["seed"], sent["x_unknown"]) == (7, [1, {"model": "kept"}])


def test_body_is_passed_byte_for_byte_when_nothing_must_change(bench: Bench, way: Way) -> None:
    """Spaces, order, escapes and unknown fields arrive as they were sent."""
    raw = (
        b'{ "model" :"none", "x":1e5,\n "messages":[{"content":"\\u00e9\xc3\xa9","role":"user"}]'
        b',"tools":[{"type":"function"}], "x":2}'
    )
    with way.open() as client:
        head = render(client.host, 0, {"X-Session-Id": way.session}, "fast").partition(b"\r\n\r\n")
        client.send(
            head[0].replace(b"Content-Length: 1", b"Content-Length: %d" % len(raw)) + head[1] + raw
        )
        assert client.read_reply("POST").status == 200
    assert bench.last().body == raw


ROUTING = {
    "api_base": "http://169.254.169.254/", "base_url": "http://127.0.0.1:1/v1",
    "api_key": "sk-other", "api_version": "1", "extra_headers": {"Authorization": "Bearer x"},
    "mock_response": "free tokens", "organization": "org-x", "timeout": 0.001,
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_would_steer_the_upstream_are_stripped(
    bench: Bench, way: Way, stream: bool
) -> None:
    """Neither obeyed nor passed on; everything else stays."""
    body = chat("real question", "literal", stream=stream, seed=3) | ROUTING
    reply = way.ask(body)
    assert reply.status == 200
    assert b"free tokens" not in reply.body
    sent = bench.last()
    assert set(sent.json()) - {"stream_options"} == {"model", "messages", "stream", "seed"}
    assert sent.headers["authorization"] == f"Bearer {LITERAL}"


# -- usage ---------------------------------------------------------------------------------------


def test_usage_is_asked_for_noted_and_kept_from_a_client_that_did_not_ask(
    bench: Bench, way: Way
) -> None:
    """The stream is byte for byte what it would have been; the tokens are in the metrics."""
    for more in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
        before = _tokens(bench, "none")
        body = chat("count me", "none", stream=True, **more)
        reply = way.ask(body)
        sent = bench.last().json()
        assert sent["stream_options"] == {"include_usage": True}
        assert reply.body == stream_body(body, _number(reply))
        assert b'"usage"' not in reply.body
        wait_for(partial(_counted, bench, "none", before), 5, "the tokens")


def test_usage_the_client_asked_for_reaches_it(bench: Bench, way: Way) -> None:
    """The request passes as it is, and so does the last chunk."""
    before = _tokens(bench, "none")
    body = chat("count me", "none", stream=True, **USAGE)
    reply = way.ask(body)
    assert reply.body == stream_body(body, _number(reply))
    assert json.loads(reply.events[-2])["usage"]["total_tokens"] == 12
    wait_for(partial(_counted, bench, "none", before), 5, "the tokens")


def test_usage_is_not_asked_for_where_that_is_switched_off(bench: Bench, way: Way) -> None:
    """``include_usage = false`` leaves the request alone."""
    body = chat("do not count", "unasked", stream=True)
    reply = way.ask(body)
    assert bench.last().json() == body
    assert reply.body == stream_body(body, _number(reply))


def test_tokens_of_unary_replies_are_counted_by_backend(bench: Bench, way: Way) -> None:
    """Each backend has its own count."""
    none, literal = _tokens(bench, "none"), _tokens(bench, "literal")
    assert way.ask(chat("x", "literal")).json()["usage"]["prompt_tokens"] == 7
    wait_for(partial(_counted, bench, "literal", literal), 5, "the tokens")
    assert _tokens(bench, "none") == none


def test_tokens_are_in_the_access_log(bench: Bench, way: Way) -> None:
    """One line per call, with what it cost."""
    call_id = way.ask(chat("x", "env", stream=True)).headers["x-tpo-call-id"]
    line = wait_for(lambda: _line(bench, call_id), 5, "its line")
    assert line["prompt_tokens"] == 7
    assert line["completion_tokens"] == 4, line


def _line(bench: Bench, call_id: str) -> dict[str, Any] | None:
    if not bench.access_log.exists():
        return None
    for text in bench.access_log.read_text().splitlines():
        if call_id in text:
            found: dict[str, Any] = json.loads(text)
            return found
    return None


def _tokens(bench: Bench, name: str) -> tuple[float, float]:
    page = bench.gateway.metrics()
    prompt = metric(page, "tpo_prompt_tokens_total", backend=name)
    return prompt, metric(page, "orchestrator_tokens_generated_total", worker_type=name)


def _counted(bench: Bench, name: str, before: tuple[float, float]) -> bool:
    return _tokens(bench, name) == (before[0] + 7, before[1] + 5)


def _number(reply: RawReply) -> int:
    """The upstream's number of the request, from the id in its reply."""
    return int(json.loads(reply.events[0])["id"].rpartition("-")[2])
