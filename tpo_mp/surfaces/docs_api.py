"""The API's description of itself, for programs and for people.

``/openapi.json`` is made from the route table of this very process; ``/docs`` is a page that reads
it, from three files of this package.  The page fetches nothing else and its policy forbids it to.

Invariants: the document is made once, beside the loop; what it says goes to the page as text only.
"""

from __future__ import annotations

import asyncio
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Final

import orjson
from msgspec import Struct

from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import JSON, Exchange
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.openapi import document
from tpo_mp.ports import Env, Feature

_FILES: Final = Path(__file__).with_name("docs_page")
_POLICY: Final = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'\r\n"
    b"referrer-policy: no-referrer\r\n"
)
_IF_CHANGED: Final = Parameter(
    "if-none-match", "The `etag` of the copy at hand: `304` while it is fresh.", place="header"
)
_UNCHANGED: Final = Outcome("the copy at hand is fresh", status=304, media="")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class DocsApi:
    """``/openapi.json`` and ``/docs``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._made: asyncio.Future[tuple[bytes, bytes]] | None = None

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            *Endpoint(
                "GET", "/openapi.json", self.schema, "ops", access="open",
                parameters=(_IF_CHANGED,),
                outcomes=(Outcome("an OpenAPI 3.1 document", {"type": "object"}), _UNCHANGED),
            ).at("/api/v1/schema"),
            _file("/docs", "index.html", "text/html", "Browse this description."),
            _file("/docs/page.js", "page.js", "text/javascript", "Load the script of the page."),
            _file("/docs/page.css", "page.css", "text/css", "Load the style of the page."),
        ]  # fmt: skip

    async def schema(self, exchange: Exchange) -> None:
        """Describe every route in OpenAPI 3.1."""
        if self._made is None:
            # Tens of milliseconds, so beside the loop; whoever asks meanwhile waits for the same.
            loop = asyncio.get_running_loop()
            self._made = loop.run_in_executor(None, _make, self._gateway)
        _send(exchange, *await asyncio.shield(self._made), JSON, b"")


def _make(gateway: Gateway) -> tuple[bytes, bytes]:
    return _tagged(orjson.dumps(document(gateway.endpoints())))


def _file(path: str, name: str, media: str, summary: str) -> Endpoint:
    kind = f"{media}; charset=utf-8".encode()
    body, etag = _tagged((_FILES / name).read_bytes())
    send = partial(_send, body=body, etag=etag, kind=kind, extra=_POLICY)
    return Endpoint(
        "GET", path, send, "ops", access="open", summary=summary, parameters=(_IF_CHANGED,),
        outcomes=(Outcome("the file", media=media), _UNCHANGED),
    )  # fmt: skip


def _tagged(body: bytes) -> tuple[bytes, bytes]:
    return body, b'"%b"' % blake2b(body, digest_size=12).hexdigest().encode()


def _send(exchange: Exchange, body: bytes, etag: bytes, kind: bytes, extra: bytes) -> None:
    lines = b"etag: %b\r\ncache-control: no-cache\r\n%b" % (etag, extra)
    given = exchange.head.headers.get(b"if-none-match", b"")
    known = {tag.strip().removeprefix(b"W/") for tag in given.split(b",")}
    if etag in known or b"*" in known:
        exchange.respond(304, b"", kind, lines)
    else:
        exchange.respond(200, body, kind, lines)


FEATURE = Feature(Config, DocsApi)
