"""No config, however odd, does anything but load or be refused in words."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.config.aliases import ALIASES
from tpo_mp.config.blob import from_blob, process_view, to_blob
from tpo_mp.config.load import SECTIONS, build
from tpo_mp.config.paths import put
from tpo_mp.config.render import canonical, check_text
from tpo_mp.config.tree import Config
from tpo_mp.errors import ConfigError

WORDS = st.sampled_from(
    ["", "a", "echo", "openai", "*", "0.0.0.0", "::1", "auto", "json", "http://h/v1", "\x00", "é"]
)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), WORDS,
    st.text(max_size=4),
)  # fmt: skip
KEYS = st.sampled_from([
    "name", "kind", "models", "base_url", "api_key", "env", "file", "enabled", "host", "port",
    "workers", "stages", "strategy", "backends", "id", "secret", "timeouts", "inference", "rag",
    "model_map", "worker", "node_id", "headers", "total_s",
    "a`b", "x` - at `$.y`", "a\nb", "a.b", "a[0]", "", "\u2028",
])  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)
PATHS = st.sampled_from([
    *SECTIONS, "backends", "routes", "stages", "engines", "workers", "cluster_nodes",
    "load_balancing", "nonsense", "auth.keys", "stages.rag", "stages.inference.worker",
    *(alias.old for alias in ALIASES), *(alias.new for alias in ALIASES),
])  # fmt: skip


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Odd values at places that exist."""
    tree: dict[str, Any] = {}
    for path in draw(st.lists(PATHS, max_size=4)):
        put(tree, path, draw(VALUES))
    return tree


FLAGS = st.dictionaries(
    st.sampled_from(["host", "port", "workers", "backend", "model", "base_url", "log_format"]),
    WORDS | st.integers(),
    max_size=2,
)


def attempt(tree: dict[str, Any], flags: dict[str, Any], env: dict[str, str]) -> Config | None:
    """Load, or be refused with at least one line."""
    try:
        return build(tree, flags, env, None)
    except ConfigError as error:
        lines = error.message.splitlines()
    assert lines
    assert all(line.isprintable() and line for line in lines)
    return None


@given(trees(), FLAGS, st.dictionaries(st.sampled_from(["TPO_PORT", "HOST", "PROVIDER"]), WORDS))
def test_config_loads_or_is_refused_in_words(
    tree: dict[str, Any], flags: dict[str, Any], env: dict[str, str]
) -> None:
    """Whatever loads also compiles, reads back and prints."""
    config = attempt(tree, flags, env)
    if config is None:
        return
    blob = to_blob(config)
    assert from_blob(blob) == config
    assert process_view(blob).server == config.server
    assert check_text(config)


@given(st.fixed_dictionaries({}, optional={
    "server": st.fixed_dictionaries({}, optional={
        "port": st.integers(1, 65535), "drain_s": st.floats(0, 100), "workers": st.integers(1, 64),
        "state_dir": st.text("abc/é \"'\\", max_size=8),
    }),
    "pipeline": st.fixed_dictionaries({}, optional={"name": st.text("ab\n\t#=[]\x7f", min_size=1)}),
    "observability": st.fixed_dictionaries({}, optional={"log_level": st.just("debug")}),
}))  # fmt: skip
def test_canonical_form_is_a_fixed_point(tree: dict[str, Any]) -> None:
    """Loading it again changes nothing, whatever the strings hold."""
    config = attempt(tree, {"ops_port": 0}, {})
    assert config is not None
    form = canonical(config)
    again = attempt(canonical(config), {}, {})
    assert again is not None
    assert canonical(again) == form
