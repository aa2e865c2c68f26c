"""The state directory of one host: pid file with its lock, control socket, registry file.

::

    DIR/                        0700
      supervisor.pid            locked while the supervisor lives; holds its pid
      control.sock              commands (``ctl``)
      admin-key.hash            digest of the admin key a first start made (``config.admin_key``)
      install.key               16 random bytes; sessions keep their slot over restarts
      registry                  in-flight registry, or a link to it on a tmpfs
      registry.previous[-N]     registries of runs that died; control harvests and removes them
      registry.synced-RUN       a registry's copy on disk, for when power is lost; control's
      seat-NN.words             last words of a child that would not boot

Invariants: the lock, not the file's existence, says whether a supervisor runs; only the holder of
the lock touches the other names; a registry that nobody harvested is never overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from tpo_mp.errors import ExitCode, Fault
from tpo_mp.shm.registry_layout import copy_name

PID_FILE = "supervisor.pid"
SOCKET = "control.sock"
REGISTRY = "registry"
PREVIOUS = "registry.previous"
INSTALL_KEY = "install.key"
INSTALL_KEY_BYTES = 16
UNIX_PATH_BYTES = 104
TMPFS = Path("/dev/shm")  # noqa: S108 - the one tmpfs every Linux has; names there carry our uid


class AlreadyRunning(Fault):
    """Another supervisor holds this state directory."""

    code = "already_running"
    exit_code = ExitCode.ALREADY_RUNNING


class StateDir:
    """The locked directory; raises ``AlreadyRunning`` when another supervisor has it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.passed_over = ""
        """The tmpfs that had no room for the registry."""
        self._lock_fd = _lock(self.path / PID_FILE)
        self._write_pid()

    @property
    def socket_path(self) -> Path:
        """Where commands arrive."""
        return self.path / SOCKET

    def new_registry(self, size: int = 0) -> Path:
        """Set the previous run's registry aside; return a fresh path, on a tmpfs if there is one.

        A path outside the directory is linked to as ``registry`` by ``link_registry``.  A tmpfs
        with less than ``size`` bytes left (a container's default has 64 MiB) is passed over: a
        registry on a disk is as safe and costs some writing back.
        """
        self._keep_previous()
        if _is_tmpfs(self.path) or not TMPFS.is_dir():
            return self.path / REGISTRY
        if _free_bytes(TMPFS) < size:
            self.passed_over = str(TMPFS)
            return self.path / REGISTRY
        key = hashlib.blake2b(os.fsencode(self.path), digest_size=6).hexdigest()
        path = TMPFS / f"tpo-mp-{os.getuid()}-{key}.registry"
        if path.is_symlink() or path.exists():
            # We hold the lock and nothing links to it, so it is ours to drop; a stranger's is not.
            try:
                path.unlink()
            except OSError:
                path = path.with_name(f"{path.stem}-{os.urandom(4).hex()}.registry")
        return path

    def link_registry(self, path: Path) -> None:
        """Make ``registry`` in the directory lead to ``path``."""
        if path.parent != self.path:
            (self.path / REGISTRY).symlink_to(path)

    def drop_registry(self, run: int = 0) -> None:
        """Remove the registry, and the copy of the one named ``run``, after a clean end."""
        link = self.path / REGISTRY
        for path in (link.resolve(), link, self.path / copy_name(run)):
            path.unlink(missing_ok=True)

    def install_key(self) -> bytes:
        """Return this installation's key, made on first use."""
        path = self.path / INSTALL_KEY
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != INSTALL_KEY_BYTES:
            key = os.urandom(INSTALL_KEY_BYTES)
            fresh = path.with_suffix(".new")
            fresh.write_bytes(key)
            fresh.chmod(0o600)
            fresh.replace(path)
        return key

    def close(self) -> None:
        """Remove socket and pid file, and let the lock go."""
        for name in (SOCKET, PID_FILE):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        for words in self.path.glob("seat-*.words"):
            with contextlib.suppress(OSError):
                words.unlink()
        os.close(self._lock_fd)

    def _write_pid(self) -> None:
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _keep_previous(self) -> None:
        link = self.path / REGISTRY
        if not link.exists():
            link.unlink(missing_ok=True)  # a link whose target is gone (reboot)
            return
        kept = self._free_name()
        if not link.is_symlink():
            link.rename(kept)
            return
        target = link.resolve()
        # The target's own name must become free for the new registry.
        moved = target.with_name(f"{target.stem}-{os.urandom(4).hex()}.previous")
        # Killed between any two of these lines, the file still has a name in the directory.
        kept.symlink_to(moved)
        target.rename(moved)
        link.unlink()

    def _free_name(self) -> Path:
        number = 1
        kept = self.path / PREVIOUS
        while kept.is_symlink() or kept.exists():
            number += 1
            kept = self.path / f"{PREVIOUS}-{number}"
        return kept


@contextlib.contextmanager
def socket_address(directory: Path) -> Iterator[str]:
    """Yield an address for the directory's socket that fits the 104 bytes of a Unix address."""
    path = directory / SOCKET
    if len(os.fsencode(path)) < UNIX_PATH_BYTES:
        yield str(path)
        return
    if Path("/proc/self/fd").is_dir():
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{SOCKET}"
        finally:
            os.close(fd)
        return
    with contextlib.chdir(directory):
        yield SOCKET


def running_pid(path: Path) -> int | None:
    """Return the pid of the supervisor that holds ``path``, or None."""
    try:
        fd = os.open(path / PID_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.pread(fd, 32, 0) or b"0")
    finally:
        os.close(fd)
    return None


def _lock(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise AlreadyRunning(
                f"already running: pid {holder or 'unknown'} holds {path.parent}"
            ) from None
        # The file may have been unlinked by its last owner between open and lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        os.close(fd)


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _is_tmpfs(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    best, kind = "", ""
    for line in mounts:
        _, where, filesystem, *_ = line.split()
        inside = path.is_relative_to(where.replace("\\040", " "))
        if inside and len(where) >= len(best):
            best, kind = where, filesystem
    return kind == "tmpfs"
