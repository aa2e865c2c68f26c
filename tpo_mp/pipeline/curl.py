"""The one curl line that shows an endpoint at work.

Invariants: a line is safe to paste into a POSIX shell, needs nothing but curl, and names the
address the gateway has by default.
"""

from __future__ import annotations

import json
from typing import Final

from tpo_mp.http.endpoints import EVENTS, Endpoint

BASE: Final = "http://127.0.0.1:8080"
# curl shakes hands and then only waits: a second shows the answer.
_UPGRADE: Final = (
    "connection: upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def curl_line(endpoint: Endpoint) -> str:
    """Show how to call an endpoint with its example."""
    streams = all(outcome.media == EVENTS for outcome in endpoint.outcomes)
    words = ["curl", "-sN" if streams and endpoint.outcomes else "-s"]
    with_body = endpoint.request is not None
    if endpoint.method != ("POST" if with_body else "GET"):
        words += ["-X", endpoint.method]
    target = BASE + (endpoint.example_path or endpoint.template)
    words.append(f'"{target}"' if "?" in target else target)
    if endpoint.socket is not None:
        words += ["-i", "--max-time", "1", *(f"-H '{line}'" for line in _UPGRADE)]
    if with_body:
        body = json.dumps(endpoint.example, ensure_ascii=False).replace("'", "'\\''")
        words += ["-H", "'content-type: application/json'", "-d", f"'{body}'"]
    return " ".join(words)
