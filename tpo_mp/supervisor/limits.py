"""The kernel's limits of this host: every descriptor we may have, and no core file.

Children inherit both.  A core file would hold prompts and keys.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import TypeAlias

FALLBACKS = (1 << 20, 1 << 16, 10_240)
"""Tried where the hard limit itself is refused: "unlimited" on macOS, whose kernel has a cap."""

Limit: TypeAlias = tuple[int, int]


def set_limits() -> None:
    """Raise the descriptor limit to the hard one, and forbid core files."""
    raise_descriptors()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_descriptors(
    get: Callable[[int], Limit] = resource.getrlimit,
    put: Callable[[int, Limit], None] = resource.setrlimit,
) -> int:
    """Raise the soft limit of descriptors as far as the kernel lets us; answer what it is then."""
    soft, most = get(resource.RLIMIT_NOFILE)
    for wanted in (most, *FALLBACKS):
        if soft == resource.RLIM_INFINITY or resource.RLIM_INFINITY != wanted <= soft:
            break
        try:
            put(resource.RLIMIT_NOFILE, (wanted, most))
        except (OSError, ValueError):
            continue
        return wanted
    return soft
