"""Reads query parameters; what is out of range is refused with its name.

Invariants: a parameter given twice is refused, because clients and proxies disagree on which wins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl

from tpo_mp.errors import InvalidRequest

from .head import Head


def parameters(head: Head) -> dict[str, str]:
    """The query of a request; raises ``InvalidRequest``."""
    pairs = parse_qsl(head.query.decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise InvalidRequest("a query parameter is given twice")
    return query


def number(query: Mapping[str, str], name: str, default: float, most: float) -> float:
    """A number from 0 to ``most``."""
    raw = query.get(name)
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidRequest(f"{name} must be a number from 0 to {most:g}", param=name)
    return value


def whole(query: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``."""
    raw = query.get(name, str(default))
    if not (raw.isascii() and raw.isdigit() and len(raw) < 20 and least <= int(raw) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}", param=name)
    return int(raw)


def choice(query: Mapping[str, str], name: str, words: Collection[str]) -> str | None:
    """One of ``words``, or ``None`` when it is not given."""
    raw = query.get(name)
    if raw is not None and raw not in words:
        raise InvalidRequest(f"{name} must be one of {', '.join(words)}", param=name)
    return raw


def listed(head: Head, name: str) -> list[str]:
    """The values of the one parameter that may be given several times; other names are refused."""
    pairs = parse_qsl(head.query.decode("latin-1"), keep_blank_values=True)
    odd = next((key for key, _ in pairs if key != name), None)
    if odd is not None:
        raise InvalidRequest(f"{odd[:80]} is no parameter here; {name} is", param=odd[:80])
    return [value for _, value in pairs]
