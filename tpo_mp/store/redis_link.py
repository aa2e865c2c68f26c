"""A few connections to Redis, each asked one thing at a time, and left alone while Redis is ill.

Who asks has a connection to itself until the last reply was read.  Where anything comes between, a
time-out, a cancellation or an error, that connection is closed: what was not read on it can never
be taken for the answer to somebody else.

After ``PATIENCE`` failures (a success takes half a one back) Redis is *down*: nobody asks it any
more, and one task tries to reach it again every second or so, and must be answered within the time
that others would wait.  What is asked while it is down fails at once.

Invariants: at most ``LINKS`` connections, and at most one attempt per second to make one while
Redis is down; nothing waits longer than it said; nothing is raised but ``RedisAway``.
Known weakness: a Redis that answers half of the time just in time is not down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, TypeAlias

from tpo_mp.ports import Gauge

LINKS: Final = 4
PATIENCE: Final = 3.0
AGAIN_S: Final = 1.0
CONNECT_S: Final = 1.0
Command: TypeAlias = tuple[bytes | int | str, ...]


class RedisAway(Exception):
    """Redis did not answer, or not with what was asked; ``refused``: it said why."""

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class RedisLink:
    """One process's connections to one Redis; needs a running loop."""

    def __init__(
        self, url: str, *, wait_s: float, random: Random, down: Gauge,
        warn: Callable[..., object], on_up: Callable[[], None],
    ) -> None:  # fmt: skip
        """Begin to connect.  ``wait_s`` is how long those wait who ask on a request's path."""
        # Loaded where it is configured only.
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Broken
        from redis.exceptions import RedisError, ResponseError

        self._pool: Any = ConnectionPool.from_url(
            url, protocol=2, driver_info=None, retry=Retry(NoBackoff(), 0), socket_timeout=None,
            socket_connect_timeout=CONNECT_S, health_check_interval=0,
        )  # fmt: skip
        self._refusal = ResponseError
        self._broken = (Broken, OSError, EOFError)
        self._failed = (RedisError, OSError, EOFError, TimeoutError, ValueError)
        self._wait_s = wait_s
        self._random = random
        self._gauge = down
        self._gauge.set(1)
        self._warn = warn
        self._on_up = on_up
        self._idle: list[Any] = []
        self._links = 0
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._failures = 0.0
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.up = False
        """Whether it may be asked."""
        self.why = "not connected yet"
        """Why not."""
        self._tending = self.spawn(self._tend())

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine for as long as this lives."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(
        self, commands: Sequence[Command], within_s: float, *, writes: bool = False
    ) -> list[Any]:
        """The replies to some commands, sent together; raises ``RedisAway``.

        A Redis that refuses to write may still be read.  Only inside a task of ``spawn``.
        """
        if not self.up:
            raise RedisAway(self.why)
        try:
            async with asyncio.timeout(within_s):
                said = await self._ask_any(commands)
        except self._failed as e:
            why = "it is late" if isinstance(e, TimeoutError) else f"{type(e).__name__}: {e}"
            refused = not isinstance(e, (TimeoutError, *self._broken))
            if not (refused and writes):
                self._fails(why)
            raise RedisAway(why, refused=refused) from None
        self._failures = max(self._failures - 0.5, 0.0)
        return said

    def close(self) -> None:
        """Let go of everything; who waits is told that there is nothing."""
        self._closed = True
        self._falls("closed")
        self._gauge.set(0)
        for task in list(self._tasks):
            task.cancel()
            _close_with(task)

    # -- connections --------------------------------------------------------------------------

    async def _ask_any(self, commands: Sequence[Command]) -> list[Any]:
        """Ask over one connection, or over another where the server had closed that one."""
        for left in reversed(range(LINKS)):
            link = await self._take()
            try:
                return await self._ask_over(link, commands)
            except self._broken:  # also a Redis that says that it loads its data
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _ask_over(self, link: Any, commands: Sequence[Command]) -> list[Any]:
        try:
            await link.send_packed_command(link.pack_commands(commands), check_health=False)
            said = [await link.read_response() for _ in commands]
        except BaseException as e:
            # A refusal of the only command was read to its end.
            if len(commands) == 1 and isinstance(e, self._refusal):
                self._give(link)
            else:
                self._drop(link)
            raise
        self._give(link)
        return said

    async def _take(self) -> Any:
        if not self.up:
            raise ConnectionError(self.why)
        if self._idle:
            return self._idle.pop()
        if self._links < LINKS:
            self._wanted.set()
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give(waiting.result())  # it came in the same turn; nothing was asked of it
            raise

    def _give(self, link: Any) -> None:
        if not self.up:
            self._drop(link)
            return
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(link)
                return
        self._idle.append(link)

    def _drop(self, link: Any) -> None:
        self._links -= 1
        _close_with(asyncio.get_running_loop().create_task(link.disconnect(nowait=True)))
        if self._waiting:
            self._wanted.set()

    async def _tend(self) -> None:
        """Connect when somebody waits for it; while it is down, again and again."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._links >= LINKS:
                if not self.up:  # those who still wait for a reply give up: look again then
                    await asyncio.sleep(AGAIN_S)
                    self._wanted.set()
                continue
            link = self._pool.make_connection()
            self._links += 1
            try:
                async with asyncio.timeout(2 * CONNECT_S):
                    await link.connect()
                if not self.up:
                    async with asyncio.timeout(self._wait_s):
                        await link.send_command("PING", check_health=False)
                        await link.read_response()
            except self._failed as e:
                self._drop(link)
                self._falls("it is late" if isinstance(e, TimeoutError) else f"{e}")
            except BaseException:
                self._drop(link)
                raise
            else:
                self._rises()
                self._give(link)  # before anybody whom that told asks for one
            if not self.up:
                await asyncio.sleep(AGAIN_S * self._random.uniform(1.0, 1.5))
                self._wanted.set()

    # -- up and down --------------------------------------------------------------------------

    def _fails(self, why: str) -> None:
        self._failures += 1
        if self._failures >= PATIENCE and self.up:
            self._falls(why)
            # The next attempt is not now.
            asyncio.get_running_loop().call_later(
                AGAIN_S * self._random.uniform(1.0, 1.5), self._wanted.set
            )

    def _falls(self, why: str) -> None:
        if self.up or self.why != why:
            self.why = why
            if not self._closed:
                self._warn("redis_away", why=why)
        self.up = False
        self._gauge.set(1)
        self._wanted.clear()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError(why))
        idle, self._idle = self._idle, []
        for link in idle:
            self._drop(link)

    def _rises(self) -> None:
        if not self.up:
            self.up, self.why, self._failures = True, "", 0.0
            self._gauge.set(0)
            self._on_up()


_closing: set[asyncio.Task[Any]] = set()
"""What lets go of connections; its owners may be gone."""


def _close_with(task: asyncio.Task[Any]) -> None:
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def let_go() -> None:
    """Wait until this loop has no more connection that a link dropped or was closed with."""
    loop = asyncio.get_running_loop()
    while tasks := [task for task in _closing if task.get_loop() is loop]:
        await asyncio.wait(tasks)
