"""Bad input to every route of the table: refused in its family's words, and life goes on.

After each refusal the connection either answers the next request or closes as announced; the
shared gateway's own end checks that nothing of this left a traceback.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.api import endpoints
from tests.support.bad_input import (
    BODIES,
    ask,
    encoded,
    name,
    names_field,
    path_of,
    properties,
    refused,
    request,
    right_values,
    sample,
    wrong_values,
)
from tests.support.gateway import Gateway
from tests.support.raw import RawClient
from tpo_mp.http.endpoints import Endpoint

EVERY = endpoints()
LANES = ["fast", "full"]
LIMIT = 32 << 20


def spoiled(endpoint: Endpoint) -> dict[str, bytes]:
    """Bodies that no parser should take, round a good one."""
    body = encoded(sample(endpoint))
    open_ended = body[:-1]
    return {
        "empty": b"",
        "null": b"null",
        "array": b"[]",
        "number": b"7",
        "text": b'"hello"',
        "nested arrays": open_ended + b',"metadata":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "nested objects": open_ended + b',"metadata":' + b'{"a":' * 9000 + b"1" + b"}" * 9001,
        "4 million digits": open_ended + b',"max_tokens":' + b"9" * 4_000_000 + b"}",
        "NaN": open_ended + b',"temperature":NaN}',
        "Infinity": open_ended + b',"temperature":-Infinity}',
        "1e999": open_ended + b',"temperature":1e999}',
        "byte order mark": b"\xef\xbb\xbf" + body,
        "UTF-16": body.decode().encode("utf-16"),
        "UTF-32": body.decode().encode("utf-32"),
        "invalid UTF-8": body.replace(b"hello", b"\xff\xfe"),
        "invalid UTF-8 that nobody reads": open_ended + b',"x":"\xff"}',
        "lone surrogate": body.replace(b"hello", rb"\ud800"),
        "NUL": body + b"\0",
        "trailing garbage": body + b"}",
        "two values": body + body,
        "cut short": body[:-3],
        "single quotes": body.replace(b'"', b"'"),
        "a comment": b"/* */" + body,
        "small objects": open_ended + b',"metadata":[' + b"{}," * 500_000 + b"{}]}",
        "form": b"model=echo&prompt=hello",
    }


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_what_is_no_json_object_is_refused(
    echo_gateway: Gateway, endpoint: Endpoint, lane: str
) -> None:
    """400 or 422 in the family's envelope, whatever a parser might trip over."""
    for case, body in spoiled(endpoint).items():
        if body == encoded(sample(endpoint)):
            continue  # it has no text that could be spoiled
        with RawClient(echo_gateway.url, timeout_s=30) as client:
            reply = ask(client, request(endpoint, body, lane=lane))
        refused(endpoint, reply)
        assert reply.status in (400, 422), case


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_value_that_breaks_the_schema_is_refused_and_named(
    echo_gateway: Gateway, endpoint: Endpoint
) -> None:
    """Each field with every wrong type and bound, judged by the published schema."""
    found = list(wrong_values(endpoint))
    assert len(found) > 20
    with RawClient(echo_gateway.url, timeout_s=30) as client:
        for field, value in found:
            reply = ask(client, request(endpoint, encoded(sample(endpoint) | {field: value})))
            error = refused(endpoint, reply)
            assert names_field(endpoint, error, field), (field, value, error)


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_value_that_fits_the_schema_is_no_defect(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Each field with every right type: answered, or refused for what it asks for."""
    with RawClient(echo_gateway.url, timeout_s=30) as client:
        for field, value in right_values(endpoint):
            reply = ask(client, request(endpoint, encoded(sample(endpoint) | {field: value})))
            if reply.status not in {o.status for o in endpoint.outcomes}:
                # A deadline of a millisecond is kept; nothing else may fail.
                late = field in ("deadline_secs", "timeout_seconds")
                refused(endpoint, reply, 400, 404, 422, *((504,) if late else ()))


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_missing_field_is_named(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Without each field of the example in turn."""
    for field in endpoint.example:
        body = sample(endpoint)
        del body[field]
        if field == "model" and endpoint.family == "native":
            continue  # the first model of the config is meant
        with RawClient(echo_gateway.url) as client:
            reply = ask(client, request(endpoint, encoded(body)))
        if endpoint.example[field] is not None and reply.status != 200:
            assert names_field(endpoint, refused(endpoint, reply), field)
        else:
            assert field not in _required(endpoint)


def _required(endpoint: Endpoint) -> set[str]:
    return {"model", "messages", "max_tokens"} & set(properties(endpoint))


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_unknown_field_is_passed_or_named(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Provider bodies may hold more than we know; native ones may not."""
    body = sample(endpoint) | {"surprise": {"deep": [1]}}
    with RawClient(echo_gateway.url) as client:
        reply = ask(client, request(endpoint, encoded(body)))
    if endpoint.family == "native":
        assert names_field(endpoint, refused(endpoint, reply, 422), "surprise")
    elif reply.status != 200:
        refused(endpoint, reply, 400)


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_duplicate_keys_are_no_defect(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """The last one counts, as every JSON parser has it."""
    body = b'{"model":7,' + encoded(sample(endpoint))[1:]
    with RawClient(echo_gateway.url) as client:
        reply = ask(client, request(endpoint, body))
    assert reply.status in (200, 400, 422), reply


MEDIA = [
    None,
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=" + "-" * 70,
    "application/json; charset=utf-7",
    "application/json; charset=utf-16",
    "application/jsonp",
    "application/json, text/plain",
    "application/xml",
]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("endpoint", BODIES, ids=name)
def test_other_media_types_are_415(echo_gateway: Gateway, endpoint: Endpoint, lane: str) -> None:
    """A JSON route takes JSON, uncompressed; the header is named."""
    body = encoded(sample(endpoint))
    headers: list[dict[str, Any]] = [{"Content-Type": media} for media in MEDIA]
    headers += [{"Content-Encoding": coding} for coding in ("gzip", "br", "gzip, gzip")]
    for lines in headers:
        with RawClient(echo_gateway.url) as client:
            reply = ask(client, request(endpoint, body, lines, lane=lane))
        error = refused(endpoint, reply, 415)
        assert names_field(endpoint, error, next(iter(lines)).lower()), error


@pytest.mark.parametrize("endpoint", EVERY, ids=name)
def test_body_over_the_routes_limit_is_413(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Each route's own limit, announced: refused before the body, and the connection closes."""
    limit = endpoint.max_body_bytes or LIMIT
    with RawClient(echo_gateway.url) as client:
        lines = {"Content-Length": str(limit + 1), "Content-Type": "application/json"}
        reply = ask(client, request(endpoint, None, lines) + b"{", endpoint.method)
    refused(endpoint, reply, 413)
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("endpoint", [e for e in EVERY if e.max_body_bytes], ids=name)
def test_chunked_body_over_the_routes_limit_is_413(
    echo_gateway: Gateway, endpoint: Endpoint
) -> None:
    """The limit holds where no length is announced."""
    body = b" " * (endpoint.max_body_bytes + 1)
    with RawClient(echo_gateway.url) as client:
        reply = ask(client, request(endpoint, body, lane="full"), endpoint.method)
    refused(endpoint, reply, 413)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("endpoint", [e for e in EVERY if e.request is None], ids=name)
def test_body_nobody_asked_for_is_skipped(
    echo_gateway: Gateway, endpoint: Endpoint, lane: str
) -> None:
    """It does not become the next request."""
    smuggled = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    with RawClient(echo_gateway.url) as client:
        reply = ask(client, request(endpoint, smuggled, lane=lane), endpoint.method)
    assert reply.status in {200, 202, 404, *endpoint.errors}, reply


QUERIES = {
    "one long value": "a=" + "x" * 8200,
    "10 000 parameters": "&".join(["a=b"] * 2000),
    "257 parameters": "&".join(f"p{i}=1" for i in range(257)),
    "NUL": "limit=%00&wait=%00&order=%00&after=%00",
    "invalid UTF-8": "limit=%ff&wait=%ff&order=%ff&after=%ff%fe",
    "percent signs": "limit=%&wait=%zz&after=%%%",
    "line ends": "a=%0d%0aX-Evil:%201",
    "nothing": "&&&===&",
    "not numbers": "limit=NaN&wait=NaN",
    "huge numbers": "limit=" + "9" * 400 + "&wait=1e999&after=" + "9" * 400,
    "negative": "limit=-1&wait=-1&after=-1",
    "twice": "limit=1&limit=2&wait=0&wait=1&order=asc&order=desc",
    "injection": "after='%20OR%201=1--&order=asc;drop",
}


@pytest.mark.parametrize("endpoint", EVERY, ids=name)
def test_bad_query_is_refused_or_ignored(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Nothing in a query is a defect, hangs, or comes back in a header."""
    body = None if endpoint.request is None else encoded(sample(endpoint))
    for case, query in QUERIES.items():
        with RawClient(echo_gateway.url) as client:
            raw = request(endpoint, body, path=f"{path_of(endpoint)}?{query}")
            reply = ask(client, raw, endpoint.method)
        if case in ("one long value", "10 000 parameters", "257 parameters"):
            refused(endpoint, reply, 414)
        elif reply.status not in (200, 202):
            refused(endpoint, reply, 400, 404, 422, *endpoint.errors)
        assert b"evil" not in reply.head.lower()


@pytest.mark.parametrize(
    "endpoint", [e for e in EVERY if any(p.place == "query" for p in e.parameters)], ids=name
)
def test_bad_parameter_is_named(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """A parameter that is read says so when it cannot be."""
    body = None if endpoint.request is None else encoded(sample(endpoint))
    for parameter in endpoint.parameters:
        if parameter.place != "query" or parameter.shape is str:
            continue
        value = "true" if parameter.name == "stream" else "%00nonsense"
        path = f"{path_of(endpoint, 'resp_1')}?{parameter.name}={value}"
        with RawClient(echo_gateway.url) as client:
            reply = ask(client, request(endpoint, body, path=path), endpoint.method)
        if reply.status != 404:  # what does not exist has no pages to ask for
            assert names_field(endpoint, refused(endpoint, reply), parameter.name)


LAST_IDS = ["", "x" * 8000, "-1", "99999999999999999999", "../../etc/passwd", "a b", "é".encode()]


@pytest.mark.parametrize("endpoint", EVERY, ids=name)
def test_bad_last_event_id_is_no_defect(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Where nothing can be resumed it is ignored, elsewhere refused."""
    body = None if endpoint.request is None else encoded(sample(endpoint))
    for given in LAST_IDS:
        text = given if isinstance(given, str) else given.decode("latin-1")
        with RawClient(echo_gateway.url) as client:
            raw = request(endpoint, body, {"Last-Event-ID": text})
            reply = ask(client, raw, endpoint.method)
        if reply.status not in (200, 202):
            refused(endpoint, reply, 400, 403, 404, *endpoint.errors)


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD"]


@pytest.mark.parametrize("endpoint", EVERY, ids=name)
def test_other_methods_are_405_with_the_list(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """``Allow`` names exactly what the path has."""
    offered = {e.method for e in EVERY if e.template == endpoint.template}
    # ``/v1/responses/{id}`` and the like are paths of their own; no other template matches.
    for method in METHODS:
        if method in offered or (method == "HEAD" and "GET" in offered):
            continue
        with RawClient(echo_gateway.url) as client:
            lines = {"Content-Length": "0"}
            raw = request(endpoint, None, lines).replace(
                endpoint.method.encode(), method.encode(), 1
            )
            reply = ask(client, raw, method)
        assert reply.status == 405, (method, reply)
        assert set(reply.headers["allow"].split(", ")) == offered
        if method != "HEAD":
            refused(endpoint, reply, 405)


@pytest.mark.parametrize("endpoint", EVERY, ids=name)
def test_other_spellings_of_a_path_are_404(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """Nobody gets in, or round a rule, by spelling."""
    path = path_of(endpoint)
    spellings = [path + "/", "/" + path, path.upper(), path + "%00", path + ";x", path + "%2f..",
                 path + ".", "/x/.." + path, path.replace("/v1/", "/v1//")]  # fmt: skip
    for spelling in spellings:
        if spelling == path or (path == "/" and spelling in ("//", "/")):
            continue
        with RawClient(echo_gateway.url) as client:
            raw = request(endpoint, None, {"Content-Length": "0"}, path=spelling)
            reply = ask(client, raw, endpoint.method)
        if "{" in endpoint.template and reply.status != 400:
            assert reply.status in (404, 405), (spelling, reply)  # another name, not another route
        else:
            assert reply.status in (400, 404, 405), (spelling, reply)


NAMES = ["%00", "a" * 3000, "%2e%2e", "%F0%9F%8E%88", "%ff", "00000000-0000-4000-8000-0", "%0d%0a",
         "' OR 1=1", "{id}", "-1", "%25s", "resp_" + "x" * 300]  # fmt: skip


@pytest.mark.parametrize("endpoint", [e for e in EVERY if "{" in e.template], ids=name)
def test_names_in_a_path_are_data(echo_gateway: Gateway, endpoint: Endpoint) -> None:
    """What names nothing is 404, what cannot be a name 400, in the family's words."""
    for given in NAMES:
        path = endpoint.template.replace("{model}", "{id}")
        path = path.replace("{id}", given.replace(" ", "%20").replace("{id}", "%7Bid%7D"))
        with RawClient(echo_gateway.url) as client:
            reply = ask(client, request(endpoint, None, path=path), endpoint.method)
        refused(endpoint, reply, 400, 404)


def test_there_is_something_to_refuse() -> None:
    """The table was not empty."""
    assert len(BODIES) >= 9
    assert len(EVERY) >= 36
    assert json.loads(encoded(sample(BODIES[0])))
