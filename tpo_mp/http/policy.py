"""Which hosts and origins the edge serves, decided once per distinct head.

CORS follows the Fetch standard: a preflight names the method and headers it may use, answers carry
the one origin that asked, and credentials are never combined with a wildcard.

Invariants: without ``[server.cors]`` no CORS header is ever sent; a host that is not trusted is
refused before any handler; what a client sent reaches a response header only if it equals a
configured value or matches the header-name grammar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from tpo_mp.errors import PolicyViolation

from .endpoints import Endpoint
from .exchange import Exchange
from .head import Head

_METHODS = b"GET, POST, DELETE, PATCH, OPTIONS"
_NAMES = re.compile(rb"[A-Za-z0-9-]{1,64}(?: *, *[A-Za-z0-9-]{1,64}){0,63}")
_EXPOSED = (
    b"x-request-id, x-tpo-call-id, x-tpo-shard, x-tpo-backend, x-tpo-cache, server-timing, "
    b"retry-after, retry-after-ms, x-should-retry, location"
)


def _preflight(exchange: Exchange) -> None:
    exchange.respond(204, b"")


PREFLIGHT = Endpoint("OPTIONS", "*", _preflight, "ops", takes_json=False)


class Policy:
    """The edge's answer to where a request comes from and goes to."""

    def __init__(
        self,
        *,
        origins: Sequence[str] = (),
        credentials: bool = False,
        max_age_s: int = 600,
        hosts: Sequence[str] = (),
    ) -> None:
        """``origins`` and ``hosts`` may hold globs; empty means no CORS, and any host."""
        self._origins = tuple(origins)
        self._credentials = credentials
        self._max_age_s = max_age_s
        self._hosts = tuple(h.lower() for h in hosts)

    def apply(self, head: Head) -> None:
        """Refuse an untrusted host; add the CORS lines an allowed origin needs."""
        if self._hosts and not self._trusted(head.headers.get(b"host", b"")):
            head.refusal = PolicyViolation(
                "this gateway does not serve that host", reason="untrusted_host", status=421
            )
            return
        if self._origins:
            self._cors(head)

    def _trusted(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        bare = name.rpartition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
        return any(fnmatchcase(bare, pattern) for pattern in self._hosts)

    def _cors(self, head: Head) -> None:
        origin = head.headers.get(b"origin")
        head.extra = b"vary: origin\r\n"
        if origin is None:
            return
        name = origin.decode("latin-1")
        if not any(p == "*" or fnmatchcase(name, p) for p in self._origins):
            return
        any_origin = "*" in self._origins and not self._credentials
        lines = [b"access-control-allow-origin: " + (b"*" if any_origin else origin)]
        if self._credentials:
            lines.append(b"access-control-allow-credentials: true")
        if head.method == "OPTIONS" and b"access-control-request-method" in head.headers:
            lines += self._preflight_lines(head)
        else:
            lines.append(b"access-control-expose-headers: " + _EXPOSED)
        head.extra += b"\r\n".join(lines) + b"\r\n"

    def _preflight_lines(self, head: Head) -> list[bytes]:
        head.endpoint, head.refusal = PREFLIGHT, None
        lines = [
            b"access-control-allow-methods: " + _METHODS,
            b"access-control-max-age: %d" % self._max_age_s,
        ]
        wanted = head.headers.get(b"access-control-request-headers", b"")
        # `*` does not cover Authorization, so the names asked for are echoed when they are names.
        if _NAMES.fullmatch(wanted):
            lines.append(b"access-control-allow-headers: " + wanted)
        return lines
