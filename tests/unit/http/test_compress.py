"""Who gets which coding, what is worth it, and what comes of it."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.codings import CODINGS, unpacked, unpacker
from tpo_mp.http.compress import chosen, codings, worthwhile


@pytest.fixture
def no_brotli(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without the extra."""
    whole = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "brotli":
            raise ImportError(name)
        return whole(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    codings.cache_clear()
    yield
    monkeypatch.undo()
    codings.cache_clear()


def name_of(accepted: bytes) -> str | None:
    """The coding that a client gets."""
    coding = chosen(accepted)
    return None if coding is None else coding.name.decode()


@pytest.mark.parametrize(
    "accepted",
    [b"gzip", b"GZIP", b"x-gzip", b"deflate;q=0.9, gzip;q=1.0, *;q=0.5", b"gzip;q=0.001",
     b"identity;q=0.5, gzip;q=0.5", b"gzip ; q=0.8", b"br;q=0, *;q=0.1", b"deflate, gzip",
     b"br;q=0.1, gzip;q=0.2", b"zstd, gzip;q=0.2"],
)  # fmt: skip
def test_gzip_is_sent_to_who_asks(accepted: bytes) -> None:
    """By name, by wildcard, in any case, at least as welcome as any other and as no coding."""
    assert name_of(accepted) == "gzip"


@pytest.mark.parametrize(
    "accepted",
    [b"", b"identity", b"zstd, compress", b"gzip;q=0", b"gzip;q=0.0, *;q=0", b"*;q=0",
     b"identity;q=1, gzip;q=0.5", b"gzip;q=2", b"gzip;q=-1", b"gzip;q=nan", b"gzip;q=x",
     b"gzipped", b"identity;q=0"],
)  # fmt: skip
def test_nothing_is_forced_on_others(accepted: bytes) -> None:
    """Nobody asked, refused, or preferred to have it plain; or has no way to be pleased."""
    assert name_of(accepted) is None


@pytest.mark.parametrize(
    "accepted", [b"deflate", b"gzip;q=0.5, deflate;q=0.6", b"gzip;q=0, br;q=0, *"]
)
def test_deflate_is_sent_to_who_likes_it_best(accepted: bytes) -> None:
    """Or knows nothing else."""
    assert name_of(accepted) == "deflate"


@pytest.mark.parametrize("accepted", [b"br", b"gzip, deflate, br", b"*", b"identity;q=0, *;q=0.2"])
def test_br_comes_first_where_it_is(accepted: bytes) -> None:
    """Of equally welcome ones."""
    assert name_of(accepted) == (CODINGS[0] if accepted != b"br" or CODINGS[0] == "br" else None)


@pytest.mark.usefixtures("no_brotli")
def test_without_the_package_there_is_no_br() -> None:
    """Who asks for it alone gets it plain."""
    assert name_of(b"br") is None
    assert name_of(b"br, gzip;q=0.5") == "gzip"
    assert [coding.name for coding in codings()] == [b"gzip", b"deflate"]


@pytest.mark.parametrize("name", CODINGS)
def test_equal_bodies_make_equal_bytes(name: str) -> None:
    """No time stamp; anybody reads it."""
    coding = chosen(name.encode())
    assert coding is not None
    assert coding.line == b"content-encoding: %b\r\n" % name.encode()
    body = b"word " * 1000
    assert coding.squeeze(body) == coding.squeeze(body)
    assert unpacked(name, coding.squeeze(body)) == body


@pytest.mark.parametrize("name", CODINGS)
def test_each_part_of_a_stream_can_be_read_when_it_comes(name: str) -> None:
    """And costs little when it is like the last; the end ends the format."""
    coding = chosen(name.encode())
    assert coding is not None
    packer, read = coding.packer(), unpacker(name)
    events = [b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
                  b'"choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":null}]}\n\n' % n
              for n in range(50)]  # fmt: skip
    parts = []
    for event in events:
        parts.append(packer.part(event))
        assert read(parts[-1]) == event
    assert len(parts[-1]) < len(events[-1]) / 2
    assert unpacked(name, b"".join(parts) + packer.end()) == b"".join(events)


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
