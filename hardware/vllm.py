"""A vLLM server: its OpenAI dialect, with what its scheduler and its cache can be told.

Where its scheduling policy is ``priority``, a call carries its class as vLLM's ``priority`` (lower
is earlier).  Each tenant has a ``cache_salt``, so nobody can tell by the time to a first token what
another one asked.  A LoRA adapter is a model of its own: vLLM lists it, and ``model_map`` renames
it.  Ranks of a data-parallel deployment that have a port each are backends each (``ranks``).

``/generate``, the API of older servers, is told none of that: it knows none of it.

Invariants: what a client says of ``priority`` or ``cache_salt`` itself does not count where these
are ours to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call, Dialect, Priority

from . import vllm_generate
from .openai_engine import EngineClient, EngineClientConfig

SALT_BYTES: Final = 16
_KEPT_SALTS: Final = 4096
_TOLD: Final = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)


class Config(EngineClientConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``vllm``."""

    OWN_API: ClassVar[str] = "generate"

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "http://localhost:8000/v1"
    )
    priority: Annotated[
        bool,
        Meta(description="The engine runs with --scheduling-policy priority: tell it each call's."),
    ] = False
    cache_salt: Annotated[
        bool, Meta(description="Give each tenant a salt, so that none shares another's cache.")
    ] = True

    def native_sampling(self) -> Mapping[str, object]:
        """Longer answers than elsewhere, without the unlikeliest words."""
        return {"max_tokens": 512, "top_p": 0.95} if self.OWN_API in self.apis else {}


class VllmBackend(EngineClient):
    """One vLLM server."""

    OWN: ClassVar = (vllm_generate.PATH, vllm_generate.VllmGenerate)

    def __init__(self, config: Config, env: Env) -> None:
        super().__init__(config, env)
        self._tells_priority = config.priority
        self._salted = config.cache_salt
        self._salts: dict[str, str] = {}
        self._told = _TOLD[:1] if config.OWN_API in config.apis else _TOLD

    def fields(self, call: Call) -> dict[str, object]:
        """What the engine is told besides."""
        if call.dialect not in self._told:
            return {}
        told: dict[str, object] = {}
        if self._tells_priority:
            told["priority"] = Priority.CRITICAL - call.priority
        if self._salted and call.tenant:
            told["cache_salt"] = self._salt(call.tenant)
        return told

    def _salt(self, tenant: str) -> str:
        salt = self._salts.get(tenant)
        if salt is None:
            if len(self._salts) >= _KEPT_SALTS:
                self._salts.clear()
            salt = blake2b(tenant.encode(), digest_size=SALT_BYTES, person=b"tpo-salt").hexdigest()
            self._salts[tenant] = salt
        return salt


FEATURE = Feature(Config, VllmBackend)
