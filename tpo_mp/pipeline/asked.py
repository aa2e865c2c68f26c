"""What a call asks last, and the key of everything else in it.

Two calls whose keys are equal differ in nothing but the words of their last message, which is a
user's: same tenant, model, instructions, history, tools and sampling.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from tpo_mp.types import Call, Dialect

from .fingerprint import key_of

_LISTS: Final = {
    Dialect.OPENAI_CHAT: "messages",
    Dialect.ANTHROPIC_MESSAGES: "messages",
    Dialect.OPENAI_RESPONSES: "input",
}
_TEXT: Final = frozenset({"text", "input_text"})


class LastWords(NamedTuple):
    """The last words, and the key of the rest (16 bytes)."""

    words: str
    rest: bytes


def asked_last(call: Call, most_bytes: int) -> LastWords | None:
    """Take a call's last words out; ``None`` where these are not the words of a user alone.

    Nor are they taken when there are more than ``most_bytes`` of them.
    """
    name = _LISTS.get(call.dialect)
    if name is None:
        return None
    try:
        body = orjson.loads(call.body)
    except ValueError:
        return None
    if type(body) is not dict:
        return None
    words = _take_out(body, name)
    if words is None or not 0 < len(words.encode("utf-8", "surrogatepass")) <= most_bytes:
        return None
    body.pop("stream", None)
    body.pop("stream_options", None)
    rest = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    model = "" if body.get("model") == call.model else call.model
    return LastWords(words, key_of(call, model, rest))


def _take_out(body: dict[str, Any], name: str) -> str | None:
    """Empty the last words' place."""
    turns = body.get(name)
    if type(turns) is str:
        body[name] = ""
        return turns
    if type(turns) is not list or not turns or type(last := turns[-1]) is not dict:
        return None
    if last.get("role") != "user":
        return None
    holder, place = last, "content"
    parts = last.get("content")
    if type(parts) is list:
        if len(parts) != 1 or type(parts[0]) is not dict or parts[0].get("type") not in _TEXT:
            return None
        holder, place = parts[0], "text"
    words = holder.get(place)
    if type(words) is not str:
        return None
    holder[place] = ""
    return words
