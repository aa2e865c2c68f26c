"""Dotted paths: values move without leaving empty tables behind."""

from __future__ import annotations

from typing import Any

from tpo_mp.config.paths import ABSENT, get, put, take


def test_value_is_found_by_its_path() -> None:
    """A path through something that is no table leads nowhere."""
    tree = {"a": {"b": 1}}
    assert get(tree, "a.b") == 1
    assert get(tree, "a.c") is get(tree, "a.b.c") is get(tree, "x") is ABSENT


def test_tables_are_made_on_the_way() -> None:
    """And a value in the way is left alone."""
    tree: dict[str, Any] = {"x": 1}
    assert put(tree, "a.b", 2)
    assert not put(tree, "x.y", 3)
    assert tree == {"x": 1, "a": {"b": 2}}


def test_taken_value_leaves_no_empty_table() -> None:
    """An empty ``[resilience]`` would be an unknown section."""
    tree = {"a": {"b": {"c": 1}}, "d": {"e": 1, "f": 2}}
    assert take(tree, "a.b.c") == 1
    assert take(tree, "d.e") == 1
    assert take(tree, "d.g") is ABSENT
    assert tree == {"d": {"f": 2}}
