"""A simulated provider that follows the live state: built anew whenever that changed.

Calls that are under way keep the provider they began with.

Invariants: a state that this worker's own configuration cannot take (the file was reloaded since)
leaves the file's options in force, with a warning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tpo_mp.errors import ConfigError
from tpo_mp.ports import BackendConfig, Env
from tpo_mp.types import Call, Dialect, Reply

from .live import LiveState, read_state
from .live_options import patched

if TYPE_CHECKING:
    from tpo_mp.ports import Live

C = TypeVar("C", bound=BackendConfig)


class _Provider(Protocol):
    """What is built from options and state."""

    @property
    def dialects(self) -> tuple[Dialect, ...]: ...

    def infer(self, call: Call) -> Awaitable[Reply]: ...

    async def list_models(self) -> Sequence[str]: ...

    def close(self) -> None: ...


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
        self._version, state = read_state(env.live)
        self.inner = self._built(state)
        self.dialects = self.inner.dialects

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer as the options of this moment say."""
        if self._live.version != self._version:
            self._adopt()
        return self.inner.infer(call)

    async def list_models(self) -> Sequence[str]:
        """The literal names it was configured with."""
        return await self.inner.list_models()

    def close(self) -> None:
        """Let go of what is held; running calls finish."""
        self.inner.close()

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
