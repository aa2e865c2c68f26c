"""The key of a call: two calls with the same key may have the same answer.

A key is 128 bits of BLAKE2b over everything that an answer depends upon::

    tenant · credential for the upstream · dialect · model · header lines that go upstream
    · the whole body, as JSON with sorted names, without what only says how it is delivered

Left out are ``stream`` and ``stream_options``; priority, deadline and the lines of a trace are no
part of a body.  Everything else counts, whether it is known here or not: an unknown field makes
two keys, never one answer to two questions.  Of numbers, 0 and 0.0 are the same.

Words of messages are normalised: Unicode NFC, trimmed, each run of white space one character (a
line break where it has one).  Left as they are: the inside of words with indented lines or fences,
where white space is meaning; raw prompts and a last assistant message, which are continued from
their last character; input of embeddings; what tools answered.

A call is *sure* when it asks for the same answer again: embeddings, temperature 0, or a seed.
It has no key at all when an answer is more than its words: what an upstream keeps or continues
(``store``, ``previous_response_id``, ``conversation``, a container), tools that the upstream runs
(search, code), sound; counts of tokens; and bodies above ``MAX_BODY_BYTES``.

Invariants: a key is made once per body and kept on the call; a call that cannot be sure is told by
a look at its bytes, without reading its JSON.
Known weakness: one question asked in two dialects has two keys; a picture is its URL, whatever is
found there later; names that are given twice in one object count as their last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from unicodedata import normalize

import orjson

from tpo_mp.dialects.most_output import COUNTING
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Call, Dialect

KEY_BYTES: Final = 16
MAX_BODY_BYTES: Final = 128 << 10
"""Reading, sorting and hashing more would hold the loop for a millisecond."""

_EMBEDDINGS: Final = frozenset({Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS})
_ZERO: Final = re.compile(rb'"temperature"\s*:\s*-?0(?:\.0*)?(?:[eE][-+]?\d+)?[\s,}]').match
_ZEROES: Final = (b":0,", b": 0,", b":0.0,", b": 0.0,", b":0}", b": 0}")
"""How nearly everybody writes it; a look at these takes a third of the pattern's time."""
_BEYOND_WORDS: Final = frozenset(
    {"previous_response_id", "conversation", "background", "container", "mcp_servers",
     "web_search_options", "audio", "cachedContent"}
)  # fmt: skip
_OF_TRACES: Final = (b"traceparent:", b"tracestate:", b"baggage:")
_RUN: Final = re.compile(r"\s+")
_LAID_OUT: Final = re.compile(r"\n[ \t]|\t|```")
_SORTED: Final = orjson.OPT_SORT_KEYS


class Match(StrEnum):
    """Which calls may share an answer: those that are sure, or all that have a key."""

    DETERMINISTIC = "deterministic"
    ALL = "all"


class Reuse(IntEnum):
    """What a client allows: an earlier answer, only that its own is kept, or neither."""

    ANY = 0
    REFRESH = 1
    NONE = 2


# A member is looked up in its enum for a tenth of a microsecond.
_ALL: Final = Match.ALL
_GEMINI: Final = Dialect.GEMINI
_RESPONSES: Final = Dialect.OPENAI_RESPONSES


class _Found:
    """What is known of one body; one that was not ``read`` cannot be sure."""

    __slots__ = ("body", "kept_as", "key", "read", "sure")

    def __init__(self, body: bytes, key: bytes | None, sure: bool, read: bool = True) -> None:
        self.body = body
        self.key = key
        self.sure = sure
        self.read = read
        self.kept_as: tuple[int, bytes] | None = None
        """What the answer is kept under, and the salt that it was worked out with."""


def fingerprint(call: Call, match: Match) -> bytes | None:
    """The key of a call, of 16 bytes; ``None`` when it must be asked by itself.

    ``call.reuse`` is the caller's to heed.  Costs half a microsecond where the body names neither
    seed nor temperature, a few the first time otherwise, and next to nothing when asked again.
    """
    found: _Found | None = call.fingerprint
    if found is None or found.body is not call.body:
        read = match is _ALL or _may_be_sure(call)
        found = call.fingerprint = _read(call) if read else _Found(call.body, None, False, False)
    elif match is _ALL and not found.read:
        found = call.fingerprint = _read(call)
    return found.key if found.sure or match is _ALL else None


def _may_be_sure(call: Call) -> bool:
    """Whether reading the body is worth it."""
    body = call.body
    at = body.find(b'"temperature"')
    while at >= 0:
        if body.startswith(_ZEROES, at + 13) or _ZERO(body, at):
            return True
        at = body.find(b'"temperature"', at + 13)
    return body.find(b'"seed"') >= 0 or call.dialect in _EMBEDDINGS


def _read(call: Call) -> _Found:
    body, dialect = call.body, call.dialect
    if len(body) > MAX_BODY_BYTES or dialect in COUNTING:
        return _Found(body, None, False)
    try:
        asked = orjson.loads(body)
    except ValueError:
        return _Found(body, None, False)
    if type(asked) is not dict or not _is_words(dialect, asked):
        return _Found(body, None, False)
    sampling = asked
    if dialect is _GEMINI:
        sampling = asked.get("generationConfig") or asked.get("generation_config") or {}
        if type(sampling) is not dict:
            return _Found(body, None, False)
    sure = _is_sure(sampling) or dialect in _EMBEDDINGS
    asked.pop("stream", None)
    asked.pop("stream_options", None)
    normalise = _NORMALISE.get(dialect)
    if normalise is not None:
        # Most bodies hold no run of white space, no escape and nothing to compose: trimming does.
        plain = body.isascii() and b"\\" not in body and body.find(b"  ") < 0
        normalise(asked, str.strip if plain else _words)
    try:
        canonical = orjson.dumps(asked, option=_SORTED)
    except TypeError:  # nested too deep
        return _Found(body, None, False)
    model = "" if asked.get("model") == call.model else call.model
    return _Found(body, key_of(call, model, canonical), sure)


def key_of(call: Call, model: str, canonical: bytes) -> bytes:
    """The key of canonical JSON that is asked as this call is; ``model`` where it names none."""
    parts = (_scope(call.tenant, call.dialect, model), call.authorization or b"",
             _untraced(call.forward) if call.forward else b"", canonical)  # fmt: skip
    # Neither header values nor JSON hold a NUL: no two lists of parts make the same bytes.
    return blake2b(b"\0".join(parts), digest_size=KEY_BYTES).digest()


@lru_cache(maxsize=1024)
def _scope(tenant: str, dialect: Dialect, model: str) -> bytes:
    """Whose call it is, and of what; each name says its length."""
    scope = f"{dialect} {len(tenant)} {tenant} {len(model)} {model}"
    return scope.encode("utf-8", "surrogatepass")


def _untraced(lines: bytes) -> bytes:
    """Header lines without those that are of one call only."""
    kept = [line for line in lines.splitlines(True) if not line.lower().startswith(_OF_TRACES)]
    return b"".join(sorted(kept))


def _is_sure(sampling: dict[str, Any]) -> bool:
    """Whether it asks for the same answer again; equal numbers become the same."""
    top_p = sampling.get("top_p")
    if type(top_p) is float and top_p.is_integer():
        sampling["top_p"] = int(top_p)
    heat = sampling.get("temperature")
    if type(heat) is float and heat.is_integer():
        heat = sampling["temperature"] = int(heat)
    return (heat == 0 and type(heat) is int) or type(sampling.get("seed")) is int


def _is_words(dialect: Dialect, asked: dict[str, Any]) -> bool:
    """Whether the answer is nothing but what it says."""
    if not _BEYOND_WORDS.isdisjoint(asked):
        return False
    if dialect is _RESPONSES:
        # They are kept unless the client says no; a prompt by its name changes behind it.
        if asked.get("store") is not False or "prompt" in asked:
            return False
    elif asked.get("store"):
        return False
    tools = asked.get("tools")
    if not tools:
        return True
    if type(tools) is not list:
        return False
    run_by_client = _is_declared if dialect is _GEMINI else _is_function
    return all(type(tool) is dict and run_by_client(tool) for tool in tools)


def _is_function(tool: dict[str, Any]) -> bool:
    return tool.get("type", "custom") in ("function", "custom")


def _is_declared(tool: dict[str, Any]) -> bool:
    return all(name in ("functionDeclarations", "function_declarations") for name in tool)


def reuse_of(headers: Mapping[bytes, bytes]) -> Reuse:
    """What a client allows by its headers; raises ``InvalidRequest``.

    ``X-TPO-Cache`` is ``no-store`` (neither answered by an earlier answer nor kept) or ``no-cache``
    (asked afresh, and kept); of ``Cache-Control`` these two and ``max-age=0`` count.
    """
    ours = headers.get(b"x-tpo-cache")
    if ours is not None:
        found = _ORDERS.get(ours.lower())
        if found is None:
            raise InvalidRequest("x-tpo-cache must be no-store or no-cache", param="x-tpo-cache")
        return found
    words = headers.get(b"cache-control", b"").lower().replace(b" ", b"").split(b",")
    return max((_ORDERS.get(word, Reuse.ANY) for word in words), default=Reuse.ANY)


_ORDERS: Final = {
    b"no-store": Reuse.NONE, b"no-cache": Reuse.REFRESH, b"max-age=0": Reuse.REFRESH,
}  # fmt: skip


# -- words ----------------------------------------------------------------------------------------

_Words = Callable[[str], str]


def _words(text: str) -> str:
    """Words in their one spelling."""
    if not text.isascii():
        text = normalize("NFC", text)
    trimmed = text.strip()
    # The first line's indentation belongs to such a text, too.
    return text.rstrip() if _LAID_OUT.search(trimmed) else _RUN.sub(_one, trimmed)


def _one(run: re.Match[str]) -> str:
    found = run.group()
    return "\n" if "\n" in found or "\r" in found else " "


def _chat(asked: dict[str, Any], words: _Words) -> None:
    if "system" in asked:
        _part(asked, "system", words)
    _messages(asked.get("messages"), words)


def _responses(asked: dict[str, Any], words: _Words) -> None:
    _part(asked, "instructions", words)
    given = asked.get("input")
    if type(given) is str:
        asked["input"] = words(given)
    else:
        _messages(given, words)


def _messages(messages: Any, words: _Words) -> None:
    if type(messages) is not list:
        return
    for message in messages:
        if type(message) is dict:
            role = message.get("role")
            if type(role) is str and (
                role in _SPEAKERS or (role == "assistant" and message is not messages[-1])
            ):
                content = message.get("content")
                if type(content) is str:
                    message["content"] = words(content)
                else:
                    _part(message, "content", words)


_SPEAKERS: Final = frozenset({"user", "system", "developer"})
_OF_WORDS: Final = frozenset({"text", "input_text", "output_text"})


def _part(holder: dict[str, Any], name: str, words: _Words) -> None:
    """Normalise a text, or the texts of a list of typed parts."""
    content = holder.get(name)
    if type(content) is str:
        holder[name] = words(content)
    elif type(content) is list:
        for part in content:
            if type(part) is dict and part.get("type") in _OF_WORDS:
                text = part.get("text")
                if type(text) is str:
                    part["text"] = words(text)


_NORMALISE: Final[dict[Dialect, Callable[[dict[str, Any], _Words], None]]] = {
    Dialect.OPENAI_CHAT: _chat,
    Dialect.ANTHROPIC_MESSAGES: _chat,
    Dialect.OPENAI_RESPONSES: _responses,
}
