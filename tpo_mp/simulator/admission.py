"""Who may steer a simulator: whoever has the key, or, without one, programs on this machine.

Invariants: a browser's page never may without the key, wherever it was loaded from.
"""

from __future__ import annotations

from hmac import compare_digest

from tpo_mp.config.values import Secret, is_loopback
from tpo_mp.errors import Unauthorized
from tpo_mp.http.exchange import Exchange


class Doorkeeper:
    """Lets in who has ``key`` in ``X-Admin-Key``; ``path`` is what messages call the place."""

    def __init__(self, key: Secret | None, path: str) -> None:
        self._key = None if key is None else key.reveal().encode()
        self._path = path

    def admit(self, exchange: Exchange) -> None:
        """Raise ``Unauthorized`` for whoever may not come in."""
        headers = exchange.head.headers
        if self._key is not None:
            if not compare_digest(headers.get(b"x-admin-key", b""), self._key):
                raise Unauthorized("X-Admin-Key is not the one configured", reason="bad_admin_key")
        elif b"origin" in headers or not is_loopback(exchange.peer):
            said = f"without admin_api_key only programs on this machine may use {self._path}"
            raise Unauthorized(said, reason="admin_key_required")
