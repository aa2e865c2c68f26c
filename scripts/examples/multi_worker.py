"""Sessions and shards: each session stays with one worker process, whatever connection it uses."""

import argparse
import json
import urllib.request


def shard_of(url: str, model: str, session: str) -> str:
    """Make one call of a session on a new connection and answer the shard that served it."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    headers = {"Content-Type": "application/json", "X-Session-Id": session}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(reply.headers["X-TPO-Shard"])


def main() -> None:
    """Ask for twelve sessions, four times each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="echo")
    options = parser.parse_args()

    homes: dict[str, set[str]] = {}
    for number in range(12):
        session = f"session-{number}"
        seen = {shard_of(options.url, options.model, session) for _ in range(4)}
        print(session, "-> shard", *seen)
        for shard in seen:
            homes.setdefault(shard, set()).add(session)
    for shard, sessions in sorted(homes.items()):
        print(f"shard {shard} holds {len(sessions)} sessions")


if __name__ == "__main__":
    main()
