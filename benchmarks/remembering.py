"""Chats before engines that tell what of a prompt they remembered, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from time import monotonic
from typing import Any

import aiohttp

from .payload import PATH
from .report import Row
from .scenario import Column

CACHED = Column("prompt tokens remembered %", "cached_pct")
P50, FAILED = Column("p50 ms", "p50_ms"), Column("failed", "failed")


class Remembered:
    """What the answers of a run said."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._prompts = self._cached = self._failed = 0
        self._took: list[float] = []

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        headers: Mapping[str, str] | None = None,
        *,
        counts: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> Any:
        """The message that answers these, ``None`` if it failed; ``counts`` its prompt or not.

        ``more``: further fields of the body.
        """
        since = monotonic()
        body = {"model": "m", "messages": messages, **(more or {})}
        async with self._session.post(PATH, json=body, headers=headers) as reply:
            said = await reply.json()
        if reply.status != 200:
            self._failed += 1
            return None
        self._took.append(monotonic() - since)
        if counts:
            usage = said["usage"]
            self._prompts += usage["prompt_tokens"]
            self._cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return said["choices"][0]["message"]

    def row(self) -> Row:
        """Share of prompts remembered, median time, failures."""
        return {
            "cached_pct": round(100 * self._cached / max(self._prompts, 1), 1),
            "p50_ms": round(median(self._took) * 1e3, 1) if self._took else 0.0,
            "failed": self._failed,
        }
