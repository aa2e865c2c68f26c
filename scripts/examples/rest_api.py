"""The native API in three requests: a prompt answered at once, one for later, and its result."""

import argparse
import json
import urllib.request
from typing import Any


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST a JSON body, and decode the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def main() -> None:
    """Ask now, ask for later, fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    url = parser.parse_args().url

    record = ask(f"{url}/v1/prompt", {"prompt": "answer me now", "session_id": "example"})
    print("at once:", record["result"], record["usage"])

    accepted = ask(f"{url}/api/v1/infer", {"prompt": "answer me later", "session_id": "example"})
    print("accepted:", accepted["request_id"], accepted["status"])

    # Any worker of the host finds it; the wait ends early when the answer is there.
    finished = ask(f"{url}/api/v1/result/{accepted['request_id']}?wait=30")
    print("later:", finished["result"], finished["status"])


if __name__ == "__main__":
    main()
