"""The proxy of ``simulate record``: requests on, answers back and into a file.

Invariants: bytes are passed on as they come; the client's credentials go to the provider only; what
cannot be written down (another path, too large, not text) is passed on all the same.
Known weakness: an event's time is when its last byte came, so events of one read share a time.
"""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic
from typing import Final

import aiohttp
from aiohttp import web

from tpo_mp.config.values import check_url
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator import recordings
from tpo_mp.simulator.recordings import Recording
from tpo_mp.types import Dialect, Usage

from .asking import failed

MOST_BODY_BYTES: Final = 8 << 20
_HOPS: Final = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host",
     "content-length", "content-encoding", "accept-encoding", "proxy-authorization")
)  # fmt: skip
_END: Final = re.compile(rb"\r?\n\r?\n")


class Recorder:
    """Passes requests on and writes answers down."""

    def __init__(self, file: Path, upstream: str, most: int) -> None:
        try:
            check_url(upstream)
        except ValueError as error:
            raise failed(f"--upstream: {error}") from None
        self._upstream = upstream.rstrip("/")
        self._file = file.open("ab")
        self._most = most
        self.written = 0
        self.unwritten = 0
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self, host: str, port: int) -> str:
        """Serve; answer where."""
        timeout = aiohttp.ClientTimeout(total=3600, sock_connect=10, sock_read=600)
        self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=True)
        app = web.Application(client_max_size=MOST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0]
        return f"http://{bound[0]}:{bound[1]}"

    async def close(self) -> None:
        """Stop serving and close the file."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()
        self._file.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        body = await request.read()
        began_at = monotonic()
        headers = {n: v for n, v in request.headers.items() if n.lower() not in _HOPS}
        url = self._upstream + request.raw_path
        try:
            async with self._session.request(
                request.method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                return await self._answer(request, body, answer, began_at)
        except (aiohttp.ClientError, TimeoutError) as error:
            said = f"the provider did not answer: {type(error).__name__}"
            return web.json_response({"error": {"message": said}}, status=502)

    async def _answer(
        self,
        request: web.Request,
        body: bytes,
        answer: aiohttp.ClientResponse,
        began_at: float,
    ) -> web.StreamResponse:
        passed = {n: v for n, v in answer.headers.items() if n.lower() not in _HOPS}
        reply = web.StreamResponse(status=answer.status, headers=passed)
        await reply.prepare(request)
        arrived: list[tuple[float, bytes]] = []
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size <= MOST_BODY_BYTES:
                arrived.append((monotonic() - began_at, chunk))
            await reply.write(chunk)
        await reply.write_eof()
        if size > MOST_BODY_BYTES or not self._write(request.path, body, answer, arrived):
            self.unwritten += 1
        return reply

    def _write(
        self,
        path: str,
        body: bytes,
        answer: aiohttp.ClientResponse,
        arrived: list[tuple[float, bytes]],
    ) -> bool:
        """Append an answer to the file, unless it is none that can be played again."""
        found = recordings.what_is(path, body)
        if found is None or self.written >= self._most or not arrived:
            return False
        dialect, asked = found
        kind = answer.headers.get("content-type", "application/json")
        chunks = events_of(arrived) if kind.startswith("text/event-stream") else whole(arrived)
        if chunks is None:
            return False
        usage = _usage(dialect, answer.status, chunks, bool(asked.get("stream")))
        line = recordings.encode(
            Recording(
                path=path,
                model=str(asked.get("model", "")),
                key=recordings.key_for(dialect, asked),
                stream=bool(asked.get("stream")),
                asked=asked,
                status=answer.status,
                content_type=kind,
                headers=recordings.kept(tuple(answer.headers.items())),
                chunks=chunks,
                prompt_tokens=usage.prompt,
                completion_tokens=usage.completion,
            )
        )
        self._file.write(line + b"\n")
        self._file.flush()
        self.written += 1
        return True


def events_of(arrived: list[tuple[float, bytes]]) -> tuple[tuple[float, str], ...] | None:
    """Whole events, each with the time its end came; ``None``: they are no text."""
    out: list[tuple[float, str]] = []
    rest = b""
    try:
        for at, chunk in arrived:
            rest += chunk
            cut = 0
            for end in _END.finditer(rest):
                out.append((round(at, 6), rest[cut : end.end()].decode()))
                cut = end.end()
            rest = rest[cut:]
        if rest:
            out.append((round(arrived[-1][0], 6), rest.decode()))
    except UnicodeDecodeError:
        return None
    return tuple(out)


def whole(arrived: list[tuple[float, bytes]]) -> tuple[tuple[float, str], ...] | None:
    """A whole body with the time its end came; ``None``: it is no text."""
    try:
        text = b"".join(chunk for _, chunk in arrived).decode()
    except UnicodeDecodeError:
        return None
    return ((round(arrived[-1][0], 6), text),)


def _usage(
    dialect: Dialect, status: int, chunks: tuple[tuple[float, str], ...], stream: bool
) -> Usage:
    """The counts an answer tells, where it tells any."""
    spoken = codec(dialect)
    try:
        if status != 200:
            return Usage()
        if not stream:
            return spoken.usage_of("".join(text for _, text in chunks).encode()) or Usage()
        if not hasattr(spoken, "watch"):
            return Usage()
        watch = spoken.watch()
        for _, text in chunks:
            watch.feed(text.encode())
        return watch.usage or Usage()
    except ValueError:
        return Usage()
