"""Metrics of the whole host: what five calls and one refusal change in them.

Every worker counts into shared memory, so one scrape of any of them has the sum.
"""

import argparse
import json
import urllib.error
import urllib.request


def scrape(url: str) -> dict[str, float]:
    """Read every series of /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def chat(url: str, model: str, text: str) -> None:
    """Make one chat call; a refusal is fine here."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        print("refused with", error.code)


def main() -> None:
    """Compare two scrapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="echo")
    options = parser.parse_args()

    before = scrape(options.url)
    for number in range(5):
        chat(options.url, options.model, f"call number {number}")
    chat(options.url, "no-such-model", "nobody answers this")
    after = scrape(options.url)
    for name in sorted(after):
        grown = after[name] - before.get(name, 0.0)
        counts = "_bucket" not in name and "_sum" not in name
        if grown > 0 and counts and name.startswith(("tpo_calls", "orchestrator_requests")):
            print(f"{name}  +{grown:g}")


if __name__ == "__main__":
    main()
