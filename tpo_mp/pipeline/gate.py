"""Holds a body that is written page by page back while its client reads slowly."""

from __future__ import annotations

import asyncio

from tpo_mp.types import Sink


class Gate:
    """What a slow reader closes; the source of a body that is written page by page."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.gone = False

    def attach(self, sink: Sink) -> None:
        """Nothing is delivered through a sink."""

    def pause(self) -> None:
        """The client reads slowly."""
        self._open.clear()

    def resume(self) -> None:
        """The client has read."""
        self._open.set()

    def cancel(self) -> None:
        """The client left."""
        self.gone = True
        self._open.set()

    async def passed(self) -> bool:
        """Wait until the client has room; false when it has left."""
        await self._open.wait()
        return not self.gone
