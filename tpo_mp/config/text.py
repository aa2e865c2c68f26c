"""TOML or YAML text to a plain tree of dicts, lists and scalars.

Invariants: no tag of YAML makes an object; a key appears once; aliases may not multiply the tree;
sizes, depth and numbers are bounded.  Null values and top-level ``x-…`` tables are dropped.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Final, TypeAlias

from tpo_mp.errors import ConfigError

Tree: TypeAlias = dict[str, Any]

FILE_LIMIT_BYTES: Final = 4 << 20
UPLOAD_LIMIT_BYTES: Final = 256 << 10
"""Cap of a config that arrives over an API instead of from the operator's disk."""

_NODES: Final = 100_000
_DEPTH: Final = 32
_YAML_SUFFIXES: Final = (".yaml", ".yml", ".json")


def read_file(path: Path) -> Tree:
    """Read a config file; its suffix says TOML or YAML.  Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return parse(data, name=str(path), yaml=path.suffix.lower() in _YAML_SUFFIXES)


def parse(data: bytes, *, name: str, yaml: bool, limit_bytes: int = FILE_LIMIT_BYTES) -> Tree:
    """Parse a whole config text; ``name`` is for messages.  Raises ``ConfigError``."""
    if len(data) > limit_bytes:
        raise ConfigError(f"{name}: over {limit_bytes} bytes")
    try:
        text = data.decode("utf-8-sig")
        tree = _parse_yaml(text) if yaml else tomllib.loads(text)
        if not isinstance(tree, dict):
            raise ValueError(f"expected a table of sections, got {type(tree).__name__}")
        require_bounds(tree)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text at byte {error.start}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested deeper than {_DEPTH}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return {k: _without_nulls(v) for k, v in tree.items() if v is not None and k[:2] != "x-"}


class _Bounds:
    """Walks a parsed tree as if aliases were copies, and stops a tree that is too large."""

    def __init__(self) -> None:
        self.nodes = 0

    def check(self, value: object, path: str, depth: int) -> None:
        self.nodes += 1
        if self.nodes > _NODES:
            raise ValueError(f"more than {_NODES} values, aliases included")
        if depth > _DEPTH:
            raise ValueError(f"{path}: nested deeper than {_DEPTH}")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{path or 'top level'}: key {key!r} is not a string")
                _require_unicode(key, path)
                self.check(item, f"{path}.{key}" if path else key, depth + 1)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.check(item, f"{path}[{index}]", depth + 1)
        elif isinstance(value, str) and not value.isascii():
            _require_unicode(value, path)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: {value} is not a finite number")


def _require_unicode(text: str, path: str) -> None:
    """Refuse half a surrogate pair: YAML escapes and odd environments can make one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: not valid Unicode") from None


def require_bounds(tree: Tree) -> None:
    """Check the values of a whole tree; raises ``ValueError``."""
    _Bounds().check(tree, "", 0)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _parse_yaml(text: str) -> object:
    from .yaml_text import load  # PyYAML loads only for YAML files

    return load(text)
