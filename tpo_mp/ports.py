"""The five doors: Stage, Route, Backend, Controller, Surface.

A feature is one file behind one door.
It exports ``FEATURE = Feature(Config, build)``; its file name is its config key, its metric label
and the name of its test.
It receives an ``Env`` and nothing else, so its unit tests need no process.  What an ``Env`` holds
is described in ``services`` and can be imported from here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeAlias,
    runtime_checkable,
)

from msgspec import Meta, Struct

from .services import (
    Alone,
    Cells,
    Counter,
    Gauge,
    Histogram,
    Journal,
    Ledger,
    Live,
    Metrics,
    NoPrefixes,
    Peers,
    Prefixes,
    PriceList,
    Quotas,
    Score,
    Scores,
    Share,
    Shares,
    Store,
    Timed,
    Timers,
    Unpriced,
    Unscored,
    WaitingRoom,
    Watch,
)
from .types import AnswerCache, Call, NoCache, Phase, Reply

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from .types import AnswerTier

__all__ = [
    "Alone",
    "Backend",
    "BackendConfig",
    "Cells",
    "Controller",
    "Counter",
    "Door",
    "Env",
    "Feature",
    "Gauge",
    "Histogram",
    "Journal",
    "Ledger",
    "Live",
    "Metrics",
    "NoPrefixes",
    "Peers",
    "Prefixes",
    "PriceList",
    "Probe",
    "Proceed",
    "Quotas",
    "Route",
    "Score",
    "Scores",
    "Share",
    "Shares",
    "Stage",
    "Store",
    "Timed",
    "Timers",
    "Unpriced",
    "Unscored",
    "WaitingRoom",
    "Watch",
]

Proceed: TypeAlias = Callable[[Call], Awaitable[Reply]]
Door: TypeAlias = Literal["stages", "routes", "backends", "controllers", "surfaces"]


@dataclass(frozen=True, slots=True)
class Env:
    """All a feature gets of the world; ``rooms`` are the stages' waiting rooms by stage name.

    ``ledger``, ``quotas``, ``live``, ``journal``, ``shares``, ``scores``, ``prefixes`` and
    ``cache`` are the host's: every process sees the same; ``tier`` is that of several hosts, where
    there is one.
    ``epoch`` is that of the configuration which the feature is built for.
    """

    clock: Callable[[], float]
    random: Random
    metrics: Metrics
    log: FilteringBoundLogger
    store: Store
    timers: Timers
    rooms: Mapping[str, WaitingRoom]
    ledger: Ledger
    quotas: Quotas
    live: Live
    journal: Journal
    shares: Shares
    scores: Scores = field(default_factory=Unscored)
    prefixes: Prefixes = field(default_factory=NoPrefixes)
    peers: Peers = field(default_factory=Alone)
    epoch: int = 0
    cache: AnswerCache = field(default_factory=NoCache)
    tier: AnswerTier | None = None
    prices: PriceList = field(default_factory=Unpriced)


class Probe(Struct, frozen=True, kw_only=True):
    """How control asks whether a backend is well; ``headers`` may hold its key.

    Without a ``url`` it is not asked that; without a ``metrics_url`` its load is not read, nor
    without a ``slots_url`` how many slots it has, nor without a ``held_url`` what they hold.
    ``models`` and ``model_map`` are the backend's, to find its scores by.
    """

    name: str
    url: str
    models: tuple[str, ...] = ()
    model_map: dict[str, str] = {}
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str | None = None
    interval_s: float = 5.0
    timeout_s: float = 2.0
    rise: int = 1
    fall: int = 3
    metrics_url: str = ""
    metrics_every_s: float = 1.0
    slots_url: str = ""
    held_url: str = ""


class BackendConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every ``[[backends]]`` entry has."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$(?!\n)",
        description="Unique name, used in routes, metrics and breaker names.")]  # fmt: skip
    kind: Annotated[str, Meta(description="File name in backends/, or an entry point's name.")]
    models: Annotated[tuple[str, ...], Meta(min_length=1,
        description="Model names or globs this backend serves.")] = ("*",)  # fmt: skip
    model_map: Annotated[dict[str, str], Meta(
        description="Public model name to the upstream's own.")] = {}  # fmt: skip
    weight: Annotated[int, Meta(ge=1, le=1000,
        description="Share of traffic under the weighted route.")] = 1  # fmt: skip
    apis: Annotated[tuple[str, ...], Meta(
        description="APIs it speaks; empty means all of its kind.")] = ()  # fmt: skip
    max_concurrent: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | Literal["auto", "overload"],
        Meta(description="Calls it answers at a time, of all workers together; more wait in its "
             "queue (stage `admission`). 0: no limit; auto: found out by how fast it answers; "
             "overload: no limit until it answers that it has too many, then what it can take."),
    ] = "overload"  # fmt: skip

    def native_sampling(self) -> Mapping[str, object]:
        """What native requests that do not say are told otherwise than by default, by its name.

        These are the words of OpenAI's chats; no other client's request is told anything.
        """
        return {}

    def problems(self) -> Iterable[tuple[str, str]]:
        """What is wrong with options that are each in bounds: path within the entry, and why."""
        return ()

    def probe(self) -> Probe | None:
        """How it is asked whether it is well; ``None``: it is not."""
        return None


@dataclass(frozen=True, slots=True)
class Feature:
    """What a feature file exports: its options and how to build it from them."""

    Config: type[Struct]
    build: Callable[[Any, Env], Any]


class Stage(Protocol):
    """A layer round the rest of the pipeline.

    A stage that may wait is ``async (call, proceed) -> Reply``, or answers a ``Promise`` without a
    coroutine.  It may run outside any asyncio task, so it waits on futures and ``asyncio.sleep``,
    never with ``asyncio.timeout``.
    One that never waits leaves ``__call__`` out and has ``before(call)`` and/or
    ``after(call, reply)``, which the chain runs in line.

    ``meet(backends)``, where there is one, is told what backends the config has, once and before
    any call, and then ``meet_routes(routes)`` what routes; ``behind(stage)`` which stage of its
    phase lies directly outside; ``inside(proceed)`` what lies deeper, as
    ``join(key, call)`` serves calls that the same stage brought from another process (see
    ``Peers.bring``); ``blocked(call, backend)`` of an ATTEMPT stage says without a change that it
    would refuse that backend now, so that routes take another.
    ``recall(key, question)`` tells again what was told (see ``pipeline.chain.AnswerTeller``), and a
    stage outside one that does says ``sees_repeats = False`` where it need not see a request again
    whose very bytes were answered before and which carries no idempotency key.
    A stage that only ``advises`` so refuses nobody: what it blocks is asked when nothing is left;
    it may leave out everything else.
    """

    phase: ClassVar[Phase]

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply: ...


@runtime_checkable
class AnswerKeeper(Protocol):
    """A stage that keeps answers, as the stage directly inside it sees it."""

    def entrust(self) -> None:
        """From now on the inner stage says what it asks, to be kept: this one watches no call."""
        ...

    def keeping(self, call: Call, asked: Awaitable[Reply]) -> Awaitable[Reply]:
        """Keep what ``asked`` answers before whoever waits for it is told."""
        ...

    def again(self, call: Call) -> Reply | None:
        """Look once more for an answer to a call, which may have come meanwhile."""
        ...


class Backend(Protocol):
    """Something that answers calls."""

    name: str

    def infer(self, call: Call, /) -> Awaitable[Reply]:
        """Answer; the reply exists only once its first chunk does."""
        ...

    async def list_models(self) -> Sequence[str]:
        """Names the upstream reports, for ``/v1/models``; raises ``BackendFailure``."""
        ...

    def close(self) -> None:
        """Drop idle connections; running calls finish."""
        ...


class Route(Protocol):
    """Picks the backend of each attempt.

    A route that may ask several backends for one call is ``async (call, backends) -> Reply``.
    One that only chooses leaves ``__call__`` out and has ``pick(call, backends) -> Backend``.
    ``meet(backends)``, where there is one, is told the config of its backends before any call; one
    whose class has ``counts_load = True`` finds in ``pipeline.loads`` how much each has to do.
    """

    async def __call__(self, call: Call, backends: Sequence[Backend], /) -> Reply: ...


class Controller(Protocol):
    """Pure: looks at a host snapshot, answers the changes it wants."""

    def decide(self, snapshot: Mapping[str, float], /) -> Sequence[tuple[str, float]]: ...
