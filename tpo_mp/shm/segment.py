"""A piece of shared memory without a name, reached by file descriptor only.

::

    Linux      memfd_create -> posix_fallocate -> F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL -> mmap
    elsewhere  unlinked temporary file -> zeros written to its full size               -> mmap
    create_file   a linked file (0600) -> posix_fallocate or zeros                      -> mmap

    byte 0                                                     byte size-1
    +----------------------------------------------------------+
    | what the owner of the segment draws; all zero at birth   |
    +----------------------------------------------------------+

Every page exists before anybody maps it: ``ftruncate`` alone succeeds on a full tmpfs and the
first write then kills the writer with SIGBUS.  The seals make truncation by anyone impossible.
There is no header: each structure has its own magic, which ``signed`` writes and ``checked``
compares.

States: 1 created (the supervisor alone knows the descriptor) -> 2 handed down by ``pass_fds`` and
attached -> 3 closed.  The memory lives until the last process has closed it, so nothing is ever
cleaned up; a ``create_file`` segment also lives as long as its link.
A creator killed at any line leaves either nothing (memfd, unlinked file) or a file of the wrong
size, which ``attach`` refuses.

Memory order: none here.  ``words`` are native 8-byte aligned words, which do not tear when one
process stores and another loads them; every word's order against others is its structure's own.
Known weakness: Python duplicates the descriptor inside ``mmap``, so two descriptors stay open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Self

from tpo_mp.errors import Fault

_ZEROS = bytes(1 << 20)


def portable() -> bool:
    """True where the Linux-only calls are missing, or ``TPO_PORTABLE=1`` asks to live without."""
    return sys.platform != "linux" or os.environ.get("TPO_PORTABLE") == "1"


def _write_zeros(fd: int, size: int) -> None:
    written = 0
    while written < size:
        written += os.pwrite(fd, _ZEROS[: size - written], written)


def _allocate(fd: int, size: int, name: str) -> None:
    """Give ``fd`` real pages for ``size`` bytes; raises ``Fault`` when there are not enough."""
    try:
        if portable():
            _write_zeros(fd, size)
        else:
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise
        raise Fault(
            f"no room for {size} bytes of shared memory ({name}): {error.strerror}; "
            "free memory, raise the container's limit, or run fewer workers",
            reason="shm_too_small",
        ) from error


def _open_memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _allocate(fd, size, name)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_unlinked(name: str, size: int) -> int:
    fd, path = tempfile.mkstemp(prefix=f"{name}-")
    Path(path).unlink()
    try:
        _allocate(fd, size, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Segment:
    """One mapping: ``buf`` its bytes, ``words`` its 64-bit words, ``map`` the mmap itself.

    Slicing ``map`` copies to ``bytes`` in one step and is the fast way to read or write a range;
    slicing ``buf`` makes a view.
    """

    __slots__ = ("buf", "fd", "map", "size", "words")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.map = mmap.mmap(fd, size)
        if hasattr(mmap, "MADV_DONTDUMP"):
            # Prompts lie here; a core file must not hold them.  Some kernels refuse: no harm.
            with contextlib.suppress(OSError):
                self.map.madvise(mmap.MADV_DONTDUMP)
        self.buf = memoryview(self.map)
        self.words = self.buf.cast("Q")

    @classmethod
    def create(cls, name: str, size: int) -> Self:
        """Make an anonymous segment of ``size`` bytes (a multiple of 8), all zero.

        Raises ``Fault`` with reason ``shm_too_small`` when the memory is not there.
        """
        _check_size(size)
        fd = _open_unlinked(name, size) if portable() else _open_memfd(name, size)
        return cls._own(fd, size)

    @classmethod
    def create_file(cls, path: Path, size: int) -> Segment:
        """Make a segment in a new file, mode 0600, that stays linked; an old file is replaced.

        Raises ``Fault`` with reason ``shm_too_small`` when the file system is full.
        """
        _check_size(size)
        # A fresh inode: whoever still maps the old file keeps its old bytes.
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _allocate(fd, size, path.name)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls._own(fd, size)

    @classmethod
    def attach(cls, fd: int, size: int) -> Self:
        """Map an inherited descriptor; raises ``Fault`` when it is not ``size`` bytes long."""
        _check_size(size)
        found = os.fstat(fd).st_size
        if found != size:
            raise Fault(
                f"shared memory is {found} bytes long, expected {size}", reason="shm_layout"
            )
        return cls(fd, size)

    def signed(self, *head: int) -> Segment:
        """Write the words the segment opens with, before anybody else maps it, and answer it."""
        for i, word in enumerate(head):
            self.words[i] = word
        return self

    def checked(self, what: str, *head: int) -> Segment:
        """Answer the segment; raises ``Fault`` when ``what`` lies there opens with other words."""
        if self.words[: len(head)].tolist() != list(head):
            raise Fault(f"{what} has another layout", reason="shm_layout")
        return self

    @classmethod
    def _own(cls, fd: int, size: int) -> Self:
        try:
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Unmap and close; idempotent.  Views others still hold keep the mapping until they go."""
        if self.fd < 0:
            return
        self.words.release()
        with contextlib.suppress(BufferError):
            self.buf.release()
            self.map.close()
        os.close(self.fd)
        self.fd = -1


def _check_size(size: int) -> None:
    if size <= 0 or size % 8:
        raise ValueError(f"segment size {size} is not a positive multiple of 8")
