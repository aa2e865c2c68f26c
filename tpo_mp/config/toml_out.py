"""Writes a plain tree as TOML: scalars first, then tables, then lists of tables.

Invariants: ``tomllib`` reads back what is written; a table with one plain value stays on its line.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from .text import Tree

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_LINE: Final = 88


def dumps(tree: Tree) -> str:
    """Render a tree."""
    lines: list[str] = []
    _table(tree, (), lines)
    return "\n".join(lines).strip() + "\n"


def section(path: tuple[str, ...], value: Tree | list[Tree]) -> str:
    """Render one table, or a list of tables, under its whole name."""
    lines: list[str] = []
    _block(value, path, lines)
    return "\n".join(lines).strip() + "\n"


def _table(tree: Tree, path: tuple[str, ...], lines: list[str]) -> None:
    blocks = []
    for key, value in tree.items():
        if _is_block(value):
            blocks.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in blocks:
        _block(value, (*path, key), lines)


def _block(value: Tree | list[Tree], path: tuple[str, ...], lines: list[str]) -> None:
    name = ".".join(_key(part) for part in path)
    for item in value if isinstance(value, list) else [value]:
        lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
        _table(item, path, lines)


def _is_block(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) for item in value)
    if not isinstance(value, dict) or not value:
        return False
    return len(value) > 1 or isinstance(next(iter(value.values())), dict | list)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    items = [_value(item) for item in value]
    line = f"[{', '.join(items)}]"
    if len(line) <= _LINE or not items:
        return line
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]"
