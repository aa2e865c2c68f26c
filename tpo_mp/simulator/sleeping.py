"""Whether the simulated engines sleep: what puts them to sleep and what wakes them.

Who asks a sleeping model waits in its queue until it is woken, or until the request's time is over.
What ``mode=abort`` finds in an engine, at work or waiting, ends with what it has and the finish
reason ``abort``; what ``mode=wait`` finds at work comes to its end; what ``mode=keep`` finds stands
still and goes on when the engine is woken, computed anew as far as its blocks are gone.
Cached blocks are gone in every mode; at level 0 nothing is: work is only paused, until
``scheduling`` is woken.

Invariants: the host sleeps or it does not, whichever worker was told; it is awake when every part
was woken.
Known weakness: an answer that a profile paces runs to its end in any mode, and nobody waits for it.

Source: vLLM's ``/sleep``, ``/wake_up`` and ``/is_sleeping``, as of v0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import structs

from .live import LiveState, Sleep

SCHEDULING: Final = "scheduling"
PARTS: Final = ("weights", "kv_cache")
MODES: Final = ("abort", "wait", "keep")


def fallen_asleep(state: LiveState, level: int, mode: str) -> LiveState:
    """``state`` asleep; one that sleeps already sleeps as deep as this."""
    return structs.replace(
        state,
        sleep=Sleep(level=level, left=PARTS if level else (SCHEDULING,), kept=mode == "keep"),
        caches_dropped=state.caches_dropped + (level > 0),
        calls_aborted=state.calls_aborted + (mode == "abort"),
    )


def woken(state: LiveState, parts: Sequence[str]) -> LiveState:
    """``state`` with these parts awake, all if none is named.

    Who names one that does not sleep wakes none; what is only paused goes on whatever is named.
    """
    if state.sleep is None:
        return state
    left = state.sleep.left
    named = [part for part in parts if part != SCHEDULING]
    if not parts or SCHEDULING in left:
        left = ()
    elif set(named) <= set(left):
        left = tuple(part for part in left if part not in named)
    sleep = structs.replace(state.sleep, left=left) if left else None
    return structs.replace(state, sleep=sleep)


def cache_dropped(state: LiveState) -> LiveState:
    """``state`` whose engines forget what their prefix caches hold."""
    return structs.replace(state, caches_dropped=state.caches_dropped + 1)
