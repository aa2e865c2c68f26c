"""The load on a model server counts its tokens, its first texts and its failures."""

from __future__ import annotations

import asyncio
from random import Random

from aiohttp import web

from benchmarks.generating import generate
from benchmarks.payload import PATH

_STREAM = (
    b": keepalive 1/1\n\n"
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'
    b"data: [DONE]\n\n"
)


async def _load(status: int, clients: int, calls: int) -> tuple[dict[str, float], int]:
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        body = _STREAM if status == 200 else b'{"error":"no"}'
        return web.Response(body=body, status=status, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post(PATH, answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        row = await generate(f"http://{host}:{port}", "m", clients, calls, Random(1))
    finally:
        await runner.cleanup()
    return row, asked


def test_tokens_are_those_of_the_usage_and_every_client_warms_up_once() -> None:
    """What the server says it made counts, not the events."""
    row, asked = asyncio.run(_load(200, 2, 6))
    assert asked == 8
    assert row["tokens_per_s_2"] > 0
    assert row["first_ms_2"] > 0
    assert row["failed"] == 0


def test_answers_without_tokens_have_failed() -> None:
    """A refusal is no answer."""
    row, asked = asyncio.run(_load(503, 1, 2))
    assert asked == row["failed"] == 3
    assert row["tokens_per_s_1"] == 0
