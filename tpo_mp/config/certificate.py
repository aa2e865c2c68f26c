"""The certificate of the main port: whether its files are usable, and when it expires.

The same questions are asked by ``tpo-mp check``, by every reload before it is published, and by
each worker when it makes its context.

Invariants: nobody is asked for a pass phrase: an encrypted key is a problem.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from tpo_mp.errors import ConfigError

from .sections import TlsSection

ALPN: Final = ("http/1.1",)


def server_context(tls: TlsSection) -> ssl.SSLContext:
    """Make a context from the files as they are now; raises ``ConfigError`` naming the setting."""
    found = problem(tls)
    if found is not None:
        raise ConfigError(f"server.tls.{found[0]}: {found[1]}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    try:
        _load(context, tls)
    except (ssl.SSLError, OSError, ValueError) as error:  # changed since it was looked at
        raise ConfigError(f"server.tls: certificate and key do not load: {error}") from None
    return context


def problem(tls: TlsSection) -> tuple[str, str] | None:
    """The setting that is wrong and why; ``None`` when the pair loads, or TLS is off."""
    if not tls.cert_file:
        return ("key_file", "a key without cert_file") if tls.key_file else None
    for name, path in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if path and (why := _unreadable(path)):
            return name, f"{path!r} {why}"
    try:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    except (ssl.SSLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        return "cert_file", f"certificate and key do not load: {why}"
    return None


def expires_at(tls: TlsSection) -> float | None:
    """When the certificate expires, epoch seconds; ``None`` when TLS is off or it is unreadable."""
    if not tls.cert_file:
        return None
    try:
        # The standard library's only decoder of a certificate file, used by its own tests; its
        # answer has the form of ``SSLSocket.getpeercert``.
        decoded = ssl._ssl._test_decode_cert(tls.cert_file)  # type: ignore[attr-defined]
        return float(ssl.cert_time_to_seconds(decoded["notAfter"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _unreadable(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except IsADirectoryError:
        return "is a directory"
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def _load(context: ssl.SSLContext, tls: TlsSection) -> None:
    context.load_cert_chain(tls.cert_file, tls.key_file or None, password=_no_password)


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and a daemon would wait for ever.
    raise ValueError("the key is encrypted; give one without a pass phrase")
