"""TLS of the main port: one context that listens for ever, and the one whose certificate it shows.

Each handshake is moved to the newest context before a certificate is chosen, so that a reload takes
effect at once and wholly: a context keeps one certificate per key type, and loading an ECDSA pair
over an RSA one would leave both in use.

Invariants: a pair that does not load refuses the config and leaves the old one serving; open
connections keep what they have; TLS is turned on or off by a restart only.
Known weakness: files are read by each worker, so one that starts later may find newer ones.
"""

from __future__ import annotations

import ssl

from tpo_mp.config.certificate import server_context
from tpo_mp.config.sections import TlsSection


class Tls:
    """The server side of one worker's handshakes."""

    def __init__(self, section: TlsSection) -> None:
        """Read the files; raises ``ConfigError``."""
        self._newest = server_context(section)
        self.context = server_context(section)
        self.context.sni_callback = self._choose

    def use(self, context: ssl.SSLContext) -> None:
        """Show another certificate from the next handshake on."""
        self._newest = context

    def _choose(
        self, handshake: ssl.SSLObject, _name: str | None, _listening: ssl.SSLContext
    ) -> None:
        handshake.context = self._newest
