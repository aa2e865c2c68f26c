"""What vLLM lets developers do to a running server: adapters, sleep, an empty prefix cache.

``tpo-mp simulate`` serves it; in a gateway it is served where ``[surfaces.vllm_dev]`` stands, and
what it does concerns the host's simulators.  One truth per host: the next request on any worker
sees it, and a worker that dies takes nothing of it along.

Invariants: what is refused changes nothing; who may not use ``/admin`` may not use this, unless
``open`` says so.

Source: vLLM's API server with ``VLLM_SERVER_DEV_MODE`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING``
(documentation of v0.16, 2026; sleep and caches as of v0.32): paths, fields, answers and errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

import orjson
from msgspec import Meta, Struct

from tpo_mp.config.values import Secret
from tpo_mp.dialects import vllm_shapes
from tpo_mp.dialects.body import parse
from tpo_mp.errors import BackendTimeout, NotFound, Rejected
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Handler, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator import adapters, live_options, sleeping
from tpo_mp.simulator.admission import Doorkeeper
from tpo_mp.simulator.live import LiveState, change, read_state

RUNNING: Final = "vllm:num_requests_running"
LOOKS_S: Final = 0.05
LONGEST_S: Final = 3600.0
"""Nobody waits longer for engines to come to rest."""
TEXT: Final = b"text/plain; charset=utf-8"
KEY: Final = Parameter("X-Admin-Key", "The `admin_api_key`, when there is one.", place="header")
LEVEL: Final = Parameter(
    "level", "0: only paused, 1: the weights stay in memory, 2: they do not [1].", int
)
MODE: Final = Parameter(
    "mode",
    "`abort` ends what is under way, `wait` lets it end, `keep` lets it stand still until they "
    "wake [abort].",
)
TAGS: Final = Parameter(
    "tags", "`weights`, `kv_cache` or, of level 0, `scheduling`; may come twice; none: all."
)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use it."""

    admin_api_key: Annotated[
        Secret | None,
        Meta(description="What X-Admin-Key must say; without it only this machine may ask."),
    ] = None
    open: Annotated[
        bool, Meta(description="Anybody who reaches the port may use it, as vLLM has it.")
    ] = False


class VllmDev:
    """Routes where vLLM has them."""

    def __init__(self, config: Config, env: Env) -> None:
        self._env = env
        self._door = None if config.open else Doorkeeper(config.admin_api_key, "this")
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        done = (Outcome("it is done", media="text/plain"),)
        return [
            self._route("POST", "/v1/load_lora_adapter", self.load_adapter, done, (400, 404, 413),
                        request=vllm_shapes.LoadAdapter,
                        example={"lora_name": "sql", "lora_path": "/adapters/sql"}),
            self._route("POST", "/v1/unload_lora_adapter", self.unload_adapter, done, (400, 404),
                        request=vllm_shapes.UnloadAdapter, example={"lora_name": "sql"}),
            self._route("POST", "/sleep", self.sleep,
                        (Outcome("they do", vllm_shapes.Slept),), (400, 504),
                        parameters=(LEVEL, MODE), takes_json=False),
            self._route("POST", "/wake_up", self.wake_up,
                        (Outcome("awake, or a part still sleeps", vllm_shapes.Woken),), (400,),
                        parameters=(TAGS,), takes_json=False),
            self._route("GET", "/is_sleeping", self.is_sleeping,
                        (Outcome("whether they do", vllm_shapes.Sleeping),)),
            self._route("POST", "/reset_prefix_cache", self.reset_cache,
                        (Outcome("empty, or not while something runs", vllm_shapes.CacheReset),),
                        takes_json=False),
        ]  # fmt: skip

    def _route(
        self, method: str, template: str, handler: Handler, outcomes: tuple[Outcome, ...],
        errors: tuple[int, ...] = (), **more: Any,
    ) -> Endpoint:  # fmt: skip
        def guarded(exchange: Exchange) -> object:
            if self._door is not None:
                self._door.admit(exchange)
            return handler(exchange)

        guarded.__doc__ = handler.__doc__
        reads = (KEY, *more.pop("parameters", ()))
        return Endpoint(
            method, template, guarded, "openai",
            outcomes=outcomes, parameters=reads, errors=(401, *errors), access="admin", **more,
        )  # fmt: skip

    # -- adapters -----------------------------------------------------------------------------

    async def load_adapter(self, exchange: Exchange) -> None:
        """Give a simulated model a LoRA adapter, which is a model of its own name from now on."""
        fields = parse(exchange.body)
        names, static = adapters.literal(self._models()), self._static()
        await self._change_adapters(
            exchange, fields, "added",
            lambda state: adapters.loaded(state, fields, names, self._served, static),
        )  # fmt: skip

    async def unload_adapter(self, exchange: Exchange) -> None:
        """Take a LoRA adapter away; calls that it answers run to their end."""
        fields, static = parse(exchange.body), self._static()
        await self._change_adapters(
            exchange, fields, "removed", lambda state: adapters.unloaded(state, fields, static)
        )

    async def _change_adapters(
        self, exchange: Exchange, fields: Any, what: str, edit: Callable[[LiveState], LiveState]
    ) -> None:
        try:
            await change(self._env.live, edit)
        except (Rejected, NotFound) as error:
            told = adapters.error_body(error)
            exchange.respond(error.status, told, extra=id_line(exchange.head))
            return
        said = f"Success: LoRA adapter '{fields['lora_name']}' {what} successfully."
        exchange.respond(200, said.encode(), TEXT, id_line(exchange.head))

    def _models(self) -> list[str]:
        configs = live_options.simulators(self._gateway.config.backends)
        return [model for config in configs for model in (*config.models, *config.model_map)]

    def _static(self) -> set[str]:
        """Adapters of the configuration."""
        configs = live_options.simulators(self._gateway.config.backends)
        return {name for config in configs for name in getattr(config, "adapters", ())}

    def _served(self, model: str) -> bool:
        return adapters.serves(self._models(), model)

    # -- sleep --------------------------------------------------------------------------------

    async def sleep(self, exchange: Exchange) -> None:
        """Put the engines of all simulated models to sleep: who asks them waits until they wake.

        Answered when nothing runs in them any more, but for what `keep` lets stand still.
        """
        query = given.parameters(exchange.head)
        level = given.whole(query, "level", 1, least=0, most=2)
        mode = given.choice(query, "mode", sleeping.MODES) or "abort"
        await change(self._env.live, lambda state: sleeping.fallen_asleep(state, level, mode))
        if mode != "keep":
            await self._rest()
        _tell(exchange, {"status": "sleeping", "level": level})

    async def _rest(self) -> None:
        """Wait until no engine runs anything, or somebody woke them."""
        give_up_at = self._env.clock() + LONGEST_S
        while read_state(self._env.live)[1].sleep is not None and await self._busy():
            if self._env.clock() > give_up_at:
                raise BackendTimeout("the engines still run what they had", reason="still_running")
            await asyncio.sleep(LOOKS_S)

    async def _busy(self) -> bool:
        """Whether any engine of the host runs a request; read beside the loop, all series are."""
        arena = self._gateway.metrics_arena

        def running() -> bool:
            return any(
                sample.value
                for family in arena.collect() if family.name == RUNNING
                for sample in family.samples
            )  # fmt: skip

        return await asyncio.get_running_loop().run_in_executor(None, running)

    async def wake_up(self, exchange: Exchange) -> None:
        """Wake the engines, or a part of them; they answer again when both parts are awake."""
        parts = given.listed(exchange.head, "tags")
        _, state = await change(self._env.live, lambda state: sleeping.woken(state, parts))
        status = "awake" if state.sleep is None else "sleeping"
        _tell(exchange, {"status": status, "tags": parts or None})

    def is_sleeping(self, exchange: Exchange) -> None:
        """Say whether the engines sleep."""
        _, state = read_state(self._env.live)
        _tell(exchange, {"is_sleeping": state.sleep is not None})

    async def reset_cache(self, exchange: Exchange) -> None:
        """Let the engines find no earlier prompt in their caches, unless they run something."""
        success = not await self._busy()
        if success:
            await change(self._env.live, sleeping.cache_dropped)
        _tell(exchange, {"success": success})


def _tell(exchange: Exchange, told: dict[str, Any]) -> None:
    exchange.respond(200, orjson.dumps(told), extra=id_line(exchange.head))


FEATURE = Feature(Config, VllmDev)
