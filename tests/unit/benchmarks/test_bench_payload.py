"""The request every load sends."""

import json

import httptools
import pytest

from benchmarks.payload import DIGITS, MESSAGES, PATH, Payload
from tpo_mp.dialects import anthropic_messages

URL = "http://127.0.0.1:8105"


def parsed(raw: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Parse one request; fails unless exactly one whole message is there."""
    seen: dict[bytes, bytes] = {}
    body: list[bytes] = []
    done: list[bytes] = []

    class Events:
        url = b""

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_header(self, name: bytes, value: bytes) -> None:
            seen[name.lower()] = value

        def on_body(self, piece: bytes) -> None:
            body.append(piece)

        def on_message_complete(self) -> None:
            done.append(self.url)

    httptools.HttpRequestParser(Events()).feed_data(raw)
    assert len(done) == 1
    return done[0], seen, b"".join(body)


def request(payload: Payload, counter: int) -> bytes:
    before, after = payload.pieces(URL)
    return before + b"%0*d" % (DIGITS, counter) + after


@pytest.mark.parametrize("stream", [False, True])
def test_request_is_whole_and_about_260_bytes_of_body(stream):
    """The content length is that of the body, and the body is the size the gates name."""
    path, headers, body = parsed(request(Payload("0a1b2c3d", stream), 7))
    assert path == PATH.encode()
    assert headers[b"host"] == b"127.0.0.1:8105"
    assert int(headers[b"content-length"]) == len(body)
    assert 220 <= len(body) <= 280
    assert json.loads(body).get("stream", False) is stream


def test_same_question_in_another_dialect():
    """Anthropic clients keep the system prompt beside the messages."""
    path, headers, body = parsed(request(Payload("0a1b2c3d", True, path=MESSAGES), 7))
    assert path == MESSAGES.encode()
    assert int(headers[b"content-length"]) == len(body)
    assert 220 <= len(body) <= 280
    asked = anthropic_messages.decode_request(body)
    assert asked.stream
    assert asked.system
    assert len(asked.messages) == 1


def test_bodies_differ_by_counter_and_by_tag():
    """No body is ever sent twice to one gateway."""
    bodies = {Payload(tag).body(n) for tag in ("aa", "bb") for n in range(10)}
    assert len(bodies) == 20


def test_body_and_pieces_agree():
    """Both ways to render a body are the same bytes."""
    payload = Payload("tag", extra={"temperature": 0})
    assert parsed(request(payload, 5))[2] == payload.body(5)
    assert json.loads(payload.body(5))["temperature"] == 0


def test_headers_are_added():
    """A session header reaches the head."""
    raw = request(Payload("tag", headers={"X-Session-Id": "bench-000001"}), 1)
    assert parsed(raw)[1][b"x-session-id"] == b"bench-000001"
