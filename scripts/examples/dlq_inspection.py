"""Dead letters: the calls that were accepted and never finished, newest first, with payload."""

import argparse
import json
import urllib.request
from typing import Any


def get(url: str) -> Any:
    """GET and decode."""
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


def main() -> None:
    """List them page by page, then show the newest whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--most", type=int, default=100, help="letters to list")
    options = parser.parse_args()

    newest, listed, page = "", 0, get(f"{options.url}/api/v1/dlq?limit=10")
    while page["entries"] and listed < options.most:
        for letter in page["entries"]:
            newest = newest or letter["request_id"]
            print(letter["request_id"], letter["reason"], letter["dropped_at"])
            listed += 1
        if page["next"] is None:
            break
        page = get(f"{options.url}/api/v1/dlq?limit=10&after={page['next']}")
    print(listed, "dead letters")
    if newest:
        # Reading takes nothing out: each stays until it is replayed or too old.
        print(json.dumps(get(f"{options.url}/api/v1/dlq/{newest}"), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
