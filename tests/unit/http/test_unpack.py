"""Answers that an upstream compressed unasked: what is behind the pool sees text, or a failure."""

from __future__ import annotations

import asyncio
import gzip
import sys

import pytest

from tests.support.codings import CODINGS, packed
from tests.support.fake_net import Clock
from tests.support.raw_upstream import chunk
from tpo_mp.http.unpack import MOST_BYTES

from .test_upstream import OK, WHOLE, Net, Taken, feed, tell

BODY = b'{"usage": {"prompt_tokens": 3}, "text": "' + b"word " * 400 + b'"}'
ALL = [*CODINGS, "raw deflate"]


def head(coding: str, line: bytes) -> bytes:
    """An answer's head; "raw deflate" is how some say deflate."""
    name = coding.removeprefix("raw ").encode()
    return OK + b"Content-Encoding: %b\r\n%b\r\n\r\n" % (name, line)


def whole(coding: str, data: bytes) -> bytes:
    """An answer with a length."""
    return head(coding, b"Content-Length: %d" % len(data)) + data


def heard(clock: Clock, *reads: bytes, cancel_at: int = -1) -> Taken:
    """What an exchange hears of these reads; the connection then serves the next, if it is kept."""
    taken = Taken()
    taken.cancel_at = cancel_at

    async def story(net: Net) -> None:
        _, transport = await net.send(taken)
        feed(transport, *reads)
        assert taken.connection is None or taken.cancel_at >= 0
        if not transport.closing:
            after, again = await net.send()
            assert again is transport
            feed(again, WHOLE)
            assert (after.body, after.end) == (b"{}", "whole")

    tell(story, clock)
    assert taken.over
    return taken


@pytest.mark.parametrize("coding", ALL)
def test_whole_answer_is_told_as_text(clock: Clock, coding: str) -> None:
    """In one callback, and the connection is kept."""
    taken = heard(clock, whole(coding, b"".join(packed(coding, BODY))))
    assert (taken.body, taken.end) == (BODY, "whole")
    assert taken.head is not None
    assert b"encoding" not in taken.head.passed


@pytest.mark.parametrize("coding", ALL)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_stream_is_told_as_it_comes(clock: Clock, coding: str, step: int) -> None:
    """Cut anywhere, chunked or by its length."""
    pieces = packed(coding, b"data: 1\n\n", b"data: 2\n\n")
    text = b"data: 1\n\ndata: 2\n\n"
    framed = b"".join(chunk(piece) for piece in pieces if piece) + b"0\r\n\r\n"
    parts = [framed[at : at + step] for at in range(0, len(framed), step)]
    taken = heard(clock, head(coding, b"Transfer-Encoding: chunked"), *parts)
    assert (taken.body, taken.end) == (text, "ended")
    data = b"".join(pieces)
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    taken = heard(clock, head(coding, b"Content-Length: %d" % len(data)), *parts)
    assert (taken.body, taken.end) == (text, "ended")


@pytest.mark.parametrize("coding", ALL)
def test_an_event_is_told_before_the_next_comes(clock: Clock, coding: str) -> None:
    """Nothing is held back."""
    one, two, end = packed(coding, b"data: 1\n\n", b"data: 2\n\n")

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, head(coding, b"Transfer-Encoding: chunked"), chunk(one))
        assert taken.body == b"data: 1\n\n"
        feed(transport, chunk(two), chunk(end) if end else b"", b"0\r\n\r\n")
        assert taken.end == "ended"

    tell(story, clock)


@pytest.mark.parametrize("coding", ALL)
def test_what_is_no_such_coding_is_a_failure(clock: Clock, coding: str) -> None:
    """Text under its name, half of it, or one small read that says megabytes."""
    lie = b"\xff" + BODY
    said = b"".join(packed(coding, BODY))
    bomb = b"".join(packed(coding, b"x" * (4 * MOST_BYTES)))
    for data, reason in ((lie, "bad_framing"), (said[:-9], "cut_off"), (bomb, "endless_reply")):
        assert heard(clock, whole(coding, data)).reason == reason
        head_of = head(coding, b"Transfer-Encoding: chunked")
        assert heard(clock, head_of, chunk(data) + b"0\r\n\r\n").reason == reason


@pytest.mark.parametrize("coding", [b"zstd", b"gzip, br", b"gzip\r\nContent-Encoding: br"])
def test_a_coding_that_nobody_knows_is_a_failure(clock: Clock, coding: bytes) -> None:
    """And none of it is handed on."""
    said = OK + b"Content-Encoding: %b\r\nContent-Length: 2\r\n\r\n{}" % coding
    assert heard(clock, said).reason == "unknown_coding"


def test_br_without_its_package_is_a_failure(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "brotli", None)
    assert heard(clock, whole("br", b"x")).reason == "unknown_coding"


@pytest.mark.parametrize("name", [b"identity", b"Identity", b""])
def test_identity_is_no_coding(clock: Clock, name: bytes) -> None:
    """It is said of plain text."""
    taken = heard(clock, OK + b"Content-Encoding: %b\r\nContent-Length: 2\r\n\r\n{}" % name)
    assert (taken.body, taken.end) == (b"{}", "whole")


def test_an_empty_answer_has_nothing_to_undo(clock: Clock) -> None:
    """A coding is said of an error without a body, too."""
    taken = heard(clock, whole("gzip", b""))
    assert (taken.body, taken.end) == (b"", "whole")


def test_who_leaves_meanwhile_hears_nothing_more(clock: Clock) -> None:
    """The connection is dropped."""
    pieces = [gzip.compress(b"data: 1\n\n")]
    taken = heard(
        clock, head("gzip", b"Transfer-Encoding: chunked"), *(chunk(p) for p in pieces),
        b"0\r\n\r\n", cancel_at=1,
    )  # fmt: skip
    assert (taken.body, taken.end) == (b"data: 1\n\n", "")


def test_pool_and_client_see_one_failure(clock: Clock) -> None:
    """An upstream that breaks off inside the coding."""
    one, *_ = packed("gzip", b"data: 1\n\n")

    async def story(net: Net) -> None:
        taken, transport = await net.send()
        feed(transport, head("gzip", b"Transfer-Encoding: chunked"), chunk(one))
        transport.lose()
        await asyncio.sleep(0)
        assert (taken.body, taken.reason) == (b"data: 1\n\n", "cut_off")
        assert net.origin.count == 0

    tell(story, clock)
