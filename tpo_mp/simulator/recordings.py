"""Answers of a real provider, written down with their timings and played again.

A recording is a file of JSON lines, one per request::

    {"path": "/v1/chat/completions", "model": "gpt-4o", "key": "5f…", "stream": true,
     "asked": {…}, "status": 200, "content_type": "text/event-stream", "headers": {…},
     "chunks": [[0.412, "data: {…}\\n\\n"], …], "prompt_tokens": 9, "completion_tokens": 12}

``key`` tells requests apart as answers are (how they are delivered and who asks do not matter),
``chunks`` are whole events with the seconds from the request to each.

Invariants: no credential is in it, because only the fields named here are written; a line that is
not a recording is told with its number; file, lines and entries are bounded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tpo_mp.dialects.body import ROUTING_FIELDS, parse
from tpo_mp.errors import ConfigError, InvalidRequest
from tpo_mp.types import Dialect

from .kept_files import KeptFiles, giving_way
from .seeds import key_of

MOST_FILE_BYTES: Final = 64 << 20
MOST_ENTRIES: Final = 20_000
HEADERS: Final = ("retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms",
                  "openai-version")  # fmt: skip
"""Response headers that are kept, besides those of rate limits."""
_LIMITS: Final = ("x-ratelimit-", "anthropic-ratelimit-")
_PATHS: Final = (
    (re.compile(r"/chat/completions$"), Dialect.OPENAI_CHAT),
    (re.compile(r"/embeddings$"), Dialect.OPENAI_EMBEDDINGS),
    (re.compile(r"/completions$"), Dialect.OPENAI_COMPLETIONS),
    (re.compile(r"/responses$"), Dialect.OPENAI_RESPONSES),
    (re.compile(r"/messages/count_tokens$"), Dialect.ANTHROPIC_COUNT),
    (re.compile(r"/messages$"), Dialect.ANTHROPIC_MESSAGES),
    (re.compile(r"/complete$"), Dialect.ANTHROPIC_COMPLETE),
    (re.compile(r"/models/([^:]+):(?:g|streamG)enerateContent$"), Dialect.GEMINI),
    (re.compile(r"/models/([^:]+):countTokens$"), Dialect.GEMINI_COUNT),
    (
        re.compile(r"/models/([^:]+):(?:embedContent|batchEmbedContents)$"),
        Dialect.GEMINI_EMBEDDINGS,
    ),
)


class Recording(Struct, frozen=True, kw_only=True):
    """One request and its answer."""

    path: str
    model: str
    key: str
    stream: bool
    status: int
    content_type: str
    chunks: tuple[tuple[float, str], ...]
    asked: dict[str, Any] = {}
    headers: dict[str, str] = {}
    prompt_tokens: int = -1
    completion_tokens: int = -1

    @property
    def body(self) -> bytes:
        """The whole answer."""
        return "".join(text for _, text in self.chunks).encode()


class Tape(NamedTuple):
    """What is in a file, in its order and by what tells requests apart."""

    entries: tuple[Recording, ...]
    keyed: Mapping[tuple[str, bool], Sequence[Recording]]


_decode = msgspec.json.Decoder(Recording).decode
encode: Final = msgspec.json.Encoder().encode


def what_is(path: str, body: bytes) -> tuple[Dialect, dict[str, Any]] | None:
    """Dialect and body of a request worth recording, a path's model in it; ``None``: it is none."""
    for pattern, dialect in _PATHS:
        found = pattern.search(path)
        if found is None:
            continue
        try:
            told = parse(body)
        except InvalidRequest:
            return None
        if not isinstance(told, dict):
            return None
        if found.groups():
            told["model"] = found[1]
            if ":stream" in path:
                told["stream"] = True
        return dialect, {n: v for n, v in told.items() if n not in ROUTING_FIELDS}
    return None


def key_for(dialect: Dialect, asked: dict[str, Any]) -> str:
    """What tells a request apart from others of its dialect."""
    return key_of(0, asked | {"": str(dialect)}).hex()


def kept(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Those response headers that a recording keeps."""
    lower = ((name.lower(), value) for name, value in headers)
    return {n: v for n, v in lower if n in HEADERS or n.startswith(_LIMITS)}


def read(path: Path) -> tuple[Recording, ...]:
    """Read a recording; raises ``ConfigError`` with path, line and reason."""
    return KEPT.read(path).entries


def indexed(path: Path) -> Mapping[tuple[str, bool], Sequence[Recording]]:
    """The same, as ``by_key`` puts it together."""
    return KEPT.read(path).keyed


def _parsed(path: Path) -> Tape:
    found: list[Recording] = []
    with path.open("rb") as lines:
        for number, line in giving_way(lines):
            if len(found) == MOST_ENTRIES:
                raise ConfigError(f"{path}: more than {MOST_ENTRIES} recordings")
            try:
                found.append(_decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: line {number}: {error}") from None
    if not found:
        raise ConfigError(f"{path}: no recording is in it")
    return Tape(tuple(found), by_key(found))


KEPT: Final = KeptFiles(_parsed, most=4, most_bytes=MOST_FILE_BYTES)


def by_key(found: Sequence[Recording]) -> dict[tuple[str, bool], list[Recording]]:
    """Recordings by key and whether they are streams, in the order they were made."""
    out: dict[tuple[str, bool], list[Recording]] = defaultdict(list)
    for recording in found:
        out[recording.key, recording.stream].append(recording)
    return dict(out)


def timings(found: Sequence[Recording], what: str) -> Iterator[float]:
    """Milliseconds that good answers took: to their ``first`` event, ``between`` or in ``all``."""
    for recording in found:
        if recording.status != 200 or not recording.chunks:
            continue
        times = [at * 1e3 for at, _ in recording.chunks]
        if what == "first":
            yield times[0]
        elif what == "all":
            yield times[-1]
        else:
            yield from (later - at for at, later in pairwise(times))
