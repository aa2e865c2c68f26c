"""Written TOML reads back as the same tree."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.config.toml_out import dumps

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_tree_reads_back(tree: dict[str, Any]) -> None:
    """Any keys, any nesting, tables within lists included."""
    assert tomllib.loads(dumps(tree)) == tree


def test_layout_is_the_one_people_write() -> None:
    """Scalars first, then tables, then lists of tables; a reference stays on its line."""
    tree = {
        "server": {"port": 1, "tls": {"cert": "c", "key": "k"}},
        "backends": [{"name": "a", "api_key": {"env": "K"}}, {"name": "b", "headers": {}}],
    }
    assert dumps(tree) == (
        "[server]\nport = 1\n\n[server.tls]\ncert = \"c\"\nkey = \"k\"\n\n"
        "[[backends]]\nname = \"a\"\napi_key = { env = \"K\" }\n\n"
        "[[backends]]\nname = \"b\"\nheaders = {}\n"
    )  # fmt: skip


def test_long_list_is_broken() -> None:
    """One entry per line beyond the width."""
    assert dumps({"a": ["x" * 50, "y" * 50]}).count("\n") == 4
