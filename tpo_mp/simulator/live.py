"""What a running simulator was told: changes to its options, a scenario, chaos on or off.

It is one JSON text in ``Env.live``, so every worker of the host has the same, and a request is
answered by the state that was in force when it came: its version is compared per request (one word
of shared memory), the text is read when that changed.

Invariants: a change is made to the newest state and published whole, or refused whole; a state was
checked with the structs of the configuration file before it was published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells, Live

HEADER: Final = b"x-sim-config-version"
_TRIES: Final = 500
_PAUSE_S: Final = 0.002


class ActiveScenario(Struct, frozen=True, kw_only=True):
    """A scenario that was switched on; ``epoch`` numbers the activations of this host."""

    name: str
    began_at: float
    """``Env.clock`` of the activation; one clock for all processes of a host."""
    epoch: int


class StatsBaseline(Struct, frozen=True, kw_only=True):
    """What the counters said when the statistics were set back."""

    at: float
    requests: int = 0
    errors: int = 0
    duration_s: float = 0.0
    buckets: tuple[int, ...] = ()


class LoadedAdapter(Struct, frozen=True, kw_only=True):
    """A LoRA adapter of one of the models; ``number`` counts what was loaded on this host.

    0 is one of the configuration.
    """

    name: str
    path: str
    base: str
    number: int


class Sleep(Struct, frozen=True, kw_only=True):
    """The engines sleep; ``left`` are the parts that nobody woke yet.

    ``kept``: what they found stays where it is, and who comes waits, until they are woken.
    """

    level: int
    left: tuple[str, ...]
    kept: bool = False


class LiveState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the simulators of one host.

    ``options`` are changes to ``[simulator]`` (see ``live_options``); ``scenario`` is unset until
    one is switched on or off; ``chaos`` False silences all faults that no request ordered;
    ``limits_epoch`` grows when the rate limits are set back.
    ``adapters_gone`` are those of the configuration that were unloaded.
    ``adapters_loaded``, ``caches_dropped`` and ``calls_aborted`` count how often that was ordered:
    an engine that finds a number grown does what it missed.
    """

    options: dict[str, Any] = {}
    scenario: ActiveScenario | UnsetType | None = UNSET
    scenarios_begun: int = 0
    chaos: bool = True
    limits_epoch: int = 0
    stats: StatsBaseline | None = None
    adapters: tuple[LoadedAdapter, ...] = ()
    adapters_gone: tuple[str, ...] = ()
    adapters_loaded: int = 0
    sleep: Sleep | None = None
    caches_dropped: int = 0
    calls_aborted: int = 0


NOTHING_TOLD: Final = LiveState()
_decode = msgspec.json.Decoder(LiveState).decode
_encode = msgspec.json.Encoder().encode


def read_state(live: Live) -> tuple[int, LiveState]:
    """The newest state and its version."""
    version, text = live.read()
    return version, _decode(text) if text else NOTHING_TOLD


async def change(live: Live, edit: Callable[[LiveState], LiveState]) -> tuple[int, LiveState]:
    """Change the state of the host; answer the new version and state.

    ``edit`` is called again when another change came first; what it raises changes nothing.
    Raises ``Shed`` when another process holds the state for a second.
    """
    for _ in range(_TRIES):
        seen, state = read_state(live)
        after = edit(state)
        if live.replace(seen, _encode(after)):
            return seen + 1, after
        await asyncio.sleep(_PAUSE_S)
    raise Shed("another change is being made", reason="live_state_busy", retry_after_s=1)


def merged(base: Any, patch: Any) -> Any:
    """``patch`` laid over ``base``: tables are merged, ``null`` takes a name out (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return patch
    made = dict(base) if isinstance(base, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


def composed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """One patch that does what two do one after the other; ``null`` stays, it takes names out."""
    made = dict(first)
    for name, value in second.items():
        old = made.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        made[name] = composed(old, value) if both else value  # type: ignore[arg-type]
    return made


class Proposed:
    """A live state that nobody shares and a ledger of its own: what a change is tried with."""

    version = 1

    def __init__(self, state: LiveState) -> None:
        self._text = _encode(state)
        self._cells: dict[str, Cells] = {}

    def read(self) -> tuple[int, bytes]:
        """The state."""
        return 1, self._text

    def replace(self, seen: int, text: bytes) -> bool:  # noqa: ARG002 - the ``Live`` protocol
        """Nothing becomes of a trial."""
        return False

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Count; see ``ports.Ledger``."""
        return int(self.update(name, lambda c: (c[0] + 1, *c[1:]), crowd=crowd)[0])

    def update(
        self,
        name: str,
        change: Callable[[Cells], Cells],
        *,
        crowd: bool = False,  # noqa: ARG002 - the ``Ledger`` protocol
    ) -> Cells:
        """Change a name's numbers; see ``ports.Ledger``."""
        after = self._cells[name] = change(self._cells.get(name, (0.0, 0.0, 0.0, 0.0)))
        return after

    def look(self, name: str, *, crowd: bool = False) -> Cells:  # noqa: ARG002
        """A name's numbers; see ``ports.Ledger``."""
        return self._cells.get(name, (0.0, 0.0, 0.0, 0.0))

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> TrialWatch:
        """Look at names; see ``ports.Ledger``."""
        return TrialWatch(self._cells, (*names, *crowd))


class TrialWatch:
    """Some names of a ledger that is a trial's own."""

    def __init__(self, cells: Mapping[str, Cells], names: Sequence[str]) -> None:
        self._cells = cells
        self._names = names

    def peek(self) -> tuple[Cells, ...]:
        """Their numbers."""
        return tuple(self._cells.get(name, (0.0, 0.0, 0.0, 0.0)) for name in self._names)


class VersionLine:
    """The header line that tells a client which state is in force."""

    __slots__ = ("_line", "_live", "_version")

    def __init__(self, live: Live) -> None:
        self._live = live
        self._version = -1
        self._line = b""

    def __call__(self) -> bytes:
        version = self._live.version
        if version != self._version:
            self._version = version
            self._line = b"%b: %d\r\n" % (HEADER, version)
        return self._line
