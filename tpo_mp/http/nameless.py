"""aiohttp requests whose answers do not say what serves them.

Invariants: every answer of aiohttp's, its own refusals included, passes through here.
Known weakness: ``_prepare_hook`` is not public; aiohttp calls it after all headers are set and
before any is written, and the version is pinned.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import hdrs, web

# aiohttp logs a traceback for every malformed byte a client sends; defects are reported by us.
SILENT = logging.getLogger(__name__)
SILENT.disabled = True


class NamelessRequest(web.BaseRequest):
    """A request whose response has no ``Server`` header and no type that may be guessed."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall(hdrs.SERVER, None)
        response.headers.setdefault(hdrs.X_CONTENT_TYPE_OPTIONS, "nosniff")


def nameless(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> NamelessRequest:
    """Make a request; what ``web.Server`` wants as its factory."""
    return NamelessRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())
