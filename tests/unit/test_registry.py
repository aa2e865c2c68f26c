"""Finding features: by file name, by entry point, and with a hint when there is none."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import get_args

import pytest

from tpo_mp import registry
from tpo_mp.errors import ConfigError
from tpo_mp.ports import Door, Feature

DOORS: tuple[Door, ...] = get_args(Door)


@pytest.mark.parametrize("door", DOORS)
def test_names_import_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing what there is must not run it."""
    loaded = [name for name in sys.modules if name.startswith(f"tpo_mp.{door}.")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    listed = registry.names(door)
    assert listed == sorted(set(listed))
    assert not [name for name in sys.modules if name.startswith(f"tpo_mp.{door}.")]


@pytest.mark.parametrize("door", DOORS)
def test_every_name_is_found(door: Door) -> None:
    """And is a feature."""
    for name in registry.names(door):
        assert isinstance(registry.find(door, name), Feature)


@pytest.mark.parametrize(
    ("name", "hint"), [("ecko", "did you mean 'echo'"), ("zzz", "known: .*echo"), ("", "known")]
)
def test_unknown_names_come_with_a_hint(name: str, hint: str) -> None:
    """The nearest, or all of them."""
    with pytest.raises(ConfigError, match=hint):
        registry.find("backends", name)


@pytest.mark.parametrize(
    "name", ["../echo", "echo.x", "os", "Echo", "__init__", "echo\n", "a" * 99]
)
def test_names_cannot_leave_their_room(name: str) -> None:
    """A config chooses features, not modules."""
    with pytest.raises(ConfigError):
        registry.find("backends", name)


def test_features_come_in_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point in the group of the door's name."""
    point = EntryPoint("mine", "tpo_mp.backends.echo:FEATURE", "tpo_mp.backends")
    monkeypatch.setattr(
        registry, "_points", lambda door: [point] if f"tpo_mp.{door}" == point.group else []
    )
    registry._outside.cache_clear()
    try:
        assert "mine" in registry.names("backends")
        assert "mine" not in registry.names("routes")
        assert registry.knows("backends", "mine")
        assert not registry.knows("routes", "mine")
        assert registry.find("backends", "mine") is registry.find("backends", "echo")
    finally:
        registry._outside.cache_clear()


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (["no_such_module:FEATURE"], "cannot be loaded: ModuleNotFoundError"),
        (["tpo_mp.backends.echo:MISSING"], "cannot be loaded: AttributeError"),
        (["tpo_mp.backends.echo:EchoBackend"], "is no Feature"),
        (["a:FEATURE", "b:FEATURE"], "comes from a:FEATURE and b:FEATURE; uninstall one"),
    ],
)
def test_what_is_wrong_with_a_feature_from_outside_is_one_line(
    monkeypatch: pytest.MonkeyPatch, points: list[str], said: str
) -> None:
    """Named, with where it comes from; never a traceback, never a guess."""
    found = [EntryPoint("mine", value, "tpo_mp.backends") for value in points]
    monkeypatch.setattr(registry, "_points", lambda _door: found)
    with pytest.raises(ConfigError, match=said) as caught:
        registry.find("backends", "mine")
    assert "'mine'" in caught.value.message
    assert "\n" not in caught.value.message


def test_package_that_is_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install beside a built one, say."""
    point = EntryPoint("mine", "tpo_mp.backends.echo:FEATURE", "tpo_mp.backends")
    monkeypatch.setattr(registry, "_points", lambda _door: [point, point])
    assert registry.find("backends", "mine") is registry.find("backends", "echo")


def test_features_of_the_house_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config says is what runs, whatever else is installed."""
    point = EntryPoint("echo", "tpo_mp.backends.openai:FEATURE", "tpo_mp.backends")
    monkeypatch.setattr(registry, "_points", lambda _door: [point])
    assert registry.find("backends", "echo").build.__name__ == "EchoBackend"


def test_no_package_is_looked_at_for_names_of_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts does not read about everything that is installed."""

    def looked(door: Door) -> list[EntryPoint]:
        raise AssertionError(f"packages were looked at for {door}")

    monkeypatch.setattr(registry, "_points", looked)
    registry._outside.cache_clear()
    assert registry.knows("backends", "echo")
    assert isinstance(registry.find("backends", "echo"), Feature)
    with pytest.raises(AssertionError, match="looked at for backends"):
        registry.knows("backends", "ecko")
