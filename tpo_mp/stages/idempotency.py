"""Requests with an ``Idempotency-Key`` run once; who asks again is given the first one's answer.

Whose a key is, and what came of it, is known in one place of the host (control's store), and
outlives workers and the host.  Keys of two tenants, or of two credentials that go upstream, never
meet.  What is the same request: model, dialect, session, whether it streams, and every byte of the
body.

What is kept: answers, and an upstream's refusal of what the request says (400, 413, 422).  Any
other failure is told to those who wait for it, and the next who asks runs.

Stands before limits and budgets: a request that is given an answer uses nothing of them.  A request
without the header costs one look at its key.

Invariants and known weakness: those of ``pipeline.keyed_runs`` and ``control.idempotency``.
"""

from __future__ import annotations

from collections.abc import Awaitable
from hashlib import blake2b
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from tpo_mp.pipeline.keyed_runs import KeyedRuns
from tpo_mp.ports import Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests with an ``Idempotency-Key``."""

    keep_s: Annotated[float, Meta(ge=1, le=604_800,
        description="How long a key and its answer are kept after the answer; [store] caps may end "
        "it earlier.")] = 86_400.0  # fmt: skip
    wait_s: Annotated[float, Meta(ge=0, le=3600,
        description="How long a request waits for another with its key that still runs, before it "
        "is answered 409.")] = 300.0  # fmt: skip
    max_answer_bytes: Annotated[int, Meta(ge=0, le=7_000_000,
        description="The largest answer that is kept; of a larger one only that there was one.",
        )] = 1_000_000  # fmt: skip
    after_crash: Annotated[Literal["refuse", "run"], Meta(
        description="What becomes of a request whose first run was lost with its worker: a backend "
        "may have answered it.  \"refuse\" is a 409, \"run\" runs it again.",
        )] = "refuse"  # fmt: skip


class Idempotency:
    """Lets one request of each key run."""

    phase: ClassVar[Phase] = Phase.ADMIT
    sees_repeats: ClassVar[bool] = False  # those have no key

    def __init__(self, config: Config, env: Env) -> None:
        self._runs = KeyedRuns(
            env,
            keep_s=config.keep_s,
            wait_s=config.wait_s,
            max_answer_bytes=config.max_answer_bytes,
            again=config.after_crash == "run",
        )

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Run the call, or find its key's answer; raises ``Rejected`` and ``Shed``."""
        if not call.idempotency_key:
            return proceed(call)
        return self._runs.ask(name_of(call), print_of(call), call, proceed)


def name_of(call: Call) -> str:
    """What the store knows a key by."""
    return _digest(call.tenant.encode(), call.authorization or b"", call.idempotency_key).hex()


def print_of(call: Call) -> bytes:
    """What tells the request from others."""
    parts = (call.model, call.dialect, call.session or "", "stream" if call.stream else "")
    return _digest(*(part.encode("utf-8", "surrogatepass") for part in parts), call.body)


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=20)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


FEATURE = Feature(Config, Idempotency)
