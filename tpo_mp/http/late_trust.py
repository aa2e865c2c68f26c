"""Imports aiohttp without reading the machine's certificates, which takes it 90 ms each time.

aiohttp makes two TLS contexts while it is imported and reads all certificates for both.  Nothing
here ever uses them: whoever asks an upstream or a probe over TLS brings a context of its own.

Invariants: a context of aiohttp's own trusts what it always did, it only reads that with its first
connection; the ``ssl`` module is as it was once the import is over.
Known weakness: the import must be the process's first of aiohttp, and no other thread may make TLS
contexts meanwhile; at the start of a process there is none.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any


class LateTrust(ssl.SSLContext):
    """A context that reads the machine's certificates with its first connection."""

    _read = False

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection of an event loop."""
        self._trust()
        return super().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Begin a connection of a socket."""
        self._trust()
        return super().wrap_socket(*args, **kwargs)

    def _trust(self) -> None:
        if not self._read:
            self._read = True
            self.load_default_certs()


def _late() -> ssl.SSLContext:
    """What aiohttp verifies servers with when it is told nothing else."""
    return LateTrust(ssl.PROTOCOL_TLS_CLIENT)


def _nothing(_context: ssl.SSLContext) -> None:
    """Read nothing."""


def import_aiohttp() -> None:
    """Import aiohttp; see the module."""
    if "aiohttp" in sys.modules:
        return
    usual = ssl.create_default_context
    ssl.create_default_context = _late  # type: ignore[assignment]
    # The other context verifies nobody, so it needs to know no authority.
    ssl.SSLContext.set_default_verify_paths = _nothing  # type: ignore[assignment, method-assign]
    try:
        import aiohttp  # noqa: F401
    finally:
        ssl.create_default_context = usual
        del ssl.SSLContext.set_default_verify_paths
