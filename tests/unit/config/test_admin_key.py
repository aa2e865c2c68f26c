"""The admin key of a first start: made once, known afterwards, never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tpo_mp.config.admin_key import FILE, KEY_ID, with_admin_key
from tpo_mp.config.api_keys import digest, is_damaged
from tpo_mp.config.load import build
from tpo_mp.config.tree import Config
from tpo_mp.errors import ConfigError

pytestmark = pytest.mark.usefixtures("only_core")


def config(folder: Path, auth: dict[str, Any] | None = None, port: int = 0) -> Config:
    """A gateway that asks for keys and makes its own."""
    tree = {
        "server": {"port": port, "state_dir": str(folder)},
        "auth": {"enabled": True, "create_admin_key": True} | (auth or {}),
    }
    return build(tree, {}, {}, None)


def test_first_start_makes_a_key_and_later_ones_know_it(tmp_path: Path) -> None:
    """Only its digest is kept, for its owner's eyes alone; a reload lets it in too."""
    state = tmp_path / "state"
    with_key, made = with_admin_key(config(state), starting=True)
    (key,) = with_key.auth.keys
    assert (key.id, key.admin, key.hash) == (KEY_ID, True, digest(made.encode(), b"").hex())
    assert made.startswith("tpo_")
    assert not is_damaged(made)
    (kept,) = state.iterdir()
    assert (kept.name, kept.stat().st_mode & 0o777) == (FILE, 0o600)
    assert made not in kept.read_text()
    assert state.stat().st_mode & 0o777 == 0o700
    for starting in (True, False):
        again, second = with_admin_key(config(state), starting=starting)
        assert (again.auth.keys, second) == ((key,), "")


def test_pepper_goes_into_the_digest(tmp_path: Path) -> None:
    """As into every other."""
    with_key, made = with_admin_key(config(tmp_path, {"pepper": "p" * 16}), starting=True)
    assert with_key.auth.keys[0].hash == digest(made.encode(), b"p" * 16).hex()


@pytest.mark.parametrize(
    "auth",
    [
        {"create_admin_key": False},
        {"enabled": False},
        {"keys": [{"id": "root", "secret": "s" * 16, "admin": True}]},
    ],
)
def test_no_key_is_made_where_none_is_needed(tmp_path: Path, auth: dict[str, Any]) -> None:
    """Not asked for, nobody asked for keys, or an operator has one."""
    asked = config(tmp_path, auth)
    assert with_admin_key(asked, starting=True) == (asked, "")
    assert list(tmp_path.iterdir()) == []


def test_reload_makes_no_key(tmp_path: Path) -> None:
    """Nobody would read it; the warning says what to do."""
    loaded, made = with_admin_key(config(tmp_path), starting=False)
    assert (loaded.auth.keys, made) == ((), "")
    assert any("the next start makes one" in line for line in loaded.warnings)


def test_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    """Half a file must not become a key that nobody has."""
    (tmp_path / FILE).write_text("abc\n")
    with pytest.raises(ConfigError, match="holds no hash; remove it"):
        with_admin_key(config(tmp_path), starting=True)


def test_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """With its path and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"create_admin_key: .*file/admin-key.hash: "):
        with_admin_key(config(tmp_path / "file"), starting=True)


def test_key_needs_a_directory_that_the_next_start_finds() -> None:
    """A random port's own directory is another one each time."""
    tree: dict[str, Any] = {
        "server": {"port": 0},
        "auth": {"enabled": True, "create_admin_key": True},
    }
    with pytest.raises(ConfigError, match=r"auth\.create_admin_key: needs server\.state_dir"):
        build(tree, {}, {}, None)
