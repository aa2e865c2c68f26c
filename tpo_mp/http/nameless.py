"""aiohttp requests whose answers do not say what serves them.

Invariants: every answer of aiohttp's passes through here; its own refusals say what ours say, and
nothing of what the client sent.
Known weakness: ``_prepare_hook``, ``_messages`` and ``_current_request`` are not public; aiohttp
calls the first after all headers are set and before any is written, and the version is pinned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import TransferEncodingError
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

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

    def data_received(self, data: bytes) -> None:
        """Read on; a body whose next bytes are no body's ends at once, and so does the connection.

        aiohttp keeps its refusal for behind the answer, and leaves whoever reads the body waiting.
        """
        super().data_received(data)
        messages, request = self._messages, self._current_request
        if not messages or not isinstance(messages[-1][0], _ErrInfo):
            return
        if len(messages) > 1:
            body = messages[-2][1]
        elif request is not None:
            body = request.content
        else:
            return
        if not body.is_eof():
            messages.pop()
            body.set_exception(TransferEncodingError("no chunk"))
            self.close()

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
