"""Answers that an upstream compressed although nobody asked it to.

The gateway asks for no content coding, and some servers and the proxies before them send one all
the same.  It is undone here, at the edge: whoever reads usage, checks, caches or translates an
answer sees its text, and so does the client, which may not know the coding.

Invariants: what is behind here never sees a coding; one that cannot be undone (two at once, one
that is unknown, ``br`` without its package) is a failed upstream, never bytes that nobody can read;
of a stream each piece goes on when it comes.
Known weakness: it is undone on the loop; a read that holds more than ``MOST_BYTES`` ends the call.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

from tpo_mp.errors import BackendFailure, TpoError

from .response_head import ResponseHead
from .upstream import UpstreamExchange

MOST_BYTES: Final = 4 << 20
_TOO_MUCH: Final = "a few bytes of it say too much"


class _Unpacker(Protocol):
    """Undoes a coding."""

    def more(self, data: bytes) -> bytes:
        """What these bytes say; raises ``ValueError`` when they say nothing or too much."""

    def done(self) -> bool:
        """Whether that was all."""


class _Gzip:
    def __init__(self, window: int = 16 + zlib.MAX_WBITS) -> None:
        self._zlib = zlib.decompressobj(window)

    def more(self, data: bytes) -> bytes:
        try:
            said = self._zlib.decompress(data, MOST_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if self._zlib.unconsumed_tail:
            raise ValueError(_TOO_MUCH)
        return said

    def done(self) -> bool:
        return self._zlib.eof


class _Deflate:
    """zlib's format, or the raw one that some servers send; its first two bytes tell."""

    def __init__(self) -> None:
        self._start = b""
        self._inner: _Gzip | None = None

    def more(self, data: bytes) -> bytes:
        if self._inner is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return b""
            # RFC 1950: the method is 8, and both bytes are a multiple of 31.
            wrapped = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._inner = _Gzip(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        return self._inner.more(data)

    def done(self) -> bool:
        return self._inner is not None and self._inner.done()


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._brotli = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    def more(self, data: bytes) -> bytes:
        try:
            said: bytes = self._brotli.process(data, output_buffer_limit=MOST_BYTES)
        except self._error as error:
            raise ValueError(str(error)) from None
        if not self._brotli.can_accept_more_data():
            raise ValueError(_TOO_MUCH)
        return said

    def done(self) -> bool:
        return bool(self._brotli.is_finished())


_UNPACKERS: Final[dict[bytes, Callable[[], _Unpacker]]] = {
    b"gzip": _Gzip, b"x-gzip": _Gzip, b"deflate": _Deflate, b"br": _Brotli,
}  # fmt: skip


class Unpacked(UpstreamExchange):
    """Takes a compressed answer and tells another exchange what it says."""

    __slots__ = ("_fed", "_inner", "_unpacker")

    def __init__(self, inner: UpstreamExchange, coding: bytes) -> None:
        """Raises ``BackendFailure`` when the coding cannot be undone."""
        super().__init__(inner.request)
        self._inner = inner
        self._fed = False
        try:
            self._unpacker = _UNPACKERS[coding]()
        except (KeyError, ImportError):
            name = coding[:40].decode("latin-1")
            said = f"upstream used a content coding that nobody asked for: {name}"
            raise BackendFailure(said, reason="unknown_coding") from None

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """The connection is in the pool already."""
        try:
            said = self._unpacker.more(body) if body else b""
            self._fed = bool(body)
            self._check_end()
        except BackendFailure as error:
            self.failed(error)
        except ValueError as error:
            self.failed(_broken(error))
        else:
            self._let_go()
            self._inner.whole(head, said)

    def started(self, head: ResponseHead) -> None:
        self._inner.started(head)
        self.over = self._inner.over

    def data(self, chunk: bytes) -> None:
        self._fed = True
        try:
            said = self._unpacker.more(chunk)
        except ValueError as error:
            carrier = self._inner.connection
            self.over = True
            if carrier is not None:
                carrier.drop()
            self.failed(_broken(error))
            return
        if said:
            self._inner.data(said)
            self.over = self._inner.over

    def ended(self) -> None:
        try:
            self._check_end()
        except BackendFailure as error:
            self.failed(error)
        else:
            self._let_go()
            self._inner.ended()

    def failed(self, error: TpoError) -> None:
        self._inner.connection = None
        self._inner.fail(error)

    def _check_end(self) -> None:
        if self._fed and not self._unpacker.done():
            raise BackendFailure("upstream cut its answer off", reason="cut_off")

    def _let_go(self) -> None:
        self._inner.connection = None
        self._inner.over = True


def _broken(error: ValueError) -> BackendFailure:
    said = f"upstream sent an answer that cannot be decompressed: {error}"
    return BackendFailure(
        said, reason="endless_reply" if str(error) == _TOO_MUCH else "bad_framing"
    )
