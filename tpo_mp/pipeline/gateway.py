"""What a surface asks of its shard; the worker implements it.

Invariants: a call that was opened is settled exactly once, by its ``Delivery``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tpo_mp.config.tree import Config
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.observe.health import ArenaView
from tpo_mp.shm.plane import Plane
from tpo_mp.store.client import DEADLINE_S as STORE_S
from tpo_mp.store.job_questions import JobAnswer, Question
from tpo_mp.store.questions import ReplayWord
from tpo_mp.types import Call

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange
    from tpo_mp.http.head import Head

    from .delivery import Delivery
    from .feeds import Feeds
    from .native_delivery import NativeDelivery
    from .recall import Recalled
    from .response_log import EventPage
    from .ways import Way


class Gateway(Protocol):
    """The shard, as surfaces see it; ``plane`` and ``metrics_arena`` are the host's.

    ``feeds`` are the native streams, of this shard and, through it, of the host.
    """

    plane: Plane
    metrics_arena: ArenaView
    feeds: Feeds

    def tenant(self, head: Head) -> str:
        """Whom a request speaks for; empty where no key is asked for."""

    def mark(self, head: Head) -> str:
        """What the ids of this tenant's calls end in; empty where no key is asked for."""

    def owns(self, head: Head, call_id: str) -> bool:
        """Whether a call, or a job, is this tenant's; to others it does not exist."""

    @property
    def config(self) -> Config:
        """The configuration that new calls are served with."""

    def recall(self, exchange: Exchange, way: Way) -> Recalled | None:
        """What is known of a request whose very bytes came before; ``None``: nothing.

        ``ANSWERED`` when it was answered at once.
        """

    def new_call(
        self, exchange: Exchange, model: str, body: bytes, stream: bool, affinity: str | None
    ) -> Call:
        """Identify a request; raises ``Draining`` or ``InvalidRequest``."""

    def submit(self, delivery: Delivery) -> None:
        """Register the call and run it; the outcome reaches ``delivery.done``."""

    def settled(self, delivery: Delivery) -> None:
        """Account for a call that ended; called once, by its delivery."""

    async def models(self) -> Sequence[str]:
        """Every model a client may name."""

    def adapter(self, model: str) -> tuple[str, str] | None:
        """Of a model that is an adapter, the model it is for and where it lies."""

    def knows_model(self, model: str) -> bool:
        """Whether some backend serves ``model``."""

    def sampling(self, model: str) -> Mapping[str, object]:
        """What native requests for ``model`` that do not say are told, as its backend wants it."""

    def default_model(self) -> str | None:
        """The first model named literally in the config."""

    async def ask_store(
        self, table: str, key: str, wait_s: float = STORE_S
    ) -> tuple[bytes | None] | None:
        """A 1-tuple of what control's store has; ``None`` when it does not answer in time."""

    async def result(self, call_id: str, wait_s: float) -> bytes | None:
        """The JSON record of an asynchronous call, wherever on this host it is."""

    async def cancel(self, call_id: str) -> bool:
        """End an open call, whichever shard of this host has it; False when none has."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Every route this shard serves."""

    async def ask_jobs(self, question: Question) -> JobAnswer | None:
        """What control says about batch jobs; ``None`` when it does not answer."""

    async def tell_replay(self, call_id: str, word: ReplayWord, wait_s: float) -> bytes | None:
        """What control says to a word of a replay; ``None`` when it has not taken it."""

    def accept(self, delivery: NativeDelivery, session_id: str) -> dict[str, Any]:
        """Run a call whose result is fetched later; answers its first record."""

    async def run_background(self, call: Call, asked: bytes) -> dict[str, Any]:
        """Run a response whose client ``asked`` not to wait for it; answers it as it stands."""

    async def background_events(self, call_id: str, after: int, wait_s: float) -> EventPage | None:
        """A background response's next events; ``None`` when this host has none of it."""
