"""How a child process binds its life to the supervisor and leaves its last words.

A child lives exactly as long as its supervisor:

1. ``PR_SET_PDEATHSIG`` (Linux): the kernel sends SIGKILL when the parent dies.  It is lost when the
   parent died before the call, so ``getppid`` is compared afterwards.
2. The lifeline pipe: the supervisor holds the only write end and never writes; readable = gone.
   The event loop watches it; where (1) is missing a thread watches it too, because a loop that
   hangs would never see it.

Signals meant for the supervisor reach the whole process group (Ctrl-C, service managers), so a
child is started with them blocked, ignores them from its first line on, and obeys its command word
alone.

*Last words* are one line in ``STATE_DIR/seat-NN.words``: why the child will not boot, or why it
refused a config.  The supervisor reads them when the child is gone or said no.

Invariants: no event loop, no shared memory and no log is needed here.
Known weakness: an import error before ``bind_to_parent`` is on standard error only.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias

import tpo_mp

from . import late_handoff
from .handoff import ForeignHandoff, Handoff

PR_SET_PDEATHSIG = 1
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
MAX_WORDS = 500
RESTART_NEEDED = "restart needed"
"""Opening of the last words of a child whose version or layout differs from its supervisor's."""


class Seated(Protocol):
    """Who speaks, and where it is heard."""

    @property
    def seat(self) -> int: ...
    @property
    def state_dir(self) -> str: ...


_Hook: TypeAlias = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def attach_to_parent(meanwhile: Callable[[], None]) -> tuple[Handoff, int] | None:
    """Read the handoff and bind to the supervisor; answer it and the lifeline descriptor.

    A child that was started early does ``meanwhile`` first, waits for its handoff then, and ends
    when nobody needs it.

    ``None`` when the supervisor runs another version of this code: the last words say so, nothing
    was mapped, and the child is to exit.  Raises ``Fault`` when no supervisor started it.
    """
    from . import plane  # not before the signals are ignored

    ours = f"version {tpo_mp.__version__}, layout {plane.LAYOUT}"
    try:
        handoff = _late(meanwhile) if late_handoff.expected() else Handoff.from_env()
    except ForeignHandoff as foreign:
        last_words(foreign, f"{RESTART_NEEDED}: the code on disk is {ours}; {foreign.message}")
        return None
    lifeline_fd = bind_to_parent(handoff)
    if (handoff.version, handoff.layout) != (tpo_mp.__version__, plane.LAYOUT):
        last_words(handoff, f"{RESTART_NEEDED}: the code on disk is {ours}")
        return None
    return handoff, lifeline_fd


def _late(meanwhile: Callable[[], None]) -> Handoff:
    if os.environ.get("TPO_PORTABLE") != "1":
        _ask_for_death_signal()  # who misses it reads the end of file
    meanwhile()
    given = late_handoff.take()
    if given is None:
        os._exit(0)
    text, numbers = given
    return Handoff.decode(text).renumbered(numbers)


def bind_to_parent(handoff: Handoff) -> int:
    """Do first thing in a child's main thread; return the lifeline descriptor to watch.

    It becomes readable (end of file) when the supervisor is gone: exit at once then.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # The supervisor starts its children with these blocked; ignoring has dropped what was pending.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    # SIGABRT is how the supervisor asks a hung child for its traceback.
    faulthandler.enable(all_threads=True)
    sys.excepthook = _hook(handoff)
    if handoff.portable or not _ask_for_death_signal():
        threading.Thread(
            target=_watch, args=(handoff.lifeline_fd,), name="lifeline", daemon=True
        ).start()
    if os.getppid() != handoff.supervisor_pid:
        os._exit(1)
    return handoff.lifeline_fd


def last_words(handoff: Seated, text: str) -> None:
    """Leave one line for the supervisor: why this child stops or refuses."""
    line = " ".join(text.split())[:MAX_WORDS]
    # A full disk must not hide the failure itself.
    with contextlib.suppress(OSError):
        words_path(handoff.state_dir, handoff.seat).write_text(
            line + "\n", encoding="utf-8", errors="replace"
        )


def words_path(state_dir: str, seat: int) -> Path:
    """Return where the child in ``seat`` leaves its last words."""
    return Path(state_dir) / f"seat-{seat:02d}.words"


def root_cause(error: BaseException) -> BaseException:
    """Return the first leaf of nested exception groups: the line a person needs."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _ask_for_death_signal() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0)


def _watch(fd: int) -> None:
    # Not a read: event loops make the pipe non-blocking, for every process that has it.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    os._exit(1)


def _hook(handoff: Handoff) -> _Hook:
    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        last_words(handoff, f"{type(cause).__name__}: {cause}")
        sys.__excepthook__(kind, error, trace)

    return leave
