"""Chunked bodies: every byte in order, nothing outside the grammar."""

from __future__ import annotations

import pytest

from tpo_mp.http.dechunk import ChunkError, Dechunker

WHOLE = b"5;name=value\r\nhello\r\n1\r\n \r\nA \r\nwonderful \r\n0\r\nX-Trailer: y\r\n\r\nGET /"


def body_of(*reads: bytes) -> tuple[bytes, Dechunker]:
    """Feed reads to a new decoder."""
    decoder = Dechunker()
    return b"".join(part for data in reads for part in decoder.feed(data)), decoder


@pytest.mark.parametrize("cut", range(len(WHOLE) - 5))
def test_body_is_the_same_wherever_it_is_cut(cut: int) -> None:
    """Sizes, extensions, line ends and trailers may be split anywhere."""
    body, decoder = body_of(WHOLE[:cut], WHOLE[cut:])
    assert body == b"hello wonderful "
    assert decoder.done
    assert decoder.rest == b"GET /"


def test_bytes_one_at_a_time() -> None:
    """The slowest peer is understood too."""
    body, decoder = body_of(*(WHOLE[i : i + 1] for i in range(len(WHOLE) - 5)))
    assert body == b"hello wonderful "
    assert decoder.done
    assert decoder.rest == b""


def test_chunk_is_passed_on_before_it_is_complete() -> None:
    """A slow chunk does not wait for its end."""
    decoder = Dechunker()
    assert decoder.feed(b"a\r\n01234") == [b"01234"]
    assert decoder.feed(b"56789\r") == [b"56789"]
    assert decoder.feed(b"\n0\r\n\r\n") == []
    assert decoder.done


def test_no_body_at_all() -> None:
    """A last chunk alone."""
    assert body_of(b"0\r\n\r\n")[0] == b""


@pytest.mark.parametrize(
    "broken",
    [
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5\nhello\n",
        b"5\r\nhello\n0\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\r\r\n",
        b"\r\n",
        b" 5\r\nhello\r\n",
        b";x\r\n",
        b"zz\r\n",
        b"5 5\r\nhello\r\n",
        b"FFFFFFFFF\r\n",
        "\u0665\r\nhello\r\n".encode(),
        b"5;a\nb\r\nhello\r\n",
        b"5;a\x00b\r\nhello\r\n",
        b"5;" + b"x" * 1100,
        b"5;" + b"x" * 1100 + b"\r\nhello\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: no name\r\n\r\n",
        b"0\r\nX: a\nY: b\r\n\r\n",
        b"0\r\n" + b"X-T: y\r\n" * 3000,
        b"0\r\n" + b"X: " + b"y" * 20_000,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_anything_else_is_refused(broken: bytes, step: int) -> None:
    """However it is cut."""
    with pytest.raises(ChunkError):
        body_of(*(broken[i : i + step] for i in range(0, len(broken), step)))


@pytest.mark.parametrize("zero", [b"0", b"00"])
def test_what_follows_the_end_is_never_read_as_chunks(zero: bytes) -> None:
    """Another reply's chunks in the same read, all of sizes seen before."""
    chunk = b"4\r\ndata\r\n"
    for _ in range(2):  # the second time every size is known
        body, decoder = body_of(chunk * 3 + zero + b"\r\n\r\n" + chunk * 3)
        assert body == b"data" * 3
        assert decoder.done
        assert decoder.rest == chunk * 3
