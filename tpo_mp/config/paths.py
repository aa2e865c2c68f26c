"""Dotted paths into a plain tree: read, write, take out.

Invariants: a path names dict keys only; lists are handled by whoever knows their shape.
"""

from __future__ import annotations

from typing import Any, Final

from .text import Tree


class _Absent:
    """Marks a path that leads nowhere."""


ABSENT: Final = _Absent()


def get(tree: Tree, path: str) -> Any:
    """Answer the value at a path, or ``ABSENT``."""
    node: Any = tree
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return ABSENT
        node = node[key]
    return node


def put(tree: Tree, path: str, value: object) -> bool:
    """Write a value, making tables on the way; false when something else is in the way."""
    *parents, last = path.split(".")
    node: Any = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return False
    node[last] = value
    return True


def take(tree: Tree, path: str) -> Any:
    """Remove and answer the value at a path, or ``ABSENT``; tables left empty by it go too."""
    value = get(tree, path)
    if value is ABSENT:
        return ABSENT
    keys = path.split(".")
    chain: list[Tree] = [tree]
    for key in keys[:-1]:
        chain.append(chain[-1][key])
    del chain[-1][keys[-1]]
    for depth in range(len(keys) - 2, -1, -1):
        if chain[depth + 1]:
            break
        del chain[depth][keys[depth]]
    return value
