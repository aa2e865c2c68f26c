"""One question in four APIs: whatever backend answers, each client gets its own dialect."""

import argparse
import json
import urllib.request
from typing import Any


def post(url: str, body: dict[str, Any]) -> Any:
    """POST a JSON body and decode the answer."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def main() -> None:
    """Ask the same of chat, completions, responses and messages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="echo")
    options = parser.parse_args()

    text = "the same words for all"
    messages = [{"role": "user", "content": text}]
    asked = {"model": options.model, "max_tokens": 32}
    url = f"{options.url}/v1"

    chat = post(f"{url}/chat/completions", asked | {"messages": messages})
    print("chat:", chat["choices"][0]["message"]["content"])
    completion = post(f"{url}/completions", asked | {"prompt": text})
    print("completions:", completion["choices"][0]["text"])
    response = post(f"{url}/responses", {"model": options.model, "input": text})
    print("responses:", response["output"][0]["content"][0]["text"])
    message = post(f"{url}/messages", asked | {"messages": messages})
    print("messages:", message["content"][0]["text"])


if __name__ == "__main__":
    main()
