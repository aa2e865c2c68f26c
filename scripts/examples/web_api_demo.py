"""A web page's view of the API: banner, health, models, a chat, a refusal, all as JSON."""

import argparse
import json
import urllib.error
import urllib.request
from typing import Any


def fetch(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """GET, or POST a JSON body; status and decoded answer, whatever the status is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main() -> None:
    """Walk through what a dashboard would ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    url = parser.parse_args().url

    _, banner = fetch(f"{url}/")
    print(banner["name"], banner["version"], "with", len(banner["endpoints"]), "routes")
    status, health = fetch(f"{url}/health")
    print("health", status, health["status"], "shards", len(health["host"]["shards"]))
    _, listed = fetch(f"{url}/v1/models")
    names = [entry["id"] for entry in listed["data"]]
    print("models", *names)

    chat = {"model": names[0], "messages": [{"role": "user", "content": "hello there"}]}
    status, answer = fetch(f"{url}/v1/chat/completions", chat)
    print("chat", status, answer["choices"][0]["message"]["content"])
    status, refusal = fetch(f"{url}/v1/chat/completions", chat | {"temperature": 9})
    print("refusal", status, refusal["error"]["param"], "-", refusal["error"]["message"])


if __name__ == "__main__":
    main()
