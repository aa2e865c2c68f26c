"""Fixtures of the config tests: texts to load, and features that are pretended to be built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import pytest
from msgspec import Meta, Struct

from tpo_mp import registry
from tpo_mp.config.load import load
from tpo_mp.config.tree import Config
from tpo_mp.config.values import Secret
from tpo_mp.errors import ConfigError
from tpo_mp.ports import Door, Feature
from tpo_mp.types import Phase

SAMPLES = Path(__file__).parent / "samples"


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nested options."""

    rps: Annotated[float, Meta(gt=0, description="Calls per second.")] = 100.0
    burst: Annotated[int, Meta(ge=1, description="Calls at once.")] = 20


class RateLimitConfig(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"overall": "global"}
):
    """Options of a stage in an early phase."""

    overall: Annotated[Limits, Meta(description="Limits of the host.")] = Limits()


class RetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a stage in a late phase."""

    attempts: Annotated[int, Meta(ge=1, le=10, description="Tries in all.")] = 3
    base_s: Annotated[float, Meta(gt=0, description="First pause.")] = 0.1
    max_s: Annotated[float, Meta(gt=0, description="Longest pause.")] = 5.0
    token: Annotated[Secret | None, Meta(description="A secret of a stage.")] = None


class NoConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class _Early:
    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: object, env: object) -> None: ...


class _Late:
    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: object, env: object) -> None: ...


FAKES = {
    "auth": Feature(NoConfig, _Early),
    "rate_limit": Feature(RateLimitConfig, _Early),
    "retry": Feature(RetryConfig, _Late),
}


class Load(Protocol):
    """Loads a text."""

    def __call__(
        self, text: str = "", *, suffix: str = ".toml", env: Mapping[str, str] = {}, **flags: Any
    ) -> Config: ...


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load a config from a text, an environment and flags."""

    def run(
        text: str = "", *, suffix: str = ".toml", env: Mapping[str, str] = {}, **flags: Any
    ) -> Config:
        path = tmp_path / f"config{suffix}"
        path.write_text(text)
        return load(path, flags, env)

    return run


@pytest.fixture
def refused(load_text: Load) -> Callable[..., list[str]]:
    """Load a config that must be refused; answers the problems."""

    def run(*args: Any, **options: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_text(*args, **options)
        return caught.value.message.splitlines()

    return run


@pytest.fixture
def only_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a few backends and routes are the only features."""
    _pretend(monkeypatch, {})


@pytest.fixture
def some_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the stages of ``FAKES`` are built, and no others."""
    _pretend(monkeypatch, FAKES)


def _pretend(monkeypatch: pytest.MonkeyPatch, stages: Mapping[str, Feature]) -> None:
    names, find = registry.names, registry.find
    core = {
        "backends": ["anthropic", "echo", "openai"],
        "routes": ["resource_aware", "round_robin", "weighted"],
        "stages": sorted(stages),
    }

    def fake_find(door: Door, name: str) -> Feature:
        return stages[name] if door == "stages" else find(door, name)

    def fake_names(door: Door) -> list[str]:
        return core[door] if door in core else names(door)

    monkeypatch.setattr(registry, "names", fake_names)
    monkeypatch.setattr(registry, "knows", lambda door, name: name in fake_names(door))
    monkeypatch.setattr(registry, "find", fake_find)
