"""Any body, chunked in any way and cut in any way, comes out as it went in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.http.dechunk import ChunkError, Dechunker

EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b' ; name="quoted"', b"\t;x"])
TRAILERS = st.lists(st.sampled_from([b"X-A: b\r\n", b"Expires:\r\n", b"X:  \xff\r\n"]), max_size=4)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at the given places, wrapped into range."""
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), EXTENSIONS, st.booleans()), max_size=8),
    TRAILERS,
    st.binary(max_size=20),
    st.lists(st.integers(0, 1 << 16), max_size=12),
)
def test_round_trip(
    chunks: list[tuple[bytes, bytes, bool]], trailers: list[bytes], after: bytes, places: list[int]
) -> None:
    """Body and remainder are exact, whatever the peer's style."""
    wire = b"".join(
        (b"%X" if upper else b"%04x") % len(body) + extension + b"\r\n" + body + b"\r\n"
        for body, extension, upper in chunks
    )
    wire += b"0\r\n" + b"".join(trailers) + b"\r\n"
    decoder = Dechunker()
    got = b""
    for piece in cut(wire, places):
        got += b"".join(decoder.feed(piece))
    assert got == b"".join(body for body, _, _ in chunks)
    assert decoder.done
    assert decoder.rest == b""
    whole = Dechunker()
    whole.feed(wire + after)
    assert whole.rest == after


ALIKE = st.sampled_from([b"data", b"five!", b"4\r\ndata", b"\r\n", b"0\r\n\r\n", b"a\r", b"\nb"])
PIECES = st.sampled_from(
    [b"4\r\ndata\r\n", b"4\r\ndata", b"5\r\nfive!\r\n", b"0\r\n", b"\r\n", b"X: y\r\n", b"4",
     b"\n", b"00\r\n", b"0\r\n\r\n"]
)  # fmt: skip


@given(
    st.lists(ALIKE, max_size=30), TRAILERS, st.binary(max_size=20),
    st.lists(st.integers(0, 1 << 16), max_size=6),
)  # fmt: skip
def test_chunks_of_sizes_seen_before(
    chunks: list[bytes], trailers: list[bytes], after: bytes, places: list[int]
) -> None:
    """Whole reads of chunks are exact, also where a chunk looks like framing."""
    wire = b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in chunks)
    wire += b"0\r\n" + b"".join(trailers) + b"\r\n"
    decoder = Dechunker()
    got = b"".join(part for piece in cut(wire, places) for part in decoder.feed(piece))
    assert got == b"".join(chunks)
    assert decoder.done
    whole = Dechunker()
    assert b"".join(whole.feed(wire + after)) == got
    assert whole.rest == after


@given(st.lists(PIECES, max_size=20).map(b"".join))
def test_nearly_framed_has_one_verdict(wire: bytes) -> None:
    """Bytes one at a time and all at once: the same body, the same end, the same refusal."""
    together, apart = Dechunker(), Dechunker()
    assert _fed(together, [wire]) == _fed(apart, [wire[i : i + 1] for i in range(len(wire))])
    assert together.done == apart.done


def _fed(decoder: Dechunker, reads: list[bytes]) -> tuple[bytes, bool]:
    body = b""
    for piece in reads:
        if decoder.done:
            break
        try:
            body += b"".join(decoder.feed(piece))
        except ChunkError:
            return b"", True
    return body, False


@given(st.binary(max_size=200), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_noise_has_one_verdict(noise: bytes, places: list[int]) -> None:
    """Nothing but ``ChunkError`` comes out, and cutting does not change what comes before it."""

    def verdict(pieces: list[bytes]) -> tuple[bytes, bool, bool]:
        decoder, body, broken = Dechunker(), b"", False
        for piece in pieces:
            if decoder.done:
                break
            try:
                body += b"".join(decoder.feed(piece))
            except ChunkError:
                broken = True
                break
        return body, decoder.done, broken

    at_once, in_pieces = verdict([noise]), verdict(cut(noise, places))
    if not at_once[2]:
        assert in_pieces == at_once
    else:
        assert in_pieces[2] or not in_pieces[1]
