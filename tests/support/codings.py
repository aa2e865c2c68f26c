"""Content codings as other programs make and read them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

try:
    import brotli
except ImportError:  # an extra
    brotli: Any = None  # type: ignore[no-redef]

CODINGS = [*(["br"] if brotli else []), "gzip", "deflate"]
"""What can be packed and unpacked here, what the product likes best first."""
_WINDOWS = {"gzip": 31, "deflate": 15, "raw deflate": -15}


def unpacker(coding: str) -> Callable[[bytes], bytes]:
    """What answers the text of the bytes so far, of each piece in turn."""
    if coding == "br":
        more: Callable[[bytes], bytes] = brotli.Decompressor().process
        return more
    return zlib.decompressobj(_WINDOWS[coding]).decompress


def unpacked(coding: str, data: bytes) -> bytes:
    """The text of a whole body; raises when it is not whole."""
    if coding == "br":
        text: bytes = brotli.decompress(data)
        return text
    return zlib.decompress(data, _WINDOWS[coding])


def packed(coding: str, *pieces: bytes) -> list[bytes]:
    """A body in pieces that can be read one by one; the last ends it."""
    if coding == "br":
        br = brotli.Compressor()
        return [*(br.process(piece) + br.flush() for piece in pieces), br.finish()]
    z = zlib.compressobj(wbits=_WINDOWS[coding])
    return [*(z.compress(piece) + z.flush(zlib.Z_SYNC_FLUSH) for piece in pieces), z.flush()]


def chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of a chunked body."""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return
        yield body[:length]
        body = body[length + 2 :]
