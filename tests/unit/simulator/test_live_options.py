"""Options changed while the simulator runs: checked as a file's are, and never half applied."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from tpo_mp.backends.simulator import Config
from tpo_mp.errors import ConfigError, InvalidRequest
from tpo_mp.ports import BackendConfig
from tpo_mp.simulator.live import NOTHING_TOLD, LiveState
from tpo_mp.simulator.live_options import changed, patched, shown, simulators

FILE = Config(name="sim", kind="simulator", seed=3, text="from the file", token_ms=5.0)


def take(_config: BackendConfig, _state: LiveState) -> None:
    """Agree to everything."""


def test_a_patch_changes_what_it_names() -> None:
    """And nothing else."""
    made = patched(FILE, {"seed": 4, "strategy": "fixed"})
    assert (made.seed, made.strategy, made.text, made.token_ms) == (
        4, "fixed", "from the file", 5.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patch", "path", "said"),
    [
        ({"token_ms": -1}, "token_ms", "expected `float` >= 0"),
        ({"token_ms": "1"}, "token_ms", "expected `float`"),
        ({"tokn_ms": 1}, "tokn_ms", "did you mean 'token_ms'?"),
        ({"models": ["x"]}, "models", "cannot be changed while it runs"),
        ({"name": "other"}, "name", "cannot be changed while it runs"),
        ({"strategy": "poem"}, "strategy", "expected one of"),
    ],
)
def test_a_bad_patch_is_refused_with_path_and_reason(
    patch: dict[str, Any], path: str, said: str
) -> None:
    """By the same structs as a file."""
    with pytest.raises(InvalidRequest) as refused:
        changed(NOTHING_TOLD, patch, [FILE], take)
    assert refused.value.param == path
    assert said.replace("`", "") in refused.value.message.replace("`", "")


def test_patches_add_up_and_null_gives_back_to_the_file() -> None:
    """The state holds all that was changed."""
    state = changed(NOTHING_TOLD, {"seed": 4, "token_ms": 9.0}, [FILE], take)
    state = changed(state, {"seed": None, "text": "live"}, [FILE], take)
    assert state.options == {"token_ms": 9.0, "text": "live"}
    made = patched(FILE, state.options)
    assert (made.seed, made.text, made.token_ms) == (3, "live", 9.0)


def test_what_cannot_be_built_is_refused() -> None:
    """Rules between options are found by building what is described."""

    def build(config: BackendConfig, _state: LiveState) -> None:
        assert isinstance(config, Config)
        if config.min_tokens > config.max_tokens:
            raise ConfigError("min_tokens: over max_tokens")

    with pytest.raises(InvalidRequest, match="over max_tokens") as refused:
        changed(NOTHING_TOLD, {"min_tokens": 600}, [FILE], build)
    assert refused.value.param == "min_tokens"


@pytest.mark.parametrize("body", [[], None, 3, "seed"])
def test_a_patch_is_an_object(body: object) -> None:
    """Anything else is a bad request."""
    with pytest.raises(InvalidRequest, match="object"):
        changed(NOTHING_TOLD, body, [FILE], take)


def test_options_are_shown_without_what_belongs_to_a_backend() -> None:
    """A reader sees what ``[simulator]`` can say."""
    told = shown(FILE)
    assert told["seed"] == 3
    assert not {"name", "kind", "weight"} & set(told)
    assert UNSET not in told.values()


def test_only_simulators_are_told() -> None:
    """Backends of other kinds stay as they are."""
    other = BackendConfig(name="a", kind="echo")
    assert simulators((other, FILE)) == [FILE]
