"""The one memory fence of the house: a lock taken and released.

Python has no memory model and no atomics, so this is what can be promised, and no more:

- A lock/unlock pair is an acquire followed by a release.  Stores made before ``fence()`` are seen
  by whoever sees a store made after it, and loads after it are not served from before it.  That
  is enough for *publish and consume* (payload, fence, index), which is all the house builds.
- It is **not** a full barrier on every CPU.  "I write mine, then read yours" between two
  processes (Dekker, sleep flags) may still see both old values: nothing here relies on that.
- On x86-64 stores are seen in program order and loads are made in program order (TSO), so
  ``FENCED`` is false there and the call is skipped.  Apple silicon and other ARM take it.
- Nothing here orders one word against another inside the compiler: each Python store is its own
  C call, which no compiler merges.

``TPO_FENCE=1`` forces the fence, so that its code path is tested on x86-64 too.
Known weakness: no ARM machine has proven it; records carry a checksum so that a reordered publish
is seen as "not yet" instead of being consumed.
"""

from __future__ import annotations

import os
import platform
from threading import Lock

FENCED = platform.machine().lower() not in ("x86_64", "amd64") or os.environ.get("TPO_FENCE") == "1"
"""True where a store may be seen before an earlier one; callers skip ``fence()`` otherwise."""

_lock = Lock()


def fence() -> None:
    """Order everything before the call against everything after it (about 0.1 us)."""
    with _lock:
        pass
