"""Which codec is which, and what does not translate: the table the docs are made of.

Invariants: the table is read off the codecs' own declarations, the same ones that refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tpo_mp.errors import NotFound

from . import (
    anthropic_complete,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_responses,
)
from .canonical import Trait
from .codec import Codec

CODECS: Mapping[str, Codec] = {
    openai_chat.NAME: openai_chat,
    openai_completions.NAME: openai_completions,
    openai_responses.NAME: openai_responses,
    anthropic_messages.NAME: anthropic_messages,
    anthropic_complete.NAME: anthropic_complete,
}
"""Every dialect that generates, by name."""


def codec(name: str) -> Codec:
    """The codec of a dialect; raises ``NotFound``."""
    found = CODECS.get(name)
    if found is None:
        raise NotFound(f"there is no dialect {name!r}", reason="unknown_dialect")
    return found


def answer(source: Codec, target: Codec, trait: Trait) -> Literal["", "yes", "approx", "refused"]:
    """Whether a trait of ``source``'s requests reaches ``target``; "" when it cannot be asked."""
    if trait not in source.NAMES:
        return ""
    if trait not in target.CARRIES:
        return "refused"
    return "approx" if trait in target.APPROXIMATES and source is not target else "yes"


UNSUPPORTED: Mapping[tuple[str, str], Mapping[str, str]] = {
    (client, backend): {
        str(trait): source.NAMES[trait]
        for trait in Trait
        if answer(source, target, trait) == "refused"
    }
    for client, source in CODECS.items()
    for backend, target in CODECS.items()
    if client != backend
}
"""(client dialect, backend dialect) → trait → the client's field that is refused."""


def support_table() -> str:
    """The translation table in Markdown, one row per trait and one column per backend dialect."""
    names = list(CODECS)
    lines = [
        "| a request may ask for | " + " | ".join(f"`{name}`" for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for trait in Trait:
        cells = [_cell(CODECS[name], trait) for name in names]
        lines.append(f"| {trait} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(target: Codec, trait: Trait) -> str:
    if trait not in target.CARRIES:
        return "refused"
    return target.APPROXIMATES.get(trait, "yes")
