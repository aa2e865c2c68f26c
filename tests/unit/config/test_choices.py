"""Every setting that is one of several words: a slip of the pen is told with what was meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
import pytest
from msgspec import Struct

from tpo_mp import registry
from tpo_mp.config.check import Converter, _literals, _parts
from tpo_mp.config.problems import Problems
from tpo_mp.config.tree import Config
from tpo_mp.ports import Door

_DEEP = 12
Choice = tuple[str, Any, tuple[str, ...]]
"""Where a word is wrong, in which table, and the words that are right."""


def choices(kind: Any, path: str, wrap: Any, depth: int = 0) -> Iterator[Choice]:
    """All choices below a type; ``wrap`` makes the table round a value."""
    parts = _parts(kind)
    words = tuple(w for part in parts for w in _literals(part) if isinstance(w, str))
    if words:
        yield path, wrap(words[0] + "x"), words
    for part in parts if depth < _DEEP else ():
        inside = get_args(part)
        if isinstance(part, type) and issubclass(part, Struct):
            yield from of_struct(part, path, wrap, depth)
        elif get_origin(part) is dict:
            yield from choices(inside[1], f"{path}.x", lambda v: wrap({"x": v}), depth + 1)
        elif get_origin(part) in (tuple, list):
            yield from choices(inside[0], f"{path}[0]", lambda v: wrap([v]), depth + 1)


def of_struct(part: type[Struct], path: str, wrap: Any, depth: int) -> Iterator[Choice]:
    """Those of its fields, and its tag."""
    config = part.__struct_config__
    tag = {config.tag_field: config.tag} if config.tag is not None else {}
    if config.tag_field is not None and isinstance(config.tag, str):
        yield (
            f"{path}.{config.tag_field}",
            wrap({config.tag_field: config.tag + "x"}),
            (config.tag,),
        )
    for field in msgspec.structs.fields(part):
        name = field.encode_name

        def put(v: Any, name: str = name) -> Any:
            return wrap(tag | {name: v})

        yield from choices(field.type, f"{path}.{name}", put, depth + 1)


def roots() -> Iterator[tuple[str, type[Struct]]]:
    """Every table a config may have."""
    for field in msgspec.structs.fields(Config):
        for part in _parts(field.type):
            inner = get_args(part)[0] if get_origin(part) is tuple else part
            if isinstance(inner, type) and issubclass(inner, Struct) and field.name != "routes":
                yield field.name, inner
    for door in get_args(Door):
        for name in registry.names(door):
            yield f"{door}.{name}", registry.find(door, name).Config


@pytest.mark.parametrize(("root", "kind"), [pytest.param(*each, id=each[0]) for each in roots()])
def test_a_slip_of_the_pen_is_told_with_what_was_meant(root: str, kind: type[Struct]) -> None:
    """Path, value, all that may stand there, and the nearest of it."""
    for path, table, words in of_struct(kind, root, lambda value: value, 0):
        problems = Problems()
        assert Converter({}, None, problems).convert(table, kind, root) is None
        line = problems.lines[0]
        place, told, said = line.partition(f" = {words[0] + 'x'!r}: ")
        assert (place, bool(told)) == (path, True), line
        assert said.endswith(f"; did you mean {words[0]!r}?"), line
        assert all(word in said for word in words), line


def test_there_are_such_settings() -> None:
    """In process sections, features and deep inside."""
    found = [path for name, kind in roots() for path, *_ in of_struct(kind, name, id, 0)]
    assert {"store.durability", "stages.cache.match"} <= set(found)
    assert len(found) > 50
