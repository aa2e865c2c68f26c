"""Streamed chats of several clients with one model server, and the tokens and times of them."""

from __future__ import annotations

import asyncio
from random import Random
from statistics import median
from time import monotonic
from typing import Any, Final

import aiohttp
import orjson

from .payload import PATH
from .report import Row

TOKENS: Final = 64
"""What every answer is cut at."""
_WORDS: Final = ("tea", "son", "her", "old", "sun", "red", "lit", "din", "hut", "rod")
_PROMPT_WORDS: Final = 60


class Generated:
    """What the answers of one run said."""

    def __init__(self, session: aiohttp.ClientSession, model: str, rng: Random) -> None:
        self._session = session
        self._model = model
        self._rng = rng
        self.tokens = self.failed = 0
        self.first_s: list[float] = []

    async def clients(self, count: int, calls: int) -> float:
        """Have so many ask ``calls`` in all, each as soon as it is answered; answers seconds."""
        left = iter(range(calls))

        async def client() -> None:
            for _ in left:
                await self._ask()

        began = monotonic()
        await asyncio.gather(*(client() for _ in range(count)))
        return monotonic() - began

    async def _ask(self) -> None:
        words = " ".join(self._rng.choices(_WORDS, k=_PROMPT_WORDS))
        body: dict[str, Any] = {
            "model": self._model, "messages": [{"role": "user", "content": words}],
            "max_tokens": TOKENS, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        began, first, made = monotonic(), 0.0, 0
        try:
            async with self._session.post(PATH, json=body) as reply:
                async for line in reply.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = orjson.loads(line[6:])
                    if not first and any(c["delta"].get("content") for c in event["choices"]):
                        first = monotonic() - began
                    made = (event.get("usage") or {}).get("completion_tokens", made)
        except (aiohttp.ClientError, TimeoutError):
            made = 0
        if made:
            self.tokens += made
            self.first_s.append(first or monotonic() - began)
        else:
            self.failed += 1


async def generate(url: str, model: str, clients: int, calls: int, rng: Random) -> Row:
    """Warm the server with one call a client, then measure ``calls`` of them."""
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        warm = Generated(session, model, rng)
        await warm.clients(clients, clients)
        run = Generated(session, model, rng)
        took = await run.clients(clients, calls)
    return {
        f"tokens_per_s_{clients}": round(run.tokens / took, 1),
        f"first_ms_{clients}": round(median(run.first_s) * 1e3, 2) if run.first_s else 0.0,
        "failed": run.failed + warm.failed,
    }
