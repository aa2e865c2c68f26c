"""TLS of the main port: one context, whose certificate a reload replaces in place.

Invariants: a certificate that does not load refuses the config and leaves the old one serving;
new handshakes use the newest files, open connections keep what they have.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from tpo_mp.config.sections import TlsSection
from tpo_mp.errors import ConfigError


def server_context(tls: TlsSection) -> ssl.SSLContext | None:
    """The context for new handshakes; ``None`` when TLS is off.  Raises ``ConfigError``."""
    if not tls.cert_file:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load(context, tls)
    return context


def load(context: ssl.SSLContext, tls: TlsSection) -> None:
    """Read the files into ``context``.  Raises ``ConfigError`` naming the file."""
    for name, path in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if path and not Path(path).is_file():
            raise ConfigError(f"server.tls.{name}: {path!r} is not a file")
    # A trial first: a half-loaded pair would leave the context with a certificate and no key.
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        trial.load_cert_chain(tls.cert_file, tls.key_file or None)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"server.tls: certificate and key do not load: {e}") from None
    context.load_cert_chain(tls.cert_file, tls.key_file or None)


def expires_at(tls: TlsSection) -> float:
    """When the certificate expires, epoch seconds; 0.0 when that cannot be read."""
    try:
        # The only decoder of a certificate file in the standard library; its form is that of
        # ``SSLSocket.getpeercert``.
        decoded = ssl._ssl._test_decode_cert(tls.cert_file)  # type: ignore[attr-defined]
        return float(ssl.cert_time_to_seconds(decoded["notAfter"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return 0.0
