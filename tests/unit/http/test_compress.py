"""Who gets gzip, and what is worth it."""

from __future__ import annotations

import gzip

import pytest

from tpo_mp.http.compress import accepts_gzip, squeeze, worthwhile


@pytest.mark.parametrize(
    "accepted",
    [b"gzip", b"GZIP", b"x-gzip", b"deflate, gzip;q=1.0, *;q=0.5", b"gzip;q=0.001", b"*",
     b"br, *;q=0.1", b"identity;q=0.5, gzip;q=0.5", b"gzip ; q=0.8", b"identity;q=0, *;q=0.2"],
)  # fmt: skip
def test_gzip_is_sent_to_who_asks(accepted: bytes) -> None:
    """By name, by wildcard, in any case, at least as welcome as no coding."""
    assert accepts_gzip(accepted)


@pytest.mark.parametrize(
    "accepted",
    [b"", b"identity", b"br", b"zstd, br", b"gzip;q=0", b"gzip;q=0.0, *", b"*;q=0",
     b"identity;q=1, gzip;q=0.5", b"gzip;q=2", b"gzip;q=-1", b"gzip;q=nan", b"gzip;q=x",
     b"gzipped"],
)  # fmt: skip
def test_gzip_is_not_forced_on_others(accepted: bytes) -> None:
    """Nobody asked, refused, or preferred to have it plain."""
    assert not accepts_gzip(accepted)


@pytest.mark.parametrize(
    ("content_type", "extra", "expected"),
    [
        (b"application/json", b"", True),
        (b"text/html; charset=utf-8", b"x-a: b\r\n", True),
        (b"audio/mpeg", b"", False),
        (b"image/png", b"", False),
        (b"application/json", b"content-encoding: br\r\n", False),
    ],
)
def test_only_text_without_a_coding_is_worth_it(
    content_type: bytes, extra: bytes, expected: bool
) -> None:
    """Sounds and pictures are compressed already."""
    assert worthwhile(content_type, extra) is expected


def test_equal_bodies_make_equal_bytes() -> None:
    """No time stamp; any gzip reads it."""
    body = b"word " * 1000
    assert squeeze(body) == squeeze(body)
    assert gzip.decompress(squeeze(body)) == body
