"""Asks control about idempotency keys, and words what clients are told of them.

Invariants: a question that is not answered is asked again, a bounded number of times; whoever
watches a key looks at it less and less often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tpo_mp.errors import Rejected, Shed, TpoError
from tpo_mp.ports import Env
from tpo_mp.store.key_questions import (
    ASK_S,
    KEYS,
    ClaimKey,
    EndKey,
    KeyAnswer,
    KeyQuestion,
    LookAtKey,
    decode_answer,
    encode,
)

FIRST_LOOK_S: Final = 0.01
SLOWEST_LOOK_S: Final = 0.25
CLAIM_TRIES: Final = 3
END_TRIES: Final = 100
RETRY_S: Final = 0.1
PARAM: Final = "idempotency-key"
_NO_RETRY: Final = b"x-should-retry: false\r\n"

UNAVAILABLE: Final = "unavailable"
_LOST: Final = (
    "the worker died that ran the request with this key, and a backend may have answered it; "
    "to run it again, ask with another key"
)
_TOO_LARGE: Final = (
    "the answer to the request with this key was too large to keep; "
    "to run it again, ask with another key"
)
REFUSALS: Final[dict[str, tuple[int, float | None, str]]] = {
    "in_progress": (409, 1.0, "another request with this key is still running; ask again later"),
    "given_up": (409, 1.0, "the request with this key was given up by its client; ask again"),
    "key_reused": (422, None, "this key was used for another request; every request needs its own"),
    "outcome_unknown": (409, None, _LOST),
    "answer_not_kept": (409, None, _TOO_LARGE),
}
"""Status, pause before the next try (``None``: there is no use in one), and what is said."""


def refusal(why: str, lines: bytes = b"") -> TpoError:
    """The error of a request that its key keeps from running."""
    if why == UNAVAILABLE:
        said = "the store, where idempotency keys are kept, does not answer"
        return Shed(said, reason="store_unavailable", retry_after_s=1.0)
    status, pause_s, said = REFUSALS[why]
    return Rejected(
        said,
        reason=f"idempotency_{why}",
        param=PARAM,
        status=status,
        retry_after_s=pause_s,
        lines=lines if pause_s is not None else lines + _NO_RETRY,
    )


class KeyClaims:
    """One process's questions to control."""

    def __init__(self, env: Env, *, keep_s: float, again: bool) -> None:
        """``again``: a key whose call was lost with its worker may be had again."""
        self._env = env
        self._keep_s = keep_s
        self._again = again

    async def settle(
        self, name: str, print_: bytes, call_id: str, wanted: Callable[[], object]
    ) -> KeyAnswer | None:
        """Claim a key, or watch it until its call has ended or nobody here ``wanted`` it any more.

        ``None``: control cannot be asked.
        """
        claim = ClaimKey(call_id, print_, self._keep_s, self._again)
        question: KeyQuestion = claim
        pause_s, unheard = FIRST_LOOK_S, 0
        while unheard < CLAIM_TRIES:
            said = await self._post(name, question)
            if said is None:
                unheard += 1
                await asyncio.sleep(RETRY_S)
                continue
            unheard = 0
            known = said.print == print_
            if said.state == "free" or (said.state == "failed" and not known):
                question = claim
            elif said.state != "running" or not known or not wanted():
                return said
            else:
                question = LookAtKey()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, SLOWEST_LOOK_S)
        return None

    async def end(self, name: str, end: EndKey) -> None:
        """Tell control of the end, again and again until it knows."""
        for _ in range(END_TRIES):
            if await self._post(name, end) is not None:
                return
            await asyncio.sleep(RETRY_S)
        self._env.log.error("idempotency_key_not_ended", call_id=end.call_id)

    async def _post(self, name: str, question: KeyQuestion) -> KeyAnswer | None:
        said = await self._env.store.post(KEYS, name, encode(question), wait_s=ASK_S)
        return None if said is None or said[0] is None else decode_answer(said[0])
