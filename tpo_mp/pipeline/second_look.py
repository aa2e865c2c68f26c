"""A look into the second tier for a call that the first had no answer to, then the call itself.

Invariants: the call goes on exactly once, unless it was answered or left; who leaves while the tier
is asked has nothing to cancel there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tpo_mp.types import AnswerTier, Call, Reply

from .promise import Promise, run


def whose(call: Call) -> bytes:
    """Whose answer it is and of what, as the second tier checks it."""
    tenant, model = call.tenant, call.model
    told = f"{len(tenant)} {tenant} {call.dialect} {len(model)} {model}"
    return told.encode("utf-8", "surrogatepass")


class SecondLook:
    """One call that waits for the tier, or for what it asked then; ``out`` is its reply."""

    __slots__ = ("_answer", "_ask", "_cancel", "out")

    def __init__(
        self,
        tier: AnswerTier,
        key: bytes,
        call: Call,
        answer: Callable[[bytes, float], Reply | None],
        ask: Callable[[], Awaitable[Reply]],
    ) -> None:
        """``answer`` makes a reply of what is found and its seconds left, if it is one."""
        self._answer = answer
        self._ask = ask
        self._cancel: Callable[[], object] | None = None
        self.out: Promise[Reply] = Promise(self._left)
        tier.find(key, whose(call), self._told)

    def _left(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _told(self, found: tuple[bytes, float] | None) -> None:
        out = self.out
        if out.done:
            return
        reply = None if found is None else self._answer(*found)
        if reply is not None:
            out.resolve(reply)
            return
        try:
            self._cancel = run(self._ask(), self._asked)
        except Exception as e:  # noqa: BLE001 - becomes the call's error
            out.reject(e)

    def _asked(self, reply: Reply | None, error: BaseException | None) -> None:
        out = self.out
        if reply is None:
            out.reject(error or RuntimeError("a stage answered nothing"))
        elif not out.done:
            out.resolve(reply)
        elif reply.stream is not None:
            reply.stream.cancel()
