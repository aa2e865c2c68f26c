"""The state directory: its lock, and registries that must not be lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.supervisor import statedir
from tpo_mp.supervisor.statedir import AlreadyRunning, StateDir, running_pid


@pytest.fixture(params=["tmpfs", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory on a tmpfs, or on a disk beside one."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(statedir, "TMPFS", tmp_path / "shm")
    monkeypatch.setattr(statedir, "_is_tmpfs", lambda _path: request.param == "tmpfs")
    return tmp_path / "state"


def run_once(folder: Path, content: bytes | None) -> None:
    """One run that leaves a registry, or removes it (None), before its lock goes."""
    directory = StateDir(folder)
    path = directory.new_registry()
    directory.link_registry(path)
    path.write_bytes(content or b"")
    if content is None:
        directory.drop_registry()
    directory.close()


def test_the_directory_is_private_and_knows_its_owner(folder: Path) -> None:
    """0700, and the pid file names the process that holds the lock."""
    directory = StateDir(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert running_pid(folder) == os.getpid()
    directory.close()
    assert running_pid(folder) is None


def test_a_second_owner_is_refused_with_the_first_ones_pid(folder: Path) -> None:
    """The message says who holds it."""
    directory = StateDir(folder)
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        StateDir(folder)
    directory.close()
    StateDir(folder).close()


def test_the_lock_dies_with_its_owner(folder: Path) -> None:
    """A killed supervisor's pid file does not keep the next one out."""
    code = (
        "import os, sys; from pathlib import Path; "
        "from tpo_mp.supervisor.statedir import StateDir; "
        "StateDir(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=60)
    assert done.returncode == -9
    assert (folder / "supervisor.pid").exists()
    StateDir(folder).close()


def test_a_clean_end_leaves_no_registry(folder: Path) -> None:
    """Neither link nor file, in either place."""
    run_once(folder, None)
    assert not list(folder.glob("registry*"))
    assert not list((folder.parent / "shm").iterdir())


def test_a_clean_end_takes_the_registrys_copy_along(folder: Path) -> None:
    """Control may have died before it could; copies of other runs are not this run's affair."""
    directory = StateDir(folder)
    for run in (7, 8):
        (folder / copy_name(run)).touch()
    directory.drop_registry(7)
    assert [path.name for path in folder.glob("registry*")] == [copy_name(8)]
    directory.close()


def test_a_registry_left_behind_is_set_aside_for_harvest(folder: Path) -> None:
    """The next run finds the old bytes under ``registry.previous`` and starts with a fresh file."""
    run_once(folder, b"open calls")
    directory = StateDir(folder)
    fresh = directory.new_registry()
    assert not fresh.exists()
    assert (folder / "registry.previous").read_bytes() == b"open calls"
    directory.close()


def test_registries_nobody_harvested_pile_up_and_none_is_lost(folder: Path) -> None:
    """Three crashes in a row keep three registries."""
    for content in (b"one", b"two", b"three"):
        run_once(folder, content)
    directory = StateDir(folder)
    directory.new_registry()
    kept = {path.read_bytes() for path in folder.glob("registry.previous*")}
    assert kept == {b"one", b"two", b"three"}
    directory.close()


def test_a_link_that_leads_nowhere_is_dropped(folder: Path) -> None:
    """After a reboot the tmpfs is empty."""
    directory = StateDir(folder)
    (folder / "registry").symlink_to(folder.parent / "shm" / "gone")
    path = directory.new_registry()
    directory.link_registry(path)
    assert not list(folder.glob("registry.previous*"))
    directory.close()


def test_the_install_key_is_kept(folder: Path) -> None:
    """Sessions hash to the same buckets after a restart; the file is private."""
    directory = StateDir(folder)
    key = directory.install_key()
    assert len(key) == 16
    assert directory.install_key() == key
    assert (folder / "install.key").stat().st_mode & 0o777 == 0o600
    directory.close()


def test_a_tmpfs_without_room_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's 64 MiB are no reason not to start: the registry lies beside the lock then."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(statedir, "TMPFS", tmp_path / "shm")
    monkeypatch.setattr(statedir, "_is_tmpfs", lambda _path: False)
    monkeypatch.setattr(statedir, "_free_bytes", lambda _path: 64 << 20)
    directory = StateDir(tmp_path / "state")
    path = directory.new_registry(64 << 20)
    assert path.parent == tmp_path / "shm"
    assert directory.passed_over == ""
    path = directory.new_registry((64 << 20) + 1)
    assert path == tmp_path / "state" / "registry"
    assert directory.passed_over == str(tmp_path / "shm")
    directory.link_registry(path)
    path.write_bytes(b"open calls")
    directory.close()
    again = StateDir(tmp_path / "state")
    again.new_registry((64 << 20) + 1)
    assert (tmp_path / "state" / "registry.previous").read_bytes() == b"open calls"
    again.close()
