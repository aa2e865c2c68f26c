"""aiohttp requests whose answers do not say what serves them.

Invariants: every answer of aiohttp's passes through here; its own refusals say what ours say, and
nothing of what the client sent.
Known weakness: ``_prepare_hook`` is not public; aiohttp calls it after all headers are set and
before any is written, and the version is pinned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web_protocol import ERROR, RequestHandler

INTERNAL: Final = 500

# aiohttp logs a traceback for every malformed byte a client sends; defects are reported by us.
SILENT = logging.getLogger(__name__)
SILENT.disabled = True


class NamelessRequest(web.BaseRequest):
    """A request whose response has no ``Server`` header and no type that may be guessed."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall(hdrs.SERVER, None)
        response.headers.setdefault(hdrs.X_CONTENT_TYPE_OPTIONS, "nosniff")


class NamelessProtocol(RequestHandler):
    """A connection on which ``refuse`` makes the answer to bytes that are no request's."""

    __slots__ = ("_refuse",)

    def __init__(
        self,
        server: web.Server,
        refuse: Callable[[int], web.Response],
        **options: Any,
    ) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._refuse = refuse

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = INTERNAL,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read; raises ``ConnectionError`` behind another answer."""
        answer = super().handle_error(request, status, exc, message)
        if status < INTERNAL:
            answer = self._refuse(status)
            answer.force_close()
        return answer


def nameless(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> NamelessRequest:
    """Make a request; what ``web.Server`` wants as its factory."""
    if message is ERROR:  # its version is a guess: nothing older comes here
        message = message._replace(version=HttpVersion11)
    return NamelessRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())
