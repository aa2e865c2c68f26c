"""The pipeline inside your own program, before the Anthropic API.

ANTHROPIC_API_KEY is sent when it is set; --url may also be a gateway.
"""

import argparse
import asyncio
import os

import tpo_mp


async def run(url: str, model: str) -> None:
    """Answer one prompt whole and one as a stream."""
    backend = {
        "name": "anthropic",
        "kind": "anthropic",
        "base_url": f"{url}/v1",
        "models": [model],
    }
    if "ANTHROPIC_API_KEY" in os.environ:
        backend["api_key"] = {"env": "ANTHROPIC_API_KEY"}
    async with tpo_mp.spawn_pipeline({"backends": [backend]}) as pipeline:
        reply = await pipeline.infer("Say this in one breath.", model=model, max_tokens=64)
        print("whole:", reply.text)
        print("usage:", reply.usage)
        print("stream:", end=" ")
        async for piece in pipeline.stream("And this word by word.", model=model, max_tokens=64):
            print(piece, end="|", flush=True)
        print()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="https://api.anthropic.com")
    parser.add_argument("--model", default="claude-haiku-4-5")
    options = parser.parse_args()
    asyncio.run(run(options.url, options.model))


if __name__ == "__main__":
    main()
