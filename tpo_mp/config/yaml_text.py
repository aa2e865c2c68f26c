"""YAML under PyYAML's safe loader, with duplicate keys, custom tags and many aliases refused.

Invariants: only plain scalars, lists and maps come out.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import yaml

_ALIASES: Final = 100


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses what a config never needs."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count aliases while the tree is composed."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _ALIASES:
                raise yaml.YAMLError(f"more than {_ALIASES} aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a map whose keys all differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    where = key.start_mark
                    raise yaml.YAMLError(f"line {where.line + 1}: key {key.value!r} appears twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(text: str) -> object:
    """Parse one document; raises ``ValueError`` with one line."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data() or {}
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
