"""Plain trees as TOML, YAML or JSON, and rows as a table: how commands print what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import orjson

from tpo_mp.config import toml_out

Form: TypeAlias = Literal["toml", "yaml", "json"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)


def printed(tree: Mapping[str, Any], form: str) -> str:
    """A tree in one of the forms, without a line's end."""
    if form == "json":
        return json_of(tree)
    if form == "toml":
        return toml_out.dumps(dict(tree)).rstrip("\n")
    import yaml  # only for whoever wants it

    told: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
    return told.rstrip("\n")


def json_of(value: object) -> str:
    """A value as JSON for people."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells, the first of them the head, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
