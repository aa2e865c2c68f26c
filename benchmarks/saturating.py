"""Clients who ask again as soon as they are answered, and what each of them waited for.

``python -m benchmarks.saturating URL --clients N --rounds R`` prints one row as JSON: tokens a
second, mean TTFT and ITL in milliseconds over all but the first round, requests that failed.
Tokens a second are those of a request over its time, times the clients: the ends, at which fewer
and fewer still wait, then count no less than the middle.
A client is one connection; its streams come one token an event, as the simulator sends them.

Every prompt of every run begins with words of its own, so no prefix is found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from statistics import fmean as mean
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.machine import ROOT
from benchmarks.report import Row

MODEL = "saturated"
_RUN = secrets.token_hex(8)
_TOKEN = b'"delta":{"content":'
_END = b"data: [DONE]"


@dataclass(slots=True)
class Waits:
    """What all clients saw; seconds."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    lasted_s: float = 0.0
    failed: int = 0


class Client(asyncio.Protocol):
    """One connection: ``rounds`` requests after each other; ``number`` makes prompts differ."""

    def __init__(
        self, host: str, number: int, rounds: int, prompt: int, waits: Waits,
        done: asyncio.Future[None], answer: int = 0,
    ) -> None:  # fmt: skip
        self._host = host
        self._number = number
        self._left = rounds
        self._rounds = rounds
        self._words = " word" * prompt
        self._waits = waits
        self._done = done
        self._asked = {"max_tokens": answer, "ignore_eos": True} if answer else {}
        self._tail = b""
        self._transport: asyncio.Transport
        self._reset()

    def _reset(self) -> None:
        self._asked_at = monotonic()
        self._first_at = self._last_at = 0.0
        self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports quack like asyncio's and inherit from none of them.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._reset()
        said = f"{_RUN} {self._number} {self._left}{self._words}"
        body = json.dumps(
            {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": said}]}
            | self._asked
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        if not self._tokens and seen.startswith(b"HTTP/1.1 ") and seen[9:12] != b"200":
            self._transport.close()
            return
        # What is cut between two reads is counted with the second.
        keep = max(seen.rfind(b"\n\n") + 2, 0) if b"\n\n" in seen else 0
        whole, self._tail = seen[:keep], seen[keep:]
        tokens = whole.count(_TOKEN)
        if tokens:
            self._last_at = monotonic()
            if not self._tokens:
                self._first_at = self._last_at
            self._tokens += tokens
        if _END in whole:
            self._tail = b""
            self._end()

    def _end(self) -> None:
        waits = self._waits
        if self._left < self._rounds:
            waits.lasted_s += self._last_at - self._asked_at
            waits.tokens += self._tokens
            waits.first.append(self._first_at - self._asked_at)
            waits.gaps.append((self._last_at - self._first_at) / max(self._tokens - 1, 1))
        self._left -= 1
        if self._left:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._waits.failed += bool(self._left)
        if not self._done.done():
            self._done.set_result(None)


async def saturate(
    url: str, clients: int, rounds: int, prompt: int, answer: int = 0
) -> dict[str, float]:
    """Run all clients to their ends."""
    loop = asyncio.get_running_loop()
    at = urlsplit(url)
    waits, ends = Waits(), [loop.create_future() for _ in range(clients)]
    for number, done in enumerate(ends):
        await loop.create_connection(
            lambda number=number, done=done: Client(  # type: ignore[misc]
                at.netloc, number, rounds, prompt, waits, done, answer
            ),
            at.hostname or "",
            at.port or 80,
        )
    await asyncio.gather(*ends)
    if not waits.first:
        raise SystemExit("no request succeeded")
    return {
        "clients": clients,
        "tok_s": round(waits.tokens / waits.lasted_s * clients, 1),
        "ttft_ms": round(mean(waits.first) * 1e3, 2),
        "itl_ms": round(mean(waits.gaps) * 1e3, 3),
        "failed": waits.failed,
    }


def label(clients: int) -> str:
    """Name a number of clients."""
    return f"{clients} client{'s' * (clients > 1)}"


def measured(url: str, clients: int, *, rounds: int, prompt: int, answer: int = 0) -> Row:
    """Run this module in a process of its own; answers its row."""
    argv = [sys.executable, "-m", "benchmarks.saturating", url, "--clients", str(clients)]
    argv += ["--rounds", str(rounds), "--prompt", str(prompt), "--answer", str(answer)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=180, cwd=ROOT, check=True)
    row: Row = json.loads(out.stdout)
    return row


def main() -> int:
    """Print the row."""
    parser = argparse.ArgumentParser(prog="benchmarks.saturating", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of a prompt, about")
    parser.add_argument("--answer", type=int, default=0, help="tokens to ask for; 0: as it likes")
    given = parser.parse_args()
    row = uvloop.run(saturate(given.url, given.clients, given.rounds, given.prompt, given.answer))
    print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
