"""Features by door, with the options that the full pipeline gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from tpo_mp import registry
from tpo_mp.config import load
from tpo_mp.config.tree import Config
from tpo_mp.ports import Door

FULL = Path(__file__).parents[1] / "e2e/pipelines/full.toml"


def full() -> Config:
    """The configuration that names every feature."""
    return load.load(FULL, {"insecure": True}, {})


def names(door: Door) -> list[str]:
    """Every registered name behind a door."""
    return registry.names(door)


def check_options(kind: Any) -> None:
    """Options are frozen, strict, and every field says what it is for."""
    assert issubclass(kind, msgspec.Struct)
    config = kind.__struct_config__
    assert config.frozen, kind
    assert config.forbid_unknown_fields, kind
    hints = get_type_hints(kind, include_extras=True)
    assert not [name for name in kind.__struct_fields__ if not _described(hints[name])], kind


def _described(hint: Any) -> bool:
    """A sentence of its own, or a struct with one."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return bool(hint.__doc__)
    return any(getattr(meta, "description", None) for meta in getattr(hint, "__metadata__", ()))
