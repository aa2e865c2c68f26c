"""The doors: what a feature gets and what every backend entry has."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.ports import BackendConfig, Env, Feature


def test_environment_is_all_a_feature_gets() -> None:
    """Frozen, and nothing in it leads to a process."""
    assert {field.name for field in dataclasses.fields(Env)} == {
        "clock", "random", "metrics", "log", "store", "timers", "rooms",
        "ledger", "quotas", "live", "journal", "shares", "peers", "prices", "epoch", "scores",
        "cache", "tier", "prefixes",
    }  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        FakeWorld().env.clock = None  # type: ignore[misc,assignment]


def test_feature_is_frozen() -> None:
    """Nobody re-registers one."""
    feature = Feature(BackendConfig, lambda config, env: None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        feature.build = None  # type: ignore[misc,assignment]


@pytest.mark.parametrize("name", ["a", "a.b", "A-b_9", "x" * 64])
def test_backend_names_are_safe_words(name: str) -> None:
    """They are metric labels, header values and file names."""
    made = msgspec.convert({"name": name, "kind": "echo"}, BackendConfig)
    assert (made.name, made.models, made.weight) == (name, ("*",), 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "a/b"},
        {"name": "ä"},
        {"models": []},
        {"weight": 0},
        {"weight": 1001},
        {"unknown": 1},
        {"kind": None},
    ],
)
def test_backend_entries_are_checked(entry: dict[str, Any]) -> None:
    """Bounds and unknown fields."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "a", "kind": "echo", **entry}, BackendConfig)
