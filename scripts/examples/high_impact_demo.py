"""Many streams at once: how fast they are served, and by which shards."""

import argparse
import asyncio
import time
from collections import Counter

import aiohttp


async def stream(client: aiohttp.ClientSession, url: str, model: str, number: int) -> str:
    """Read one stream to its end and answer the shard that served it."""
    text = f"stream number {number} says a few words of its own"
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
    headers = {"X-Session-Id": f"demo-{number}"}
    async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as reply:
        data = await reply.read()
        if reply.status != 200 or b"[DONE]" not in data:
            raise SystemExit(f"stream {number}: {reply.status} {data[:200]!r}")
        return reply.headers["X-TPO-Shard"]


async def run(url: str, model: str, times: int) -> None:
    """Open all streams together."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        began = time.perf_counter()
        shards = await asyncio.gather(*(stream(client, url, model, n) for n in range(times)))
        took = time.perf_counter() - began
    print(f"{times} streams in {took:.2f} s, {times / took:.0f} per second")
    for shard, served in sorted(Counter(shards).items()):
        print(f"shard {shard}: {served}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    asyncio.run(run(options.url, options.model, options.streams))


if __name__ == "__main__":
    main()
