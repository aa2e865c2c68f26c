"""Which hosts and origins the edge serves and what its answers carry, once per distinct head.

CORS follows the Fetch standard: a preflight names the method and headers it may use, answers carry
the one origin that asked, and credentials are never combined with a wildcard.

Invariants: without ``[server.cors]`` no CORS header is ever sent; a host that is not trusted is
refused before any handler; what a client sent reaches a response header only if it equals a
configured value or matches the header-name grammar.  A preflight never has a body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import Pattern

from tpo_mp.errors import PolicyViolation

from .compress import chosen, codings
from .endpoints import Endpoint
from .exchange import Exchange
from .head import Head
from .peers import TrustedProxies

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_NAMES = re.compile(rb"[A-Za-z0-9_-]{1,64}(?: *, *[A-Za-z0-9_-]{1,64}){0,63}")
_ORIGIN = re.compile(rb"null|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:\[\]_-]{1,260}")
# Wildcards do not work in this list for requests with credentials, so every name is written out.
_EXPOSED = (
    b"x-request-id, request-id, x-tpo-call-id, x-tpo-shard, x-tpo-backend, x-tpo-attempts, "
    b"x-tpo-cache, server-timing, retry-after, retry-after-ms, x-should-retry, location, "
    b"openai-processing-ms, idempotency-replayed, x-tpo-first-call-id, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, "
    + b", ".join(
        b"anthropic-ratelimit-%b-%b" % (what, word)
        for what in (b"requests", b"tokens", b"input-tokens", b"output-tokens")
        for word in (b"limit", b"remaining", b"reset")
    )
)


def _preflight(exchange: Exchange) -> None:
    exchange.respond(204, b"")


PREFLIGHT = Endpoint("OPTIONS", "*", _preflight, "ops", takes_json=False, access="open")


class Policy:
    """The edge's answer to where a request comes from and goes to."""

    def __init__(
        self,
        *,
        origins: Sequence[str] = (),
        credentials: bool = False,
        max_age_s: int = 600,
        hosts: Sequence[str] = (),
        proxies: Sequence[str] = (),
        pack_from: int = 0,
        pack_streams: bool = False,
    ) -> None:
        """``origins`` and ``hosts`` may hold ``*``; empty means no CORS, and any host.

        ``pack_from`` is the least size of a whole body that is compressed, 0 for never;
        ``pack_streams``: each event of a stream is compressed and flushed.
        """
        self._any_origin = "*" in origins
        # With credentials "any origin" would hand every site the user's session.
        self._origins = _globs(o for o in origins if o != "*")
        self._cors = bool(self._origins) or (self._any_origin and not credentials)
        self._credentials = credentials
        self._max_age_s = max_age_s
        self._hosts = _globs(h.lower() for h in hosts)
        self._pack_from, self._pack_streams = pack_from, pack_streams
        if pack_from or pack_streams:
            codings()  # imported here, not while the first request waits
        self.proxies = TrustedProxies(proxies)

    def apply(self, head: Head) -> None:
        """Refuse an untrusted host; decide who asks, and what the answer looks like."""
        vary: list[bytes] = []
        lines: list[bytes] = []
        if self._cors:
            vary.append(b"origin")
            self._apply_cors(head, vary, lines)
        if self._pack_from or self._pack_streams:
            vary.append(b"accept-encoding")
            coding = chosen(head.headers.get(b"accept-encoding", b""))
            if coding is not None and head.method != "HEAD":
                if self._pack_from:
                    head.coding, head.pack_from, head.shaped = coding, self._pack_from, True
                if self._pack_streams:
                    head.stream_coding = coding
        if vary:
            lines.append(b"vary: " + b", ".join(vary))
            head.add_lines(b"\r\n".join(lines) + b"\r\n")
        if self.proxies:
            head.client = self.proxies.client(head.headers)
        if self._hosts and not self._trusted(head.headers.get(b"host", b"")):
            head.refusal = PolicyViolation(
                "this gateway does not serve that host", reason="untrusted_host", status=421
            )

    def _trusted(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        bare = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
        return any(pattern.fullmatch(bare.rstrip(".")) for pattern in self._hosts)

    def _apply_cors(self, head: Head, vary: list[bytes], lines: list[bytes]) -> None:
        asked = head.method == "OPTIONS" and b"access-control-request-method" in head.headers
        if asked:
            vary += [b"access-control-request-method", b"access-control-request-headers"]
        origin = head.headers.get(b"origin")
        if origin is None or not (allowed := self._allowed(origin)):
            return
        lines.append(b"access-control-allow-origin: " + allowed)
        if self._credentials:
            lines.append(b"access-control-allow-credentials: true")
        if not asked:
            lines.append(b"access-control-expose-headers: " + _EXPOSED)
        elif head.content_length == 0 and not head.full_lane:
            lines += self._preflight_lines(head)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of ``origin`` may read what this gateway answers."""
        return self._cors and bool(self._allowed(origin))

    def _allowed(self, origin: bytes) -> bytes:
        """The value that lets ``origin`` in; empty for none."""
        if _ORIGIN.fullmatch(origin):
            name = origin.decode("latin-1")
            if any(pattern.fullmatch(name) for pattern in self._origins):
                return origin
        return b"*" if self._any_origin and not self._credentials else b""

    def _preflight_lines(self, head: Head) -> list[bytes]:
        head.endpoint, head.refusal, head.shaped = PREFLIGHT, None, True
        lines = [
            b"access-control-allow-methods: " + _METHODS,
            b"access-control-max-age: %d" % self._max_age_s,
        ]
        wanted = head.headers.get(b"access-control-request-headers", b"")
        # `*` does not cover Authorization, so the names asked for are echoed when they are names.
        if _NAMES.fullmatch(wanted):
            lines.append(b"access-control-allow-headers: " + wanted)
        return lines


def _globs(patterns: Iterable[str]) -> tuple[Pattern[str], ...]:
    """Only ``*`` is special, and it stays inside the host: brackets belong to IPv6."""
    return tuple(
        re.compile(re.escape(p).replace(r"\*", r"[^/@?#]*"), re.IGNORECASE) for p in patterns
    )
