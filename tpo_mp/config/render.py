"""A loaded config in its canonical form: every setting that counts, secrets as references.

Invariants: loading the canonical form gives the same settings again, literal secrets excepted,
which show as ``***``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from . import catalog, toml_out
from .problems import is_private
from .text import Tree
from .tree import Config
from .values import Secret

_CREDENTIALS_INSIDE: Final = frozenset({"headers", "query"})
"""Tables of plain strings in which somebody will have put a credential all the same."""


def check_text(config: Config) -> str:
    """Render the canonical TOML."""
    notes = "".join(f"# {line}\n" for line in config.warnings)
    return notes + toml_out.dumps(canonical(config))


def canonical(config: Config) -> Tree:
    """Answer the canonical tree: settings without a value are left out."""
    tree: Tree = {
        name: _plain(getattr(config, name))
        for name in (
            "server",
            "supervisor",
            "pipeline",
            "rings",
            "store",
            "observability",
            "auth",
            "prices",
        )
    }
    if not config.ops_port_given:
        del tree["server"]["ops_port"]  # written down, the default would count as chosen
    tree["pipeline"]["stages"] = list(config.stage_order)
    if config.distributed is not None:
        tree["distributed"] = _plain(config.distributed)
    if config.stages:
        tree["stages"] = {name: _plain(options) for name, options in config.stages.items()}
    tree["surfaces"] = {name: _plain(options) for name, options in config.surfaces.items()}
    for name in catalog.SURFACES:
        tree["surfaces"].setdefault(name, {"enabled": False})
    tree["backends"] = [_plain(backend) for backend in config.backends]
    if config.engines:
        tree["engines"] = [_plain(engine) for engine in config.engines]
    tree["routes"] = [
        {
            "models": list(rule.models),
            "strategy": rule.strategy,
            "backends": list(rule.backends),
            **(_plain(rule.options) if rule.options is not None else {}),
        }
        for rule in config.routes
    ]
    return tree


def _plain(options: Struct) -> Tree:
    made: Tree = _without_nulls(msgspec.to_builtins(options, enc_hook=_shown))
    return made


def _shown(value: object) -> object:
    assert isinstance(value, Secret), type(value).__name__
    return value.shown()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _masked(item) if key in _CREDENTIALS_INSIDE else _without_nulls(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def _masked(pairs: dict[str, str]) -> dict[str, str]:
    return {name: "***" if is_private(name) else value for name, value in pairs.items()}
