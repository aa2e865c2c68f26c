"""A simulated provider that follows the live state: built anew whenever that changed.

Calls that are under way keep the provider they began with.  The first calls after a change wait
while a file that it names is read beside the loop.

Invariants: a state that this worker's own configuration cannot take (the file was reloaded since)
leaves the file's options in force, with a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from tpo_mp.errors import ConfigError, TpoError
from tpo_mp.ports import BackendConfig, Env
from tpo_mp.types import Call, Dialect, Reply

from .adapters import StaticAdapter, present
from .call_journal import CallJournal
from .live import LiveState, LoadedAdapter, read_state
from .live_options import patched
from .meter import Meter
from .read_ahead import unread
from .source import SimulatedStream

if TYPE_CHECKING:
    from tpo_mp.ports import Live

C = TypeVar("C", bound=BackendConfig)


class _Provider(Protocol):
    """What is built from options and state."""

    @property
    def dialects(self) -> tuple[Dialect, ...]: ...

    @property
    def carried(self) -> frozenset[bytes]: ...

    def infer(self, call: Call) -> Awaitable[Reply]: ...

    @property
    def journal(self) -> CallJournal | None: ...

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]: ...

    async def list_models(self) -> Sequence[str]: ...

    def close(self) -> None: ...


class _Promised(Protocol):
    """See ``pipeline.promise``."""

    value: Reply | None

    def then(self, callback: Callable[[Reply | None, BaseException | None], object]) -> None: ...


class LivingBackend(Generic[C]):
    """The backend of kind ``simulator``, whatever it was told since it started."""

    def __init__(
        self, config: C, env: Env, build: Callable[[C, Env, LiveState], _Provider]
    ) -> None:
        self.name = config.name
        self._config = config
        self._env = env
        self._build = build
        self._live: Live = env.live
        self._meter = Meter(config.models, env.metrics, env.clock)
        self._version, state = read_state(env.live)
        self._reading: asyncio.Future[None] | None = None
        self.inner = self._built(state)
        self.dialects = self.inner.dialects

    @property
    def carried(self) -> frozenset[bytes]:
        """Request headers that its rules ask about."""
        return self.inner.carried

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer as the options of this moment say."""
        if self._live.version != self._version:
            reading = self._read_ahead()
            if reading is not None:
                return asyncio.get_running_loop().create_task(self._after(reading, call))
            self._adopt()
        try:
            said = self.inner.infer(call)
        except TpoError as error:
            self._ended(call, None, error)
            raise
        if isinstance(said, asyncio.Future):
            self._meter.active.add(1)
            said.add_done_callback(partial(self._done, call))
        else:
            promised = cast("_Promised", said)  # the other thing a provider answers with
            reply = promised.value
            if reply is not None and reply.stream is None:
                self._ended(call, reply, None)  # the plain case: answered at once
            else:
                self._meter.active.add(1)
                promised.then(partial(self._answered, call))
        return said

    async def list_models(self) -> Sequence[str]:
        """The literal names it was configured with."""
        return await self.inner.list_models()

    def adapters(self) -> Mapping[str, tuple[str, str]]:
        """Models it has beyond those of its config, as of now: what each is made of, and where."""
        if self._live.version == self._version:
            return {one.name: (one.base, one.path) for one in self.inner.adapters.values()}
        _, state = read_state(self._live)
        static: Mapping[str, StaticAdapter] = getattr(self._config, "adapters", {})
        there = present(static, (*self._config.models, *self._config.model_map), state)
        return {one.name: (one.base, one.path) for one in there.values()}

    def close(self) -> None:
        """Let go of what is held; running calls finish."""
        self.inner.close()

    def _done(self, call: Call, task: asyncio.Future[Reply]) -> None:
        if task.cancelled():
            self._answered(call, None, asyncio.CancelledError())
        else:
            error = task.exception()
            self._answered(call, None if error else task.result(), error)

    def _answered(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """There is a reply, whole or at its beginning, or there never will be."""
        stream = None if reply is None else reply.stream
        if reply is not None and isinstance(stream, SimulatedStream):
            stream.on_end = _Streamed(self, call, reply)
        else:
            self.over(call, reply, error)

    def over(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Note that an answer is complete, or given up."""
        self._meter.active.add(-1)
        self._ended(call, reply, error)

    def _ended(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        status = reply.status if reply is not None else _status(error)
        self._meter.ended(call, status, reply)
        journal = self.inner.journal
        if journal is not None:
            journal.note(call, status, reply)

    def _read_ahead(self) -> asyncio.Future[None] | None:
        """What reads the files of the newest state; None: they are known."""
        if self._reading is None:
            _, state = read_state(self._live)
            work = unread([self._config], state.options)
            if work is None:
                return None
            self._reading = asyncio.get_running_loop().run_in_executor(None, work)
            self._reading.add_done_callback(self._was_read)
        return self._reading

    def _was_read(self, _reading: asyncio.Future[None]) -> None:
        self._reading = None

    async def _after(self, reading: asyncio.Future[None], call: Call) -> Reply:
        """Answer when the files were read; a client that leaves ends its own wait only."""
        await asyncio.shield(reading)
        self._adopt()  # even if a file was written meanwhile, or this would have no end
        return await self.infer(call)

    def _adopt(self) -> None:
        version, state = read_state(self._live)
        if version == self._version:
            return
        old, self.inner = self.inner, self._built(state)
        self._version = version
        old.close()

    def _built(self, state: LiveState) -> _Provider:
        if state.options:
            try:
                return self._build(patched(self._config, state.options), self._env, state)
            except ConfigError as error:
                self._env.log.warning(
                    "live_options_refused", backend=self.name, reason=error.message
                )
        return self._build(self._config, self._env, state)


class _Streamed:
    """What is noted when a stream ends; a ``partial`` is three times as large."""

    __slots__ = ("_backend", "_call", "_reply")

    def __init__(self, backend: LivingBackend[Any], call: Call, reply: Reply) -> None:
        self._backend = backend
        self._call = call
        self._reply = reply

    def __call__(self) -> None:
        self._backend.over(self._call, self._reply, None)


def _status(error: BaseException | None) -> int:
    """The status of a call without a reply; 499 for one whose client left."""
    return error.status if isinstance(error, TpoError) else 499
