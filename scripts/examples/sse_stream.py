"""The native stream, event by event as it arrives: start, a token per piece of text, done."""

import argparse
import json
import urllib.request


def main() -> None:
    """Read the events of one answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--prompt", default="every word is an event of its own")
    options = parser.parse_args()

    body = json.dumps({"prompt": options.prompt}).encode()
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    request = urllib.request.Request(f"{options.url}/api/v1/stream", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        event = ""
        for raw in reply:  # a line as soon as it is there
            line = raw.decode().rstrip("\n")
            if line.startswith("event:"):
                event = line[6:].strip()
            elif line.startswith("data:"):
                data = json.loads(line[5:])
                if event == "token":
                    print("token:", data["text"])
                elif event == "error":
                    raise SystemExit(f"{data['code']}: {data['message']}")
                else:
                    print(f"{event}:", data["request_id"], data.get("finish_reason", ""))


if __name__ == "__main__":
    main()
