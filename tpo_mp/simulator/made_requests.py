"""Requests that a client might send: one that is described, or any number that are made up.

Made-up ones differ in model, length, turns, tools and streaming, as traffic does; what kinds there
are and how often is this file's choice, not a measurement.

Invariants: a simulator with its shipped models answers each of them; the n-th request of a seed is
the same whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import quote

from tpo_mp.types import Dialect

from .catalog import MODELS, traits_of
from .endpoints import PATHS
from .seeds import stream_of

ApiFamily: TypeAlias = Literal["openai", "anthropic", "google"]
FAMILIES: Final[tuple[ApiFamily, ...]] = get_args(ApiFamily)
DIALECTS: Final[Mapping[str, Dialect]] = {
    "openai": Dialect.OPENAI_CHAT, "anthropic": Dialect.ANTHROPIC_MESSAGES,
    "google": Dialect.GEMINI,
}  # fmt: skip
"""What a family's chat requests are written in."""
_PREFIX: Final = {"openai": ("gpt-", "o"), "anthropic": ("claude-",), "google": ("gemini-",)}
_LEGACY: Final = ("claude-2.1",)

_SUBJECTS: Final = (
    "rivers", "sorting algorithms", "the Hanseatic League", "bread", "tides",
    "relational databases", "the violin", "glaciers", "tax returns", "chess openings",
    "bicycles", "volcanoes", "regular expressions", "the printing press", "bees", "load balancers",
    "the weather in Lisbon", "train timetables", "vaccines", "the night sky",
)  # fmt: skip
_TASKS: Final = (
    "Tell me about {subject}.",
    "What should a beginner know about {subject}?",
    "Write a short story in which {subject} matter.",
    "Summarise in {n} sentences what is known about {subject}.",
    "List {n} common mistakes about {subject}.",
    "How would you explain {subject} to a child of {n}?",
    "Compare {subject} with {other}.",
    "Why do people care about {subject}?",
)
_SYSTEMS: Final = (
    "Answer briefly.", "You are a patient teacher.", "Answer in plain words.",
    "You are the assistant of a library.",
)  # fmt: skip
_TOOL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"query": {"type": "string"}, "most": {"type": "integer", "minimum": 1}},
    "required": ["query"],
}
_TOOL_NAME: Final = "search_library"
_TOOL_SAYS: Final = "Find books by what they are about."


def chat_path(family: str, model: str, *, stream: bool = False) -> str:
    """Where a family's chat requests go."""
    if family == "google":
        way = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"/v1beta/models/{quote(model, safe='')}:{way}"
    return PATHS[DIALECTS[family]]


def chat_body(
    family: str,
    model: str,
    message: str,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: bool = False,
) -> dict[str, Any]:
    """One question as a family's body; Google's has no ``model`` and ``stream``: its path does."""
    turns = [("user", message)]
    return _body(family, model, turns, system, max_tokens, temperature, stream=stream)


def bodies(family: ApiFamily, seed: int, model: str | None = None) -> Iterator[dict[str, Any]]:
    """Bodies without end; ``model`` fixes what is asked of them."""
    known = [m for m in MODELS if m.startswith(_PREFIX[family]) and m not in _LEGACY]
    known = [m for m in known if traits_of(m).kind == "chat"]
    number = 0
    while True:
        random = stream_of(seed.to_bytes(8, "big"), "request", family, number)
        yield _made_up(family, model or random.choice(known), random)
        number += 1


def _made_up(family: ApiFamily, model: str, random: Random) -> dict[str, Any]:
    turns = [("user", _question(random))]
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        turns += [
            ("assistant", "That depends on what you need it for."),
            ("user", _question(random)),
        ]
    system = random.choice(_SYSTEMS) if random.random() < 0.4 else None
    most = random.choice((64, 128, 256, 512))
    heat = (
        round(random.random(), 1)
        if random.random() < 0.5 and not traits_of(model).reasons
        else None
    )
    body = _body(family, model, turns, system, most, heat, stream=random.random() < 0.5)
    if random.random() < 0.2:
        body["tools"] = [_tool(family)]
    return body


def _question(random: Random) -> str:
    subject, other = random.sample(_SUBJECTS, 2)
    return random.choice(_TASKS).format(subject=subject, other=other, n=random.randint(3, 12))


def _body(
    family: str,
    model: str,
    turns: list[tuple[str, str]],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    *,
    stream: bool,
) -> dict[str, Any]:
    if family == "google":
        return _google(turns, system, max_tokens, temperature)
    messages = [{"role": role, "content": said} for role, said in turns]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if family == "anthropic":
        if system is not None:
            body["system"] = system
        body["max_tokens"] = max_tokens or 1024  # it must be said
    else:
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        if max_tokens is not None:
            # Models that think take their limit by its newer name only.
            body["max_completion_tokens" if traits_of(model).reasons else "max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
    if stream:
        body["stream"] = True
    return body


def _google(
    turns: list[tuple[str, str]],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> dict[str, Any]:
    roles = {"user": "user", "assistant": "model"}
    body: dict[str, Any] = {
        "contents": [{"role": roles[role], "parts": [{"text": said}]} for role, said in turns]
    }
    if system is not None:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    options = {"maxOutputTokens": max_tokens, "temperature": temperature}
    told = {name: value for name, value in options.items() if value is not None}
    return body | ({"generationConfig": told} if told else {})


def _tool(family: ApiFamily) -> dict[str, Any]:
    said = {"name": _TOOL_NAME, "description": _TOOL_SAYS}
    ways: Mapping[ApiFamily, Callable[[], dict[str, Any]]] = {
        "openai": lambda: {"type": "function", "function": {**said, "parameters": _TOOL}},
        "anthropic": lambda: {**said, "input_schema": _TOOL},
        "google": lambda: {"functionDeclarations": [{**said, "parameters": _TOOL}]},
    }
    return ways[family]()
