"""What the supervisor tells a child: one JSON object in ``TPO_HANDOFF``, or by ``late_handoff``.

::

    TPO_HANDOFF={"version":"0.1.0","layout":1,"role":"shard","seat":0,"slot":0,"epoch":1,…}

Written by the supervisor before the child exists, read by the child at its first lines, never
shared: there is no state, no order and no half-written form.  Descriptors are numbers that
``pass_fds`` keeps equal in parent and child.

Invariants: unknown and missing fields are errors.  A child whose package version or ``layout``
differs from its own code must not map any of the descriptors.  ``seat`` and ``state_dir`` never
change their meaning: with them a child that cannot read the rest can still say so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from tpo_mp.errors import Fault

ENV = "TPO_HANDOFF"
Role: TypeAlias = Literal["shard", "control"]


class _Address(msgspec.Struct):
    """What every version of a handoff says."""

    seat: int
    state_dir: str


class ForeignHandoff(Fault):
    """A handoff of another version of the code; tells where last words are awaited."""

    def __init__(self, why: str, seat: int, state_dir: str) -> None:
        super().__init__(f"{ENV}: {why}", reason="handoff")
        self.seat = seat
        self.state_dir = state_dir


class Handoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the child is and which descriptors it holds."""

    version: str
    """Package version of the supervisor."""
    layout: int
    """``plane.LAYOUT`` of the supervisor."""
    role: Role
    seat: int
    slot: int
    """-1: parked, serves no slot yet."""
    epoch: int
    workers: int
    seats: int
    cpu: int
    """-1: not pinned."""
    supervisor_pid: int
    plane_fd: int
    rings_fd: int
    metrics_fd: int
    registry_fd: int
    config_fd: int
    locks_fd: int
    ledger_fd: int
    quotas_fd: int
    live_fd: int
    journal_fd: int
    shares_fd: int
    scores_fd: int
    cache_fd: int
    claims_fd: int
    prefixes_fd: int
    engine_rings_fd: int
    engine_bells: list[tuple[int, int]]
    """Per dock of an engine: read and write descriptor."""
    doorbells: list[tuple[int, int]]
    """Per seat: read and write descriptor."""
    listeners: list[int]
    """Per slot: the listening socket."""
    ops_listener: int
    lifeline_fd: int
    """Read end of a pipe; end of file means the supervisor is gone: exit."""
    state_dir: str
    registry_path: str
    host: str
    port: int
    ops_port: int
    portable: bool

    def to_env(self) -> dict[str, str]:
        """The one variable to add to the child's environment."""
        return {ENV: self.to_json().decode()}

    def to_json(self) -> bytes:
        """Write it down."""
        return msgspec.json.encode(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Handoff:
        """Read it back; raises ``ForeignHandoff`` when another version wrote it, else ``Fault``."""
        text = environ.get(ENV)
        if text is None:
            raise Fault(f"{ENV} is not set: this process is started by the supervisor only")
        return cls.decode(text)

    @classmethod
    def decode(cls, text: str) -> Handoff:
        """Read its JSON; raises ``ForeignHandoff`` if another version wrote it, else ``Fault``."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            try:
                address = msgspec.json.decode(text, type=_Address)
            except msgspec.DecodeError:
                raise Fault(f"{ENV}: {error}", reason="handoff") from error
            raise ForeignHandoff(str(error), address.seat, address.state_dir) from error

    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor it names, once."""
        singles = (getattr(self, name) for name in _DESCRIPTORS)
        bells = (fd for pair in (*self.doorbells, *self.engine_bells) for fd in pair)
        return tuple({fd for fd in (*singles, *bells, *self.listeners) if fd >= 0})

    def renumbered(self, numbers: Mapping[int, int]) -> Handoff:
        """The same with the numbers that its descriptors have here."""

        def here(fd: int) -> int:
            return numbers[fd] if fd >= 0 else fd

        return msgspec.structs.replace(
            self,
            listeners=[here(fd) for fd in self.listeners],
            doorbells=[(here(read), here(write)) for read, write in self.doorbells],
            engine_bells=[(here(read), here(write)) for read, write in self.engine_bells],
            **{name: here(getattr(self, name)) for name in _DESCRIPTORS},
        )


_DESCRIPTORS: Final = (
    "ops_listener",
    *(name for name in Handoff.__struct_fields__ if name.endswith("_fd")),
)
"""Fields that are one descriptor."""
