"""A worker of your own: any object with `infer(call)` stands behind the whole pipeline.

This one spells words backwards; with --url it asks another gateway first and reverses its answer.
"""

import argparse
import asyncio

import tpo_mp
from tpo_mp.dialects.openai_chat import last_user_text
from tpo_mp.types import Call


class Backwards:
    """Answers with the words of the prompt, or of another gateway's answer, spelt backwards."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def infer(self, call: Call) -> str:
        """Answer one call; a plain string is enough, a `Reply` may say more."""
        said = last_user_text(call.body)
        if self._url:
            origin = {"name": "up", "kind": "openai", "base_url": f"{self._url}/v1"}
            async with tpo_mp.spawn_pipeline({"backends": [origin]}) as other:
                said = (await other.infer(said, model=call.model)).text
        return " ".join(word[::-1] for word in said.split())


async def run(url: str, model: str) -> None:
    """Put the worker behind a pipeline and ask it."""
    async with tpo_mp.spawn_pipeline(Backwards(url), model=model) as pipeline:
        reply = await pipeline.infer("stressed desserts drawer")
        print("answer:", reply.text)
        print("backend:", reply.backend, "status:", reply.status)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="a gateway to ask first; none by default")
    parser.add_argument("--model", default="echo")
    options = parser.parse_args()
    asyncio.run(run(options.url, options.model))


if __name__ == "__main__":
    main()
