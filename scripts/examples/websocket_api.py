"""Several requests at once on one WebSocket: their tokens mix, ids tell whose each one is."""

import argparse
import asyncio

import aiohttp


async def run(url: str, model: str, times: int) -> None:
    """Ask without waiting for answers, then sort what comes by the id it carries."""
    async with aiohttp.ClientSession() as client, client.ws_connect(f"{url}/api/v1/ws") as socket:
        for number in range(1, times + 1):
            await socket.send_json(
                {
                    "prompt": f"this is question {number}",
                    "model": model,
                    "client_request_id": f"question-{number}",
                }
            )
        texts: dict[str, str] = {}
        ended = 0
        while ended < times:
            message = await socket.receive_json(timeout=60)
            mine = message["client_request_id"]
            if message["type"] == "ack":  # its `request_id` is what a cancel would name
                texts[mine] = ""
            elif message["type"] == "token":
                texts[mine] += message["text"]
            elif message["type"] == "error":
                raise SystemExit(f"{mine}: {message['code']}: {message['message']}")
            elif message["type"] == "done":
                ended += 1
                print(f"done {ended} of {times}: {mine}, {message['usage']['total_tokens']} tokens")
    for mine, text in texts.items():
        print(f"{mine}: {text}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--requests", type=int, default=5)
    options = parser.parse_args()
    asyncio.run(run(options.url, options.model, options.requests))


if __name__ == "__main__":
    main()
