"""Finds a feature by its file name, or by an entry point of the same name from outside.

Invariants: nothing is imported that is not asked for by name; lookup is re-entrant, because it
happens in every process; installed packages are looked at for names that are not ours only, since
that takes as long as a third of a start of a process.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import re
from functools import cache
from typing import TYPE_CHECKING

from .errors import ConfigError
from .ports import Door, Feature

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,63}$")


def names(door: Door) -> list[str]:
    """List every feature behind a door, without importing any."""
    package = importlib.import_module(f"tpo_mp.{door}")
    inside = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(inside | _outside(door))


def knows(door: Door, name: str) -> bool:
    """Whether there is such a feature; imports none."""
    return is_ours(door, name) or name in _outside(door)


def is_ours(door: Door, name: str) -> bool:
    """Whether there is such a feature in this package; imports none."""
    found = _NAME.match(name) and importlib.util.find_spec(f"tpo_mp.{door}.{name}")
    return found is not None


@cache
def _outside(door: Door) -> frozenset[str]:
    """Names from other packages; asked once, because every installed package is looked at."""
    return frozenset(point.name for point in _points(door))


def _points(door: Door) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=f"tpo_mp.{door}"))


def find(door: Door, name: str) -> Feature:
    """Import one feature; raises ``ConfigError`` with a suggestion when there is none.

    A feature of ours cannot be replaced from outside, and two from outside may not share a name.
    """
    if is_ours(door, name):
        feature = importlib.import_module(f"tpo_mp.{door}.{name}").FEATURE
        assert isinstance(feature, Feature)
        return feature
    # One package that is found twice (an editable install, say) is still one.
    outside = list({e.value: e for e in _points(door) if e.name == name}.values())
    if not outside:
        raise ConfigError(_unknown(door, name))
    if len(outside) > 1:
        several = " and ".join(sorted(e.value for e in outside))
        raise ConfigError(f"{door.rstrip('s')} {name!r} comes from {several}; uninstall one")
    return _load(door, outside[0])


def _load(door: Door, point: EntryPoint) -> Feature:
    """Import what a stranger wrote; whatever is wrong with it is a line, not a traceback."""
    about = f"{door.rstrip('s')} {point.name!r} ({point.value})"
    try:
        feature = point.load()
    except Exception as e:
        raise ConfigError(f"{about} cannot be loaded: {type(e).__name__}: {e}") from e
    if not isinstance(feature, Feature):
        raise ConfigError(f"{about} is no Feature, but {type(feature).__name__}")
    return feature


def _unknown(door: Door, name: str) -> str:
    known = names(door)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"no such {door.rstrip('s')} {name!r}; {hint}"
