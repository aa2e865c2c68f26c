"""How a child that is there already gets its handoff: over its end of a socket pair.

::

    0         4         8              8+4n
    | n : u32 | m : u32 | n of i32     | m bytes          little-endian
                        | numbers      | the handoff's JSON

    with the first byte: n descriptors (``SCM_RIGHTS``); the i-th is the one that the handoff calls
    by the i-th number, and has another number in the child

The supervisor writes once and closes; the child reads to the end of its handoff and closes.  End of
file instead of a first byte: nobody needs the child, or the supervisor is gone.  Half a handoff is
that, too.

Invariants: a child that was given a handoff holds the descriptors it names, each once, and no other
of the host's; nothing is mapped before version and layout were compared, as with any handoff.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

ENV: Final = "TPO_LATE_HANDOFF"
"""Names the descriptor of the child's end; such a child has no ``TPO_HANDOFF``."""
MOST_DESCRIPTORS: Final = 250
"""Linux takes 253 with one message."""
_MOST_BYTES: Final = 1 << 20
_HEAD: Final = struct.Struct("<II")


def expected(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started before there was a handoff for it."""
    return ENV in environ


def give(end: socket.socket, text: bytes, numbers: Sequence[int]) -> bool:
    """Write the handoff and pass its descriptors, without waiting; False: it did not get it all."""
    if len(numbers) > MOST_DESCRIPTORS or len(text) > _MOST_BYTES:
        return False
    head = _HEAD.pack(len(numbers), len(text)) + struct.pack(f"<{len(numbers)}i", *numbers)
    end.setblocking(False)
    try:
        return socket.send_fds(end, [head + text], list(numbers)) == len(head) + len(text)
    except OSError:  # it is dead, or its buffer is smaller than that
        return False


def take(environ: Mapping[str, str] = os.environ) -> tuple[str, dict[int, int]] | None:
    """Wait for the handoff: its JSON, and the number here of each number it names.

    ``None``: there will be none, and the process is to exit.
    """
    with socket.socket(fileno=int(environ[ENV])) as end:
        got, descriptors, flags, _ = socket.recv_fds(end, _HEAD.size, MOST_DESCRIPTORS)
        if len(got) < _HEAD.size or flags & socket.MSG_CTRUNC:
            return None
        count, size = _HEAD.unpack(got)
        rest = bytearray()
        while len(rest) < 4 * count + size:
            more = end.recv(65_536)
            if not more:
                return None
            rest += more
    if len(descriptors) != count:
        return None
    for fd in descriptors:
        os.set_inheritable(fd, False)
    numbers = struct.unpack_from(f"<{count}i", rest)
    return rest[4 * count :].decode(), dict(zip(numbers, descriptors, strict=True))
