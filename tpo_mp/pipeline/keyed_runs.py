"""Requests with an idempotency key: one of them runs, the others wait for its answer.

The requests of this process that say the same under the same key share one run, which asks control,
the one place where keys are granted, and goes one of two ways: it *leads* (the first request that
still waits is sent on, and what comes of it is kept), or it *watches* until the call that has the
key, wherever it is, has ended.

A request that leads goes on when its client leaves, so that the client finds the answer when it
asks again; not when its deadline passed, it was cancelled by its id, or the process drains.  What
the stages behind this one set aside for it (budgets, limits) is settled when it really ends.

Invariants: a request is sent on only while its key is this process's; every request that waits is
told an end: the answer, an error, or after ``wait_s`` that the other is still running; at most
``MAX_WAITING`` wait here and ``MAX_ORPHANS`` go on without a client.
Known weakness: others learn of an end by looking, a quarter of a second late at most.  Runs are
shared within one config epoch; those of an older one are watched as another process's are.
The record of a call that goes on without its client is made when that left: it has no tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from tpo_mp.errors import Cancelled, DeadlineExceeded, TpoError
from tpo_mp.ports import Env, Proceed
from tpo_mp.store.key_questions import EndKey, KeptAnswer, KeyAnswer
from tpo_mp.types import NO_DEADLINE, Call, Ending, Reply, Terminal

from .delivery import ON_REQUEST, as_tpo, terminal_of
from .endings import GOES_ON, at_end, ending, tell_ended
from .key_claims import REFUSALS, UNAVAILABLE, KeyClaims, refusal
from .promise import Promise, run
from .recorded import RecordedStream, kept, kept_error, replayed, without_body

MAX_WAITING: Final = 4096
MAX_ORPHANS: Final = 256
FINAL: Final = frozenset({400, 413, 422})
"""Statuses by which an upstream refuses what a request says: it would do so again."""
_GIVEN_UP: Final = frozenset({Cancelled.code, DeadlineExceeded.code})


class _Waiter:
    """One request, and when it has waited long enough."""

    __slots__ = ("call", "deadline", "filed_at", "promise", "run")

    def __init__(self, call: Call, its: _Run, deadline: float) -> None:
        self.call = call
        self.run = its
        self.deadline = deadline
        self.filed_at = 0.0
        self.promise: Promise[Reply] = Promise(self.left)

    def left(self) -> None:
        """Its client gave up."""
        self.deadline = NO_DEADLINE
        self.run.drop(self)

    def expire(self) -> None:
        """The other runs for longer than one waits here."""
        self.run.drop(self)
        self.promise.reject(self.run.runs.refused("in_progress"))


class _Run:
    """What the requests of this process with one key and one body share.

    ``token`` is the id of the call that asked for the key.
    """

    __slots__ = (
        "cancel", "leader", "name", "orphan", "over", "print", "proceed", "runs", "token", "waiters"
    )  # fmt: skip

    def __init__(self, runs: KeyedRuns, name: str, print_: bytes, token: str, on: Proceed) -> None:
        self.runs = runs
        self.name = name
        self.print = print_
        self.token = token
        self.proceed = on
        self.waiters: list[_Waiter] = []
        self.leader: _Waiter | None = None
        self.cancel: Callable[[], object] | None = None
        self.orphan = False
        self.over = False

    def drop(self, waiter: _Waiter) -> None:
        """One waits no more."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            self.runs.waiting -= 1


class KeyedRuns:
    """The requests with keys of one process."""

    def __init__(
        self, env: Env, *, keep_s: float, wait_s: float, max_answer_bytes: int, again: bool
    ) -> None:
        """``again``: a request whose first run was lost with its worker is run again."""
        self._env = env
        self._claims = KeyClaims(env, keep_s=keep_s, again=again)
        self._keep_s = keep_s
        self._wait_s = wait_s
        self._max_bytes = max_answer_bytes
        self._runs: dict[tuple[str, bytes], _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0
        self.orphans = 0
        counter = env.metrics.counter
        text = "Requests with an idempotency key, by what became of them."
        self._counts = {
            outcome: counter("tpo_idempotency_requests_total", text, outcome=outcome)
            for outcome in ("ran", "replayed", UNAVAILABLE, *REFUSALS)
        }

    def ask(self, name: str, print_: bytes, call: Call, proceed: Proceed) -> Promise[Reply]:
        """The answer to a request: its own, or the one its key has."""
        if self.waiting >= MAX_WAITING:
            raise self.refused("in_progress")
        one = self._runs.get((name, print_))
        fresh = one is None
        if one is None:
            one = self._runs[name, print_] = _Run(self, name, print_, call.id, proceed)
        now = self._env.clock()
        waiter = _Waiter(call, one, now + self._wait_s)
        one.waiters.append(waiter)
        self.waiting += 1
        self._env.timers.add(waiter, now)
        if fresh:
            self._spawn(self._drive(one))
        return waiter.promise

    def refused(self, why: str, lines: bytes = b"") -> TpoError:
        """Count a refusal and make its error."""
        self._counts[why].inc()
        return refusal(why, lines)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, one: _Run) -> None:
        """Find out whose the key is, and go that way."""
        try:
            said = await self._claims.settle(one.name, one.print, one.token, lambda: one.waiters)
        except Exception as e:  # noqa: BLE001 - a defect must not leave them waiting
            self._failed(one, e)
            return
        if said is None:  # it may have been granted all the same: it is given back
            self._failed(one, refusal(UNAVAILABLE))
        elif said.state == "yours":
            self._lead(one)
        else:
            self._close(one, partial(self._told, one.print, said))

    # -- leading --------------------------------------------------------------------------------

    def _lead(self, one: _Run) -> None:
        """The key is ours: send one request on."""
        if not one.waiters:
            self._failed(one, Cancelled("its client left before it could run"))
            return
        leader = one.leader = one.waiters[0]
        one.drop(leader)
        leader.deadline = NO_DEADLINE
        leader.promise.cancel_with = None  # how its call ends decides: see ``_leader_ended``
        at_end(leader.call, partial(self._leader_ended, one))
        self._counts["ran"].inc()
        try:
            awaitable = one.proceed(leader.call)
        except Exception as e:  # noqa: BLE001 - becomes the call's error
            self._failed(one, e)
            return
        cancel = run(awaitable, partial(self._answered, one))
        if one.cancel is None and not one.over:
            one.cancel = cancel

    def _answered(self, one: _Run, reply: Reply | None, error: BaseException | None) -> None:
        leader = one.leader
        if reply is None or leader is None:
            self._failed(one, error or RuntimeError("a stage answered nothing"))
            return
        if reply.stream is None:
            leader.promise.resolve(reply)
            self._ended(one, leader.call, reply, reply.body)
            return
        recorded = RecordedStream(
            reply.stream, self._max_bytes, partial(self._streamed, one, leader.call, reply)
        )
        reply.stream = recorded
        one.cancel = recorded.give_up
        if leader.promise.done:
            recorded.cancel()  # nobody listens: it is read for the record
        else:
            leader.promise.resolve(reply)

    def _streamed(self, one: _Run, call: Call, reply: Reply, error: TpoError | None) -> None:
        """A stream that leads has come to its end."""
        recorded = reply.stream
        if error is not None or not isinstance(recorded, RecordedStream):
            self._failed(one, error or Cancelled("nobody wanted the rest"))
        else:
            self._ended(one, call, reply, recorded.body)

    def _ended(self, one: _Run, call: Call, reply: Reply, body: bytes | None) -> None:
        answer = kept(call, reply, body)
        self._settle(one, ending(Terminal.DONE, reply.usage, None, call.attempts))
        fits = answer.body is not None and len(answer.body) <= self._max_bytes
        self._end(one, answer if fits else without_body(answer), final=True, told=answer)

    def _failed(self, one: _Run, error: BaseException) -> None:
        """The run ends with an error; the next who asks may run unless it is final."""
        if one.over:
            return
        leader, seen = one.leader, as_tpo(error)
        final = seen.reason == "upstream_rejected" and seen.status in FINAL
        first = leader.call.id if leader is not None else one.token
        answer = kept_error(first, seen)
        attempts = leader.call.attempts if leader is not None else 0
        self._settle(one, ending(terminal_of(seen), None, seen, attempts))
        self._end(one, answer, final=final, told=answer)
        if leader is not None:
            leader.promise.reject(error)

    def _settle(self, one: _Run, ended: Ending) -> None:
        """Those that waited for the end of a run without a client hear of it, once."""
        if one.orphan and not one.over and one.leader is not None:
            try:
                tell_ended(one.leader.call, ended)
            except Exception as e:  # noqa: BLE001 - the key's answer does not depend on it
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "defect in a stage that was told of a call's end", "exception": e}
                )

    def _end(self, one: _Run, answer: KeptAnswer, *, final: bool, told: KeptAnswer) -> None:
        """Tell control, and who waits here."""
        if one.over:
            return
        end = EndKey(one.token, one.print, self._keep_s, final, answer)
        self._spawn(self._claims.end(one.name, end))
        said = KeyAnswer("done" if final else "failed", one.token, one.print, told)
        self._close(one, partial(self._told, one.print, said))

    def _leader_ended(self, one: _Run, ended: Ending) -> object:
        """The request that leads is accounted for; its work may go on."""
        if one.over or one.leader is None:
            return None
        error = ended.error
        left = error is not None and error.code == Cancelled.code and error.reason != ON_REQUEST
        if left and self.orphans < MAX_ORPHANS:
            one.orphan = True
            self.orphans += 1
            # Its place in the registry is another's soon.
            asyncio.get_running_loop().call_soon(setattr, one.leader.call, "slot", -1)
            return GOES_ON
        cancel, one.cancel = one.cancel, None
        error = error or Cancelled("it was given up")
        self._failed(one, error)
        if cancel is not None:
            cancel()
        return None

    # -- the others -----------------------------------------------------------------------------

    def _told(self, print_: bytes, said: KeyAnswer, call: Call) -> Reply:
        """What a request that did not run is told; raises the error it is."""
        if said.state == "lost":
            lines = b"x-tpo-first-call-id: %b\r\n" % said.call_id.encode()
            raise self.refused("outcome_unknown", lines)
        if said.print != print_:
            raise self.refused("key_reused")
        answer = said.answer
        if answer is None:
            raise self.refused("in_progress")
        if answer.error is not None and answer.error[0] in _GIVEN_UP:
            raise self.refused("given_up")
        if answer.body is None:
            raise self.refused("answer_not_kept")
        self._counts["replayed"].inc()
        return replayed(call, answer)

    def _close(self, one: _Run, tell: Callable[[Call], Reply]) -> None:
        """End a run and tell everybody who waits."""
        one.over = True
        one.leader = one.cancel = None
        if one.orphan:
            self.orphans -= 1
        del self._runs[one.name, one.print]
        waiters, one.waiters = one.waiters, []
        self.waiting -= len(waiters)
        for waiter in waiters:
            waiter.deadline = NO_DEADLINE
            try:
                reply = tell(waiter.call)
            except TpoError as e:
                waiter.promise.reject(e)
            else:
                waiter.promise.resolve(reply)
